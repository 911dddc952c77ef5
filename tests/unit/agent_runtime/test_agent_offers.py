"""What is offered beside tools: whose is meant of one key, which template fits a URI, and which URIs are files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from agent_runtime.capabilities import Capabilities
from agent_runtime.mcp.reading import _path
from agent_runtime.offers import Read, Resource, Shelf
from agent_runtime.tools.registry import Round
from wire.errors import AlreadyExists


async def fetch(_uri: str, _round: Round) -> Read:
    return Read()


async def read(_variables: Mapping[str, str]) -> str:
    return ""


def shelf() -> tuple[Shelf[Resource], list[Any]]:
    told: list[Any] = []
    return Shelf("resource", lambda one: one.uri, lambda: told.append(1)), told


def one(uri: str, name: str) -> Resource:
    return Resource(uri, name, fetch=fetch)


def names(found: Shelf[Resource]) -> dict[str, str]:
    return {each.uri: each.name for each in found}


def test_of_one_key_the_lower_rank_is_meant_whoever_came_first() -> None:
    found, _ = shelf()
    found.lend("second", [one("a:", "2"), one("b:", "2")], 2)
    assert names(found) == {"a:": "2", "b:": "2"}
    found.lend("first", [one("a:", "1")], 1)
    assert names(found) == {"a:": "1", "b:": "2"}
    assert (found.lost("first"), found.lost("second")) == ([], ["a:"])


def test_what_is_withheld_keeps_its_key_until_another_list_gives_it_up() -> None:
    found, _ = shelf()
    found.lend("first", [one("a:", "1")], 1)
    found.lend("second", [one("a:", "2")], 2)
    found.withhold("first")
    assert names(found) == {}
    found.lend("first", [one("c:", "1")], 1)
    assert names(found) == {"a:": "2", "c:": "1"}


def test_what_is_lent_gives_way_to_what_is_put() -> None:
    found, told = shelf()
    found.lend("server", [one("a:", "lent")], 1)
    found.replace("skill/x", [Resource("a:", "put", read)])
    assert names(found) == {"a:": "put"}
    with pytest.raises(AlreadyExists):
        found.replace("own", [Resource("a:", "mine", read)])
    found.replace("skill/x", ())
    assert names(found) == {"a:": "lent"}
    told.clear()
    found.lend("server", [one("a:", "lent")], 1)
    assert not told, "the same again is no change"


@pytest.mark.parametrize(
    ("template", "uri", "fits"),
    [
        ("repo://{owner}/{repo}/contents{/path*}", "repo://a/b/contents/c/d.md", True),
        ("repo://{owner}/{repo}/contents{/path*}", "repo://a/b/issues", False),
        ("db://{+all}", "db://any/thing?at=all", True),
        ("a{x}b{y}b", "ab", False),
        ("a{x}b{y}b", "a1b2b", True),
        ("memo://{name}", "other://name", False),
    ],
)
def test_templates_of_servers_fit_with_operators_that_we_do_not_know(
    template: str, uri: str, fits: bool
) -> None:
    assert (one(template, "t").match(uri) is not None) is fits


def test_a_template_that_is_made_to_be_slow_is_not() -> None:
    began_s = time.process_time()
    assert one("{x}a" * 400 + "b", "t").match("a" * 2048) is None
    assert time.process_time() - began_s < 0.1


def test_a_uri_means_what_is_listed_then_what_was_pointed_to_then_the_first_template() -> None:
    offered = Capabilities()
    linked = one("m://linked", "linked")
    offered.add_links(lambda uri: linked if uri == linked.uri else None)
    offered.resources.lend("b", [one("m://{x}", "wide")._replace(rank=2)], 2)
    offered.resources.lend("a", [one("{+x}", "widest")._replace(rank=1), one("m://listed", "listed")], 1)
    found = {uri: offered.find(uri) for uri in ("m://listed", "m://linked", "m://other")}
    assert [each.name for each in found.values() if each] == ["listed", "linked", "widest"]
    assert Capabilities().find("m://other") is None


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("memo://x", None),
        ("profile://me?half=50%25", None),
        ("https://example.org/a/b#c", None),
        ("file:///workspace/my%20notes.txt", "/workspace/my notes.txt"),
        ("FILE://localhost/workspace//a/./b", "/workspace/a/b"),
        ("file:/workspace/a", "/workspace/a"),
        ("file:workspace/a", "/"),  # a host, or relative to who knows what
        ("file://elsewhere/workspace/a", "/"),
        ("file:///workspace/../etc/passwd", "/"),
        ("file:///workspace/%2e%2e/etc/passwd", "/"),
        ("file:///workspace/%252e%252e/etc/passwd", "/"),
        ("file:///workspace/%25252525252e/etc", "/"),
        ("file:///workspace/a?b", "/"),
        ("file:///workspace/a%23b", "/"),
        ("file:///workspace\\..\\etc", "/"),
        (" file:///etc/passwd", "/etc/passwd"),
        ("fi\tle:///etc/passwd", "/"),
        ("fi%0ale:///etc/passwd", "/"),
        ("convert://file:///etc/passwd", "/"),
        ("convert://x?of=file%3A%2F%2F%2Fetc%2Fpasswd", "/"),
        ("notes://../../etc/passwd", "/"),
    ],
)
def test_the_file_that_a_uri_could_mean(uri: str, path: str | None) -> None:
    assert _path(uri) == path
