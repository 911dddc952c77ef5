"""Public names are unique and stable, and a report makes known what it may."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from factory_server.core import tools
from factory_server.core.lifecycle import AgentState
from factory_server.core.scopes import SCOPES
from hyperfactory.v1 import agent_service_pb2
from tests.unit.services.service_parts import agent
from wire.mcp.names import NAME_MAX_CHARS, public_name

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AGENTS = st.from_regex(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?(-[0-9]{1,3})?", fullmatch=True)
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_.-]{1,128}", fullmatch=True),
    st.from_regex(r"_{0,3}[a-c]{1,60}(_[0-9a-f]{8})?", fullmatch=True),
    st.text(min_size=1, max_size=80),
)


def tool(name: str, *, read_only: bool = False, text: str = "") -> agent_service_pb2.Tool:
    return agent_service_pb2.Tool(name=name, read_only=read_only, description=text)


def offer(*given: agent_service_pb2.Tool, revision: int = 1, generation: int = 1) -> tools.Offer:
    report = agent_service_pb2.AgentReport(revision=revision, tools=given)
    return tools.offered("a-w", "c1", generation, report, heard_at=NOW, heard_by="f1")


@given(AGENTS, NAMES)
def test_a_public_name_is_one_that_every_model_takes(owner: str, name: str):
    public = public_name(owner, name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", public)
    assert public[:32].startswith(f"{owner}__"[:32])


@given(st.lists(st.tuples(AGENTS, NAMES), min_size=2, max_size=40, unique=True))
def test_two_tools_never_share_a_name(pairs: list[tuple[str, str]]):
    assert len({public_name(*pair) for pair in pairs}) == len(pairs)


@given(AGENTS, st.from_regex(r"[A-Za-z0-9_-]{70,128}", fullmatch=True))
def test_what_a_cut_name_became_is_nobodys_plain_name(owner: str, name: str):
    """The shortest tool that would be called as the cut one is, is called otherwise."""
    cut = public_name(owner, name)
    assert len(cut) == NAME_MAX_CHARS
    impostor = cut.removeprefix(f"{owner}__")
    assert public_name(owner, impostor) != cut


def test_names_in_use_never_change():
    """Clients and models hold on to them: this is a promise to other releases."""
    known = {
        ("coder", "write_file"): "coder__write_file",
        ("coder-2", "x.y"): "coder-2__x_y_d52b0f74",
        ("a", "t" * 62): "a__tttttttttttttttttttttttttttttttttttttttttttttttttttt_eaa4a84a",
        ("a", "x_20300101"): "a__x_20300101_3c668455",
    }
    assert {pair: public_name(*pair) for pair in known} == known


def test_an_offer_takes_each_name_once_and_no_more_than_there_is_room_for():
    many = offer(*(tool(f"t{n:04}") for n in range(tools.TOOLS_MAX + 50)))
    assert len(many.tools) == tools.TOOLS_MAX
    twice = offer(tool("b", text="first"), tool("b", text="second"), tool(""), tool("a"))
    assert [(t.name, t.description) for t in twice.tools] == [("a", ""), ("b", "first")]
    large = offer(tool("a", text="x" * 600_000), tool("b", text="x" * 600_000))
    assert [t.name for t in large.tools] == ["a"]


def test_entries_say_whether_their_agent_serves():
    said = offer(tool("t"))
    stale = {
        state: [e.stale for e in tools.entries(agent(state=state), said, heard=True)] for state in AgentState
    }
    assert stale[AgentState.READY] == stale[AgentState.BUSY] == [False]
    waiting = (AgentState.HIBERNATING, AgentState.UNHEALTHY, AgentState.WARMING, AgentState.PROVISIONING)
    assert all(stale[state] == [True] for state in waiting)
    assert all(stale[state] == [] for state in (AgentState.DRAINING, AgentState.STOPPED, AgentState.FAILED))
    assert [e.stale for e in tools.entries(agent(generation=2), said, heard=True)] == [True]
    assert [e.stale for e in tools.entries(agent(), said, heard=False)] == [True]


def test_a_change_names_what_came_and_what_went():
    before = [tool("a"), tool("b"), tool("c")]
    after = [tool("b"), tool("c", text="another"), tool("d")]
    changed = tools.change(before, after, 3)
    assert changed is not None
    assert (list(changed.added), list(changed.removed)) == (["c", "d"], ["a", "c"])
    assert (changed.count, changed.generation) == (3, 3)
    assert tools.change(after, after, 4) is None
    flood = tools.change([], [tool(f"t{n}") for n in range(500)], 1)
    assert flood is not None
    assert len(flood.added) == tools.CHANGED_NAMES_MAX


def test_a_reviewer_uses_what_changes_nothing():
    for scopes, writes in (({"admin"}, True), ({"coder"}, True), ({"reviewer"}, False), (set(), False)):
        assert tools.may_use(tool("t"), scopes) is writes
        assert tools.may_use(tool("t", read_only=True), scopes)


def test_a_tool_may_ask_for_more_than_its_effect_does_and_never_for_less():
    for scope, read_only, able in (
        ("", True, ["admin", "coder", "reviewer"]),
        ("", False, ["admin", "coder"]),
        ("reviewer", False, ["admin", "coder"]),
        ("coder", True, ["admin", "coder"]),
        ("admin", True, ["admin"]),
        ("unheard of", True, []),
    ):
        found = agent_service_pb2.Tool(name="t", read_only=read_only, scope=scope)
        assert [who for who in reversed(SCOPES) if tools.may_use(found, {who})] == able, (scope, read_only)
