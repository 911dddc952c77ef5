"""The small parts under tasks and signals: gate, runner, owner, inbox, roster, structs, models, replies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime import models
from agent_runtime.limits import PROGRESS_QUEUED_MAX, SIGNALS_QUEUED_MAX, SIGNALS_REMEMBERED_MAX
from agent_runtime.owner import TaskOwner
from agent_runtime.profile import ChatTurn
from agent_runtime.resp import BusError, Connection, encode
from agent_runtime.roster import Roster
from agent_runtime.signals import Inbox
from agent_runtime.structs import to_dict, to_plain, to_struct, to_value
from agent_runtime.tasks import Gate, Progress, TaskRunner
from agent_runtime.tools.registry import Report
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import events_pb2
from wire.errors import Exhausted, Invalid, NotFound, Refused, Unavailable

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_travel_unchanged(value: Any) -> None:
    assert to_plain(to_value(value)) == value


def test_whole_numbers_come_back_as_ints_and_no_json_is_refused() -> None:
    back = to_dict(to_struct({"n": 5, "x": 0.5}))
    assert (type(back["n"]), type(back["x"])) == (int, float)
    for value in (float("nan"), float("inf"), object(), b"bytes"):
        with pytest.raises(Invalid):
            to_struct({"v": value})
    assert to_dict(to_struct({"\ud800": "half \ud83d"})) == {"?": "half ?"}


async def test_a_slow_reader_misses_steps_and_gets_the_newest_and_the_result() -> None:
    async def work(report: Report) -> str:
        for step in range(PROGRESS_QUEUED_MAX * 3):
            await report(step, "", {})
        return "end"

    updates = TaskRunner(Gate()).run("t", work)
    first = await anext(updates)
    for _ in range(PROGRESS_QUEUED_MAX * 10):
        await asyncio.sleep(0)  # the task runs to its end while nobody reads
    rest = [update async for update in updates]
    assert isinstance(first, Progress)
    assert rest[-1] == "end"
    assert rest[-2].fraction == PROGRESS_QUEUED_MAX * 3 - 1
    assert len(rest) <= PROGRESS_QUEUED_MAX + 1


async def test_a_reader_that_leaves_ends_the_task() -> None:
    ended = asyncio.Event()

    async def work(report: Report) -> None:
        try:
            await report(0, "", {})
            await asyncio.Event().wait()
        finally:
            ended.set()

    gate = Gate()
    updates = TaskRunner(gate).run("t", work)
    await anext(updates)
    await updates.aclose()
    assert ended.is_set()
    assert len(gate) == 0


async def test_a_shut_gate_lets_nothing_in_and_tells_when_it_is_empty() -> None:
    gate = Gate()
    with gate.pass_through():
        gate.shut("it drains")
        assert await gate.wait_empty(0.01) == 1
    assert await gate.wait_empty(0.01) == 0
    with pytest.raises(Unavailable), gate.pass_through():
        pass
    gate.reopen()
    with gate.pass_through():
        pass


async def test_an_owner_ends_what_it_owns_and_reports_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    owner, ended = TaskOwner(), asyncio.Event()

    async def fail() -> None:
        raise ValueError("gone wrong")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    failing = owner.spawn(fail(), "failing")
    owner.spawn(wait(), "waiting")
    await asyncio.wait([failing])
    await owner.close()
    assert ended.is_set()
    assert len(owner) == 0
    assert "background work failed" in caplog.text
    with pytest.raises(RuntimeError):
        owner.spawn(fail(), "late")


def delivery(broadcast: str) -> pb.SignalDelivery:
    return pb.SignalDelivery(broadcast=broadcast, signal="GO")


async def handled(inbox: Inbox, count: int) -> list[str]:
    """The signals that a handler sees until so many are through."""
    seen: list[str] = []
    enough = asyncio.Event()

    async def handle(signal: str, _payload: Mapping[str, Any]) -> None:
        seen.append(signal)
        if len(seen) == count:
            enough.set()

    owner = TaskOwner()
    owner.spawn(inbox.work(handle), "work")
    async with asyncio.timeout(10):
        await enough.wait()
    await asyncio.sleep(0)
    await owner.close()
    return seen


async def test_a_full_inbox_rejects_and_says_so() -> None:
    inbox = Inbox()
    for number in range(SIGNALS_QUEUED_MAX + 1):
        inbox.accept(delivery(f"b{number}"))
    session = inbox.supersede()
    batch = await anext(inbox.batches(session, asyncio.Event()))
    [receipt] = batch.receipts
    assert (receipt.broadcast, receipt.stage) == (
        f"b{SIGNALS_QUEUED_MAX}",
        events_pb2.RECEIPT_STAGE_REJECTED,
    )
    assert receipt.error.code == 8


async def test_an_id_is_remembered_as_long_as_promised_and_not_for_ever() -> None:
    inbox = Inbox()
    inbox.accept(delivery("first"))
    await handled(inbox, 1)
    for number in range(SIGNALS_REMEMBERED_MAX - 1):
        inbox.accept(delivery(f"b{number}"))
    inbox.accept(delivery("first"))
    assert len(await handled(inbox, SIGNALS_REMEMBERED_MAX - 1)) == SIGNALS_REMEMBERED_MAX - 1
    inbox.accept(delivery("one more"))
    inbox.accept(delivery("first"))
    assert len(await handled(inbox, 2)) == 2


def roster(revision: int, *names: str) -> pb.Roster:
    return pb.Roster(revision=revision, peers=[pb.Peer(name=name, group=name[0]) for name in names])


def test_rosters_only_move_forward() -> None:
    found = Roster()
    assert found.apply(roster(2, "a1", "b1"))
    assert not found.apply(roster(1, "z1"))
    assert found.apply(roster(2, "a2", "a1"))
    assert [mate.name for mate in found] == ["a1", "a2"]
    assert [mate.name for mate in found.group("a")] == ["a1", "a2"]
    with pytest.raises(NotFound):
        found.require("z1")


@pytest.mark.parametrize(
    "model",
    [
        7,
        {},
        {"kind": "other"},
        {"kind": "scripted"},
        {"kind": "scripted", "turns": []},
        {"kind": "scripted", "turns": [{}]},
        {"kind": "scripted", "turns": [{"expect": {"like": "x"}, "reply": {}}]},
        {"kind": "scripted", "turns": [{"reply": {"tool_calls": [{}]}}]},
    ],
)
def test_a_model_that_cannot_be_played_is_named(model: Any) -> None:
    with pytest.raises(Invalid) as bad:
        models.from_config({"model": model})
    assert bad.value.violations[0].field.startswith("spec.config.model")


async def test_a_script_plays_its_turns_and_ends() -> None:
    turns = [{"reply": {"text": "one {last}"}}, {"reply": {"text": "two"}}]
    model = models.from_config({"model": {"kind": "scripted", "turns": turns}})
    said = [ChatTurn("user", "hi")]
    for expected in ("one hi", "two"):
        text = "".join([piece.delta async for piece in model.answer(models.Prompt(said))])
        assert text == expected
        said += [ChatTurn("assistant", text), ChatTurn("user", "and?")]
    with pytest.raises(Refused):
        await anext(model.answer(models.Prompt(said)))


def connection(data: bytes) -> Connection:
    """A connection whose server has said this."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return Connection(reader, None)  # type: ignore[arg-type]  # nothing is written here


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"+OK\r\n", "OK"),
        (b":-7\r\n", -7),
        (b"$3\r\na\r\n\r\n", b"a\r\n"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"*2\r\n*1\r\n:1\r\n$0\r\n\r\n", [[1], b""]),
    ],
)
async def test_replies_are_read(data: bytes, reply: Any) -> None:
    assert await connection(data)._answer() == reply


@pytest.mark.parametrize(
    "data", [b"?\r\n", b"$99999999999\r\n", b"*1\r\n" * 20, b"*1\r\n-ERR\r\n", b"*1\r\n"]
)
async def test_broken_replies_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, EOFError)):
        await connection(data)._answer()


async def test_an_error_reply_keeps_its_kind() -> None:
    found = await connection(b"-NOPERM no\r\n")._answer()
    assert isinstance(found, BusError)
    assert found.kind == "NOPERM"


def test_commands_are_binary_safe() -> None:
    assert (
        encode(["SET", "ü", b"\r\n", 7]) == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$2\r\n\r\n\r\n$1\r\n7\r\n"
    )


def test_too_many_peers_are_refused() -> None:
    with pytest.raises(Exhausted):
        Roster().apply(roster(1, *(f"n{number}" for number in range(1001))))
