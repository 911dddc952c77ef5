"""MCP servers as capabilities: every revision spoken, every misbehaviour a condition, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.capabilities import Capabilities
from agent_runtime.servers.condition import Condition
from agent_runtime.servers.limits import CALM_MAX_S
from agent_runtime.servers.server import PAUSE_FIRST_S, PAUSE_MAX_S, Pauses
from agent_runtime.servers.servers import Servers
from agent_runtime.servers.spec import ServerSpec, spec_of
from agent_runtime.servers.words import Words
from agent_runtime.tools.registry import Call, Outcome, Tool
from hyperfactory.v1 import types_pb2
from wire.errors import Unavailable

PROGRAM = Path(__file__).parents[2] / "support" / "stdio_server.py"
BASE = {
    "PATH": os.environ["PATH"],
    **({"LD_LIBRARY_PATH": p} if (p := os.environ.get("LD_LIBRARY_PATH")) else {}),
}
WAIT_MAX_S = 15.0


async def ignore(_fraction: float, _message: str, _detail: Mapping[str, Any]) -> None:
    return None


class Offered(Capabilities):
    """Tells of every change at once, none left out."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._at_once = told
        super().__init__()

    def changed(self) -> None:
        super().changed()
        self._at_once()


class Bench:
    """Servers as an agent has them, and what they offer now."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self._news = asyncio.Event()
        self.seen: list[str] = []
        self.offered = Offered(self._changed)
        self.servers = Servers((), workspace, self.offered)

    def run(self, *ways: str, **given: Any) -> None:
        message = types_pb2.McpServer(
            name="small", command=given.pop("command", sys.executable), args=[str(PROGRAM), *ways]
        )
        start = given.pop("start_s", 10)
        secrets = given.pop("secrets", {})
        message.start_timeout.FromNanoseconds(int(start * 1e9))
        message.MergeFrom(types_pb2.McpServer(**given))
        self.servers = Servers([spec_of(message, BASE, secrets)], self.workspace, self.offered)
        self.servers.start()

    def _changed(self) -> None:
        now = [condition.reason for condition in self.servers.conditions()]
        if now != self.seen[-1:]:
            self.seen += now
        self._news.set()

    @property
    def condition(self) -> types_pb2.Condition:
        (condition,) = self.servers.conditions()
        return condition

    @property
    def tools(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.offered.tools}

    async def until(self, reason: str) -> types_pb2.Condition:
        async with asyncio.timeout(WAIT_MAX_S):
            while self.condition.reason != reason:
                self._news.clear()
                await self._news.wait()
        return self.condition

    async def until_offered(self, name: str) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while name not in self.tools:
                self._news.clear()
                await self._news.wait()

    async def call(self, name: str, report: Any = ignore, **arguments: Any) -> Outcome:
        return await self.tools[f"small__{name}"].handler(Call(arguments, 20.0, report))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.servers.stop(hurry=True)


@pytest.mark.parametrize("way", ["2025-11-25", "2025-03-26", "2024-11-05", "modern"])
async def test_a_server_of_every_revision_is_asked_for_all_pages_and_called(bench: Bench, way: str) -> None:
    bench.run(way)
    condition = await bench.until("Serving")
    assert condition.status == types_pb2.CONDITION_STATUS_TRUE
    assert condition.type == "McpServer/small"
    assert len(bench.tools) == 10
    assert bench.tools["small__echo"].read_only
    assert not bench.tools["small__grow"].read_only
    assert (await bench.call("echo", text="héllo\n")).text == "héllo\n"
    assert (await bench.call("wrong")).is_error
    assert (await bench.call("structured")).structured == {"cancelled": 0}
    refused = await bench.call("refuse")
    assert refused.is_error
    assert refused.text == "arguments are wrong"
    assert refused.structured == {"code": -32602, "data": {"which": "all"}}


@pytest.mark.parametrize("way", ["2025-11-25", "modern"])
async def test_a_new_tool_appears_when_the_server_says_so(bench: Bench, way: str) -> None:
    bench.run(way)
    await bench.until("Serving")
    await bench.call("grow")
    await bench.until_offered("small__new_one")
    assert (await bench.tools["small__new_one"].handler(Call({}, 5.0, ignore))).text == "new.one"


async def test_who_comes_and_goes_as_a_listener_delays_no_news(bench: Bench) -> None:
    """Only a server that tells of changes in vain is asked less often."""
    bench.run()
    await bench.until("Serving")
    for _ in range(20):
        stop = bench.offered.tell_updates(lambda _uri: None, lambda: frozenset({"memo://one"}))
        await asyncio.sleep(0.001)
        stop()
    began_s = asyncio.get_running_loop().time()
    await bench.call("grow")
    await bench.until_offered("small__new_one")
    assert asyncio.get_running_loop().time() - began_s < CALM_MAX_S / 2


async def test_progress_comes_while_the_tool_works(bench: Bench) -> None:
    bench.run()
    await bench.until("Serving")
    steps: list[tuple[float, str]] = []

    async def report(fraction: float, message: str, _detail: Mapping[str, Any]) -> None:
        steps.append((fraction, message))

    await bench.call("slow", report, steps=5)
    assert steps == [((i + 1) / 10, f"step {i}") for i in range(5)]


async def test_a_call_that_is_given_up_is_cancelled_at_the_server(bench: Bench) -> None:
    bench.run()
    await bench.until("Serving")
    begun = asyncio.Event()

    async def report(*_step: Any) -> None:
        begun.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("slow", report))
        await begun.wait()
        task.cancel()
    async with asyncio.timeout(WAIT_MAX_S):
        while (await bench.call("structured")).structured != {"cancelled": 1}:
            await asyncio.sleep(0.01)


async def test_only_allowed_tools_are_offered_and_absent_ones_are_named(bench: Bench) -> None:
    bench.run(tools=["echo", "env", "gone"], read_only_tools=["env"])
    condition = await bench.until("Serving")
    assert sorted(bench.tools) == ["small__echo", "small__env"]
    assert bench.tools["small__env"].read_only
    assert condition.message == "it has no tool gone"


async def test_environment_comes_by_value_and_by_secret_and_nothing_else_does(bench: Bench) -> None:
    os.environ["PLAIN"] = "of the runtime"
    try:
        bench.run("noisy", secret_env={"TOKEN": "key"}, secrets={"key": "s3cr3t"})
        await bench.until("Serving")
        assert json.loads((await bench.call("env")).text) == {"TOKEN": "s3cr3t", "PLAIN": None}
    finally:
        del os.environ["PLAIN"]


async def test_a_secret_is_in_no_log_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.run("noisy", secret_env={"TOKEN": "key"}, secrets={"key": "s3cr3t"})
    await bench.until("Serving")
    lines = [vars(record).get("line", "") for record in caplog.records]
    assert "secret is [secret]" in lines
    assert not any("s3cr3t" in str(vars(record)) for record in caplog.records)


async def test_a_secret_that_is_missing_keeps_the_server_down(bench: Bench) -> None:
    bench.run(secret_env={"TOKEN": "key"})
    condition = await bench.until("SecretMissing")
    assert condition.status == types_pb2.CONDITION_STATUS_FALSE
    assert "'key'" in condition.message


async def test_a_killed_server_is_a_condition_and_comes_back(bench: Bench) -> None:
    bench.run()
    await bench.until("Serving")
    first = bench.servers.pids()["small"]
    os.kill(first, 9)
    condition = await bench.until("Crashed")
    assert condition.message == "the server was killed by SIGKILL"
    assert not bench.tools
    await bench.until("Serving")
    assert bench.servers.pids()["small"] != first
    assert (await bench.call("echo", text="again")).text == "again"


async def test_a_call_in_flight_when_the_server_dies_says_so(bench: Bench) -> None:
    bench.run()
    await bench.until("Serving")
    with pytest.raises(Unavailable, match="exited with code 7"):
        await bench.call("die")


@pytest.mark.parametrize(
    ("ways", "given", "reason", "words"),
    [
        ((), {"command": "no-such-program"}, "CommandNotFound", "no such program"),
        ((), {"command": str(PROGRAM)}, "StartFailed", "ermission denied"),
        (("crash",), {}, "Crashed", "exited with code 3: error: it cannot work like this"),
        (("silent",), {"start_s": 0.5}, "StartTimeout", "within 0.5 s; it said: waiting for godot"),
        (("flood",), {}, "LineTooLong", "more than"),
        (("endless",), {}, "TooManyTools", "has no end"),
        (("2021-01-01",), {}, "VersionUnsupported", "'2021-01-01'"),
        (("2031-01-01",), {}, "VersionUnsupported", "'2031-01-01'"),
        (("rubbish",), {}, "NotMcp", "no MCP"),
    ],
)
async def test_what_cannot_serve_is_a_condition_with_its_reason(
    bench: Bench, ways: tuple[str, ...], given: dict[str, Any], reason: str, words: str
) -> None:
    bench.run(*ways, **given)
    condition = await bench.until(reason)
    assert words in condition.message
    assert condition.status == types_pb2.CONDITION_STATUS_FALSE
    assert not bench.tools


@pytest.mark.parametrize("way", ["answers", "twice", "stderr", "stdout", "restless", "deep", "nan"])
async def test_what_a_server_should_not_do_spoils_nothing_else(bench: Bench, way: str) -> None:
    bench.run("bad")
    await bench.until("Serving")
    found = await bench.call("misbehave", way=way)
    if way in ("deep", "nan"):
        assert found.is_error
        assert "cannot be read" in found.text
    else:
        assert found.text == ("first" if way == "twice" else "misbehave")
    assert (await bench.call("echo", text="well")).text == "well"
    assert bench.condition.reason == "Serving"
    assert int((await bench.call("count")).text) < 100, "notices are not each followed by a list"


@pytest.mark.parametrize(("way", "which"), [("deaf", "input"), ("mute", "output")])
async def test_a_server_that_closes_a_pipe_and_stays_is_replaced(bench: Bench, way: str, which: str) -> None:
    bench.run("bad")
    await bench.until("Serving")
    pid = bench.servers.pids()["small"]

    async def call() -> None:
        with pytest.raises(Unavailable, match=f"closed its {which}"):
            await bench.call("misbehave", way=way)
            while True:  # one that hears no more may answer what it has heard
                await bench.call("echo", text="x")

    async with asyncio.timeout(WAIT_MAX_S):
        await call()
    assert not _alive(pid)
    await bench.until("Serving")


async def test_one_that_ends_at_once_is_started_ever_less_often(bench: Bench) -> None:
    bench.run("crash")
    began_s = asyncio.get_running_loop().time()
    pids: set[int] = set()
    while asyncio.get_running_loop().time() - began_s < PAUSE_FIRST_S * 3:
        pids |= set(bench.servers.pids().values())
        await asyncio.sleep(0.001)
    assert 1 <= len(pids) <= 3
    assert bench.seen.count("Crashed") <= 1, "a condition that stays is told once"


async def test_eight_servers_serve_side_by_side(bench: Bench) -> None:
    one = types_pb2.McpServer(command=sys.executable, args=[str(PROGRAM)])
    specs = []
    for number in range(8):
        one.name = f"s{number}"
        specs.append(spec_of(one, BASE, {}))
    bench.servers = Servers(specs, bench.workspace, bench.offered)
    bench.servers.start()
    async with asyncio.timeout(WAIT_MAX_S):
        while {c.reason for c in bench.servers.conditions()} != {"Serving"}:
            await asyncio.sleep(0.01)
    assert len(bench.tools) == 80
    pids = bench.servers.pids()
    await bench.servers.stop()
    assert len(pids) == 8
    assert not any(map(_alive, pids.values()))


@pytest.mark.parametrize("apart", [False, True])
async def test_what_a_server_started_ends_with_it(bench: Bench, apart: bool) -> None:
    """Also in a session of its own, as browsers are started."""
    bench.run()
    await bench.until("Serving")
    child = int((await bench.call("child", apart=apart)).text)
    os.kill(bench.servers.pids()["small"], 9)
    await bench.until("Crashed")
    async with asyncio.timeout(WAIT_MAX_S):
        while _alive(child):
            await asyncio.sleep(0.01)


async def test_stopping_ends_a_stubborn_server_and_starting_brings_it_back(bench: Bench) -> None:
    bench.run("stubborn")
    await bench.until("Serving")
    pid = bench.servers.pids()["small"]
    await bench.servers.stop()
    assert not _alive(pid)
    assert bench.condition.reason == "Stopped"
    assert not bench.tools
    bench.servers.start()
    await bench.until("Serving")


async def test_a_start_in_the_midst_of_a_stop_waits_for_its_end(bench: Bench) -> None:
    bench.run("stubborn")
    await bench.until("Serving")
    pid = bench.servers.pids()["small"]
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.servers.stop())
        await asyncio.sleep(0)
        bench.servers.start()
    assert not _alive(pid)
    await bench.until("Serving")
    assert bench.seen[-3:] == ["Stopped", "Starting", "Serving"]


async def test_results_of_a_mebibyte_come_whole(bench: Bench) -> None:
    bench.run()
    await bench.until("Serving")
    assert len((await bench.call("large", bytes=1024 * 1024)).text) == 1024 * 1024


def test_pauses_grow_to_a_bound_and_begin_anew_after_a_healthy_time() -> None:
    pauses = Pauses()
    waits = [pauses.after(0.0) for _ in range(20)]
    assert PAUSE_FIRST_S * 0.75 <= waits[0] <= PAUSE_FIRST_S
    assert all(PAUSE_MAX_S * 0.75 <= wait <= PAUSE_MAX_S for wait in waits[-8:])
    assert pauses.after(3600.0) <= PAUSE_FIRST_S


def test_a_condition_keeps_its_time_while_its_reason_stays() -> None:
    first = Condition("McpServer/x", "Crashed", "once")
    second = first.after("Crashed", "twice")
    assert second.since == first.since
    assert second.after("Crashed", "twice") is second


def test_standard_error_is_bounded_and_long_lines_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    words = Words("small", ())
    words.take(b"e" * 10_000)
    words.take(b"e" * 10_000 + b"\nplain\nfatal: no way\nat line 3\n")
    assert words.last() == "fatal: no way"
    for _ in range(1000):
        words.take(b"x" * 900 + b"\n")
    logged = sum(len(str(vars(record).get("line", ""))) for record in caplog.records)
    assert logged < 80_000


def test_the_default_time_to_start_is_half_a_minute() -> None:
    assert spec_of(types_pb2.McpServer(name="a", command="b"), {}, {}) == ServerSpec("a", ("b",), {})


def _alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
