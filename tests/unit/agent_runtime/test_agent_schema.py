"""Our check of JSON Schema gives the verdict of others' validator, and refuses what it cannot check."""

from __future__ import annotations

import os
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.tools.budget import CHECK_MAX_S
from agent_runtime.tools.schema import check_schema, faults, mismatches, problems

NAMES = st.sampled_from(["a", "b", "ab", "c"])
NUMBERS = st.integers(-3, 6) | st.sampled_from([0.5, 1.0, 2.5])
LEAVES = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "ab", "abc", "b1"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
KINDS = ["object", "array", "string", "integer", "number", "boolean", "null"]
SIZES = st.integers(0, 3)
PATTERNS = st.sampled_from(["a", "^b", "[0-9]$"])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of some keywords each."""
    schemas, names = st.lists(inner, min_size=1, max_size=2), st.lists(NAMES, max_size=2, unique=True)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(KINDS)
            | st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
            "enum": st.lists(LEAVES, min_size=1, max_size=3),
            "const": LEAVES,
            "minLength": SIZES,
            "maxLength": SIZES,
            "minItems": SIZES,
            "maxItems": SIZES,
            "minProperties": SIZES,
            "maxProperties": SIZES,
            "minimum": NUMBERS,
            "maximum": NUMBERS,
            "exclusiveMinimum": NUMBERS,
            "exclusiveMaximum": NUMBERS,
            "multipleOf": st.sampled_from([1, 2, 0.5]),
            "pattern": PATTERNS,
            "uniqueItems": st.booleans(),
            "required": names,
            "dependentRequired": st.dictionaries(NAMES, names, max_size=2),
            "allOf": schemas,
            "anyOf": schemas,
            "oneOf": schemas,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "items": inner,
            "prefixItems": schemas,
            "contains": inner,
            "minContains": SIZES,
            "maxContains": SIZES,
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "additionalProperties": inner,
            "propertyNames": inner,
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2),
            "$ref": st.sampled_from(["#/$defs/d", "#anchored"]),
            "title": st.just("a note"),
            "format": st.just("uri"),
        },
    )


SCHEMAS = st.recursive(st.booleans() | keywords(st.booleans()), keywords, max_leaves=6)


@settings(max_examples=int(os.environ.get("HF_SCHEMA_EXAMPLES", "60")), deadline=None)
@given(SCHEMAS, SCHEMAS, st.lists(VALUES, min_size=1, max_size=4))
def test_the_verdict_is_that_of_a_real_validator(schema: Any, shared: Any, values: list[Any]) -> None:
    definition = (
        {"$anchor": "anchored", "allOf": [shared]} if "$ref" not in str(shared) else {"$anchor": "anchored"}
    )
    root = {"$defs": {"d": definition}, "type": "object", "properties": {"v": schema}}
    check_schema(root)
    theirs = jsonschema.Draft202012Validator(root)
    for value in values:
        assert (not list(problems(root, {"v": value}))) == theirs.is_valid({"v": value}), (schema, value)


@pytest.mark.parametrize(
    ("schema", "value", "valid"),
    [
        ({"items": [{"type": "integer"}]}, [1, "x"], True),
        ({"items": [{"type": "integer"}]}, ["x"], False),
        ({"dependencies": {"a": ["b"]}}, {"a": 1}, False),
        ({"dependencies": {"a": {"required": ["b"]}}}, {"a": 1, "b": 1}, True),
    ],
)
def test_draft_07s_own_words_are_understood(schema: dict[str, Any], value: Any, valid: bool) -> None:
    root = {"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"v": schema}}
    check_schema(root)
    assert (not list(problems(root, {"v": value}))) == valid
    assert jsonschema.Draft7Validator(root).is_valid({"v": value}) == valid


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"properties": {"a": {"$ref": "https://example.org/schema"}}},
        {"properties": {"a": {"$ref": "#/$defs/none"}}},
        {"properties": {"a": {"type": "text"}}},
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"minLength": "1"}}},
        {"properties": ["a"]},
        {"properties": {"a": 1}},
        {"$schema": "https://json-schema.org/draft/2019-09/schema"},
        {"anyOf": [{}] * 3000},
        {"unevaluatedProperties": False},
    ],
)
def test_what_cannot_be_checked_is_not_offered(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schema|reference|pattern|arguments"):
        check_schema(schema)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_check_ends_however_the_schema_refers_to_itself() -> None:
    endless = {"type": "object", "allOf": [{"$ref": "#"}]}
    check_schema(endless)
    assert "too much" in next(problems(endless, {}))
    tree = {"properties": {"v": {"$ref": "#/$defs/t"}}, "$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}}
    check_schema(tree)
    assert not list(problems(tree, {"v": nested(10)}))
    assert list(problems(tree, {"v": nested(100)}))
    bomb: dict[str, Any] = {"$defs": {"d0": {"type": "string"}}}
    for level in range(1, 12):
        bomb["$defs"][f"d{level}"] = {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}] * 8}
    bomb["properties"] = {"v": {"$ref": "#/$defs/d11"}}
    check_schema(bomb)
    assert list(problems(bomb, {"v": 1}))


def test_a_pattern_that_never_ends_holds_the_loop_for_a_moment_only() -> None:
    evil = {"type": "object", "properties": {"v": {"type": "string", "pattern": "^(a+)+$"}}}
    check_schema(evil)
    assert faults(evil, {"v": "aaa"}) == []
    began_s = time.process_time()
    assert faults(evil, {"v": "a" * 60 + "b"}) == ["arguments take too long to check"]
    assert mismatches(evil, {"v": "a" * 60 + "b"}) == []
    assert time.process_time() - began_s < 4 * CHECK_MAX_S
    assert faults(evil, {"v": "b"}) == ["arguments.v must match ^(a+)+$"]
