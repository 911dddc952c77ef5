"""A pack is what the specification says, has one digest, and offers no more than it declares and allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.packs import archive, skill_md, tool, with_tools

from agent_runtime.tools import schema as runtime_schema
from factory_server.core import skill_frontmatter, skills
from factory_server.core.errors import Invalid, SkillRefused
from factory_server.core.skill_archive import Entry, read_entries
from factory_server.core.skills import Pack, make_pack, parse_ref, pins, read_pack

HEX = "ab" * 32


def pack_of(files: dict[str, bytes], **options: Any) -> Pack:
    return make_pack(read_entries(archive(files, **options)))[0]


def rule_of(files: dict[str, bytes], **options: Any) -> str:
    with pytest.raises(SkillRefused) as caught:
        pack_of(files, **options)
    return caught.value.metadata["rule"]


def front(text: str) -> dict[str, bytes]:
    return {"SKILL.md": f"---\n{text}\n---\nbody\n".encode()}


def test_the_same_files_have_one_digest_however_they_are_packed() -> None:
    files = with_tools()
    packs = [pack_of(files), pack_of(dict(reversed(files.items()))), pack_of(files, folder="counting")]
    assert len({pack.digest for pack in packs}) == 1
    assert packs[0].ref == parse_ref(f"counting@{packs[0].digest}", "x")
    assert packs[0].size == sum(map(len, files.values()))


@pytest.mark.parametrize(
    "other",
    [
        [Entry("SKILL.md", True, skill_md())],
        [Entry("SKILL.md", False, skill_md() + b"x")],
        [Entry("SKILL.md", False, skill_md()), Entry("a", False, b"")],
    ],
)
def test_mode_content_and_files_are_in_the_digest(other: list[Entry]) -> None:
    plain = make_pack([Entry("SKILL.md", False, skill_md())])[0]
    assert make_pack(other)[0].digest != plain.digest


def test_what_is_stored_is_read_back_and_checked() -> None:
    pack, content = make_pack(read_entries(archive(with_tools())))
    assert read_pack(pack.files, content) == pack
    assert read_pack(pack.files, content.replace(b"split", b"spilt")).digest != pack.digest


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        ("no-skill-md", {"README.md": b"x"}),
        ("no-skill-md", {"a/SKILL.md": b"x", "b/SKILL.md": b"x"}),
        ("frontmatter", {"SKILL.md": b"# no frontmatter"}),
        ("frontmatter", {"SKILL.md": b"---\nname: x\n"}),
        ("frontmatter", {"SKILL.md": b"\xff\xfe"}),
        ("frontmatter", front("- a list")),
        ("frontmatter", front("name: [a, b]\ndescription: x")),
        ("frontmatter", front("metadata: {a: {b: {c: d}}}")),
        ("frontmatter", front("{" * 5000)),
        ("frontmatter", front("a: b: c")),
        ("frontmatter", front(f"description: {'x' * 40_000}")),
        ("frontmatter", front("name: x\n...\nname: y")),
        ("frontmatter-alias", front("name: &a x\ndescription: *a")),
        ("frontmatter-tag", front("name: !!python/object/apply:os.system [id]")),
        ("frontmatter-tag", front("name: !x y")),
        ("frontmatter-duplicate", front("name: a\nname: b")),
        ("frontmatter-duplicate", front("name: a\ndescription: b\nmetadata: {x: '1', x: '2'}")),
        ("frontmatter-text", front('name: a\ndescription: "b\\0"')),
        ("frontmatter-text", front('name: a\ndescription: "\\ud800"')),
        ("frontmatter-text", front('name: a\ndescription: b\nmetadata: {"a\\u001b": b}')),
        ("frontmatter-field", front("name: a\ndescription: b\ntools: c")),
        ("frontmatter-field", front("name: a\ndescription: b\n<<: {name: c}")),
        ("frontmatter-field", front("name: {a: b}\ndescription: b")),
        ("name", front("description: x")),
        ("name", front("name: Upper\ndescription: x")),
        ("name", front("name: -a\ndescription: x")),
        ("name", front("name: a-\ndescription: x")),
        ("name", front("name: a--b\ndescription: x")),
        ("name", front(f"name: {'a' * 65}\ndescription: x")),
        ("name", front("name: ../etc\ndescription: x")),
        ("description", front("name: a")),
        ("description", front("name: a\ndescription: '  '")),
        ("description", front(f"name: a\ndescription: {'x' * 1025}")),
        ("compatibility", front(f"name: a\ndescription: b\ncompatibility: {'x' * 501}")),
        ("metadata", front("name: a\ndescription: b\nmetadata: text")),
        ("metadata", front("name: a\ndescription: b\nmetadata: {hyperfactory/tool: '[]'}")),
    ],
)
def test_a_skill_md_beside_the_specification_is_refused(rule: str, files: dict[str, bytes]) -> None:
    assert rule_of(files) == rule


def test_the_directory_is_called_like_the_pack() -> None:
    assert rule_of({"SKILL.md": skill_md("counting")}, folder="other") == "name"


def test_values_stay_text() -> None:
    """As the specification's own validator reads them: nothing becomes a number, a date or a truth."""
    found = skill_frontmatter.read(
        b"---\nname: on\ndescription: 1.0\nlicense: 2026-01-01\nmetadata: {a: yes}\n---\n"
    )
    assert found == {
        "name": "on",
        "description": "1.0",
        "license": "2026-01-01",
        "metadata": {"a": "yes"},
    }


@pytest.mark.parametrize(
    ("rule", "declared"),
    [
        ("tools", "{"),
        ("tools", "{}"),
        ("tools", '[{"name": "a", "description": "\\ud800", "script": "scripts/count.py"}]'),
        ("tools", "[" * 20_000),
        ("tools", '[{"name": "a", "name": "b"}]'),
        ("tools", json.dumps([tool(), tool()])),
        ("tools", json.dumps([tool(f"t{n}") for n in range(33)])),
        ("tools", json.dumps([tool("bad name")])),
        ("tools", json.dumps([tool("a" * 65)])),
        ("tools", json.dumps([tool(description="")])),
        ("tools", json.dumps([tool(more=1)])),
        ("tools", json.dumps([tool(script="../../bin/sh")])),
        ("tools", json.dumps([tool(script="/bin/sh")])),
        ("tools", json.dumps([tool(script="scripts/none.py")])),
        ("tools", json.dumps([tool(script="SKILL.md")])),
        ("tools", json.dumps([tool(read_only="yes")])),
        ("tools", json.dumps([tool(scope="root")])),
        ("tools", json.dumps([tool(read_only=False, scope="reviewer")])),
        ("tools", '[{"name": "a", "description": "b", "script": "c", "input_schema": {"minimum": NaN}}]'),
        ("tools", '[{"name": "a", "description": "b", "script": "c", "input_schema": {"minimum": 1e999}}]'),
        ("tool-schema", json.dumps([tool(input_schema=[])])),
        (
            "tool-schema",
            json.dumps([tool(input_schema={"$schema": "http://json-schema.org/draft-04/schema"})]),
        ),
        ("tool-schema", json.dumps([tool(input_schema={"type": "string"})])),
        ("tool-schema", json.dumps([tool(input_schema={"$ref": "http://x"})])),
        ("tool-schema", json.dumps([tool(input_schema={"properties": {"a": {"pattern": "(a+)+"}}})])),
        ("tool-schema", json.dumps([tool(input_schema={"properties": {"a": {"minLength": -1}}})])),
        ("tool-schema", json.dumps([tool(input_schema={"properties": {"a": True}})])),
    ],
)
def test_a_tool_that_is_not_wholly_declared_is_refused(rule: str, declared: str) -> None:
    files = with_tools() | {"SKILL.md": skill_md(metadata={"hyperfactory/tools": declared})}
    assert rule_of(files) == rule


def test_a_script_that_nobody_can_run_is_no_tool() -> None:
    files = with_tools(tool(script="scripts/count")) | {"scripts/count": b"x"}
    assert rule_of(files) == "tools"
    files = with_tools(tool(script="bin/count")) | {"bin/count": b"#!/bin/sh\n"}
    assert pack_of(files).tools[0].script == "bin/count"


def test_scopes_follow_from_what_a_tool_does() -> None:
    declared = (tool("a"), tool("b", read_only=False), tool("c", scope="admin"))
    pack = pack_of(with_tools(*declared))
    assert {t.name: t.scope for t in pack.tools} == {"a": "reviewer", "b": "coder", "c": "admin"}


@pytest.mark.parametrize(
    ("allowed", "offered"),
    [
        (None, ["count_words", "erase"]),
        ("", []),
        ("count_words", ["count_words"]),
        ("Bash(git:*) Read write_file", []),
        ("count_words run_python", ["count_words"]),
    ],
)
def test_allowed_tools_narrow_and_never_widen(allowed: str | None, offered: list[str]) -> None:
    more = {} if allowed is None else {"allowed_tools": allowed}
    pack = pack_of(with_tools(tool(), tool("erase", read_only=False), **more))
    assert [t.name for t in pack.tools] == offered


def test_every_schema_that_is_taken_is_one_that_the_runtime_checks() -> None:
    text = {
        "type": "string",
        "minLength": 1,
        "maxLength": 9,
        "enum": ["a"],
        "default": "a",
        "examples": ["a"],
    }
    number = {"type": "number", "minimum": 1, "maximum": 2, "title": "Number", "description": "A number."}
    rows = {"type": "array", "items": text, "minItems": 1, "maxItems": 2}
    whole = {
        "$schema": skills.DIALECT,
        "type": "object",
        "properties": {"text": text, "number": number, "rows": rows},
        "required": ["text"],
        "additionalProperties": False,
    }
    assert {*text, *number, *rows, *whole} == skills.SCHEMA_KEYWORDS
    for item in pack_of(with_tools(tool(input_schema=whole))).tools:
        runtime_schema.check_schema(item.input_schema)


@pytest.mark.parametrize(
    "text", ["", "a", f"a@{HEX}", f"A@sha256:{HEX}", f"../a@sha256:{HEX}", f"a@sha256:{HEX}0", "a@latest"]
)
def test_only_a_digest_pins(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        pins([f"ok@sha256:{HEX}", text], "profile.spec.skills")
    assert caught.value.violations[0].field == "profile.spec.skills[1]"


def test_one_name_is_pinned_once() -> None:
    with pytest.raises(Invalid) as caught:
        pins([f"a@sha256:{HEX}", f"a@sha256:{'cd' * 32}"], "skills")
    assert caught.value.violations[0].reason == "DUPLICATE"
