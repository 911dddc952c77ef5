"""A crew's list is made of bytes that stand ready: what did not change is not made anew."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from factory_server.api.http import mcp_lists
from factory_server.api.http.mcp_lists import EncodedLists
from factory_server.core import tools
from factory_server.core.cursor import CursorCodec
from factory_server.core.tools import Entry
from hyperfactory.v1 import agent_service_pb2
from tests.unit.services.service_parts import agent
from wire.mcp.errors import McpError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CODER, REVIEWER = frozenset({"coder"}), frozenset({"reviewer"})


def offered(name: str, *names: str, revision: int = 1) -> tuple[Entry, ...]:
    said = [agent_service_pb2.Tool(name=each, description=each, read_only=each == "look") for each in names]
    for each in said:
        each.input_schema.update({"type": "object", "properties": {"n": {"maxLength": 3}}})
    report = agent_service_pb2.AgentReport(revision=revision, tools=said)
    offer = tools.offered(f"a-{name}", "c1", 1, report, heard_at=NOW, heard_by="f1")
    return tools.entries(agent(name), offer, heard=True)


@pytest.fixture
def shaped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tools that were encoded."""
    seen: list[str] = []
    real = mcp_lists.shape

    def shape(tool: agent_service_pb2.Tool) -> object:
        seen.append(tool.name)
        return real(tool)

    monkeypatch.setattr(mcp_lists, "shape", shape)
    return seen


def test_only_what_changed_is_encoded(shaped: list[str]):
    lists = EncodedLists(CursorCodec(b"secret"))
    agents = {name: offered(name, "look", "write") for name in ("a", "b", "c")}
    known = tools.by_name(entry for entries in agents.values() for entry in entries)
    listed = json.loads(lists.page("c1", known, CODER, None)[0])
    assert [tool["name"] for tool in listed] == [f"{a}__{t}" for a in "abc" for t in ("look", "write")]
    assert listed[1] == {
        "name": "a__write",
        "description": "write",
        "inputSchema": {"type": "object", "properties": {"n": {"maxLength": 3}}},
        "annotations": {"readOnlyHint": False},
        "_meta": {"hyperfactory.local/agent": "a", "hyperfactory.local/tool": "write"},
    }
    assert shaped == ["look", "write"]  # agents of one profile offer the same
    narrow = json.loads(lists.page("c1", known, REVIEWER, None)[0])
    assert [tool["name"] for tool in narrow] == ["a__look", "b__look", "c__look"]
    agents["b"] = offered("b", "look", "new", revision=2)
    known = tools.by_name(entry for entries in agents.values() for entry in entries)
    listed = json.loads(lists.page("c1", known, CODER, None)[0])
    assert [tool["name"] for tool in listed if "b__" in tool["name"]] == ["b__look", "b__new"]
    assert shaped == ["look", "write", "new"]


def test_pages_follow_each_other_and_refuse_foreign_cursors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcp_lists, "PAGE_MAX", 2)
    monkeypatch.setattr(mcp_lists, "CREWS_MAX", 1)
    monkeypatch.setattr(mcp_lists, "SHAPES_MAX", 1)
    lists = EncodedLists(CursorCodec(b"secret"))
    known = tools.by_name(offered("a", "one", "two", "three"))
    first, cursor = lists.page("c1", known, CODER, None)
    assert [tool["name"] for tool in json.loads(first)] == ["a__one", "a__three"]
    second, end = lists.page("c1", known, CODER, cursor)
    assert ([tool["name"] for tool in json.loads(second)], end) == (["a__two"], "")
    for foreign in ("mine", 7, ""):
        with pytest.raises(McpError):
            lists.page("c1", known, CODER, foreign)
    with pytest.raises(McpError):
        lists.page("c2", known, CODER, cursor)
