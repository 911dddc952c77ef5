"""The register of error reasons is total: what is raised is in the contract, what is there is raised."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields

from hyperfactory.v1.types_pb2 import ErrorReason
from tests.tidy.source import code, dotted
from wire.errors import FactoryError

PREFIX = "ERROR_REASON_"
REGISTER = {name.removeprefix(PREFIX) for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118

# Declared for a later release: reason -> what it belongs to.
PLANNED = {"NOT_PROMOTED": "the Gym: only promoted profiles for production crews"}


def _families(error: type[FactoryError] = FactoryError) -> Iterator[type[FactoryError]]:
    yield error
    for child in error.__subclasses__():
        yield from _families(child)


ERRORS = {family.__name__ for family in _families()}
DEFAULTS = {
    str(field.default)
    for family in _families()
    for field in fields(family)
    if field.name == "reason" and field.default
}


def _raised() -> Iterator[tuple[str, str]]:
    """Each literal reason handed to one of our errors, with the place."""
    for module in code():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or dotted(node.func).rpartition(".")[2] not in ERRORS:
                continue
            for keyword in node.keywords:
                if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant):
                    yield str(keyword.value.value), f"{module.path}:{node.lineno}"


def test_every_reason_that_is_raised_is_in_the_contract() -> None:
    unknown = [f"{place}: {reason}" for reason, place in _raised() if reason not in REGISTER]
    assert not unknown
    assert not DEFAULTS - REGISTER


def test_every_reason_of_the_contract_is_used_or_planned() -> None:
    used = {word for module in code() for word in _words(module.tree)}
    unused = REGISTER - used - DEFAULTS
    assert unused == set(PLANNED)


def test_every_error_has_a_reason_of_its_own() -> None:
    nameless = [f.__name__ for f in _families() if f is not FactoryError and not f("x").reason]
    assert not nameless


def _words(tree: ast.Module) -> Iterator[str]:
    """Every text that is one word, and every `ERROR_REASON_X` without the enum's prefix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Attribute) and node.attr.startswith(PREFIX):
            yield node.attr.removeprefix(PREFIX)
