"""A tool's call over MCP through the factory, and the list of a crew of which some members hang."""

from __future__ import annotations

import json
import os
import signal
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from google.protobuf.json_format import ParseDict

from bench.bench import CALL_WITHIN_S, Bench
from bench.line import Line, Result, Target
from bench.loops import Call, latencies, rate
from bench.samples import Samples
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import types_pb2 as tp
from wire.identity import CA_FILE, CERTIFICATE_FILE, KEY_FILE

SIZE = 100
HUNG = 5
CALLS = 500
CALLERS = 8
WARM_UP = 100
LISTS = 20
TICKS_S = os.sysconf("SC_CLK_TCK")
HOW = (
    f"MCP over HTTPS (HTTP/1.1, mTLS, token) straight to the factory's HTTP port, one aiohttp client, {CALLERS} "
    "callers in a closed loop; list_files of an empty workspace. CPU is that of the factory's process in "
    f"/proc/<pid>/stat, per call over blocks of {CALLS}. Floor: `ping`, answered by the factory on the same "
    "connections. The list is of a crew of "
    f"{SIZE} coders, the same again while {HUNG} of them are stopped (SIGSTOP). HF_BENCH_TOOL_CALLS=100000 "
    "counts connections after so many calls."
)


@dataclass(frozen=True, slots=True)
class _Face:
    """The factory's HTTP port, and how it is asked."""

    session: aiohttp.ClientSession
    url: str
    tls: ssl.SSLContext
    authority: str
    token: Callable[[], str]

    def call(self, path: str, method: str, params: Mapping[str, Any] | None = None) -> Call:
        """A call of this method, again and again."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}})

        async def once() -> None:
            headers = {
                "authorization": f"Bearer {self.token()}",
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": "2025-11-25",
            }
            asked = self.session.post(
                self.url + path, data=body, headers=headers, ssl=self.tls, server_hostname=self.authority
            )
            async with asked as answer:
                said = await answer.json()
                if "result" not in said:
                    raise RuntimeError(f"{method}: {answer.status} {said}")

        return once


async def measure(bench: Bench) -> Result:
    """CPU and rate of calls, latency of lists."""
    members = [{"name": "coder", "profile": "coder", "replicas": SIZE}]
    manifest = ParseDict({"name": "tools", "members": members}, cp.CrewManifest())
    request = cp.AssembleCrewRequest(request_id=str(uuid.uuid4()), manifest=manifest)
    made = await bench.gateway.crews.AssembleCrew(
        request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata
    )
    try:
        async with _open(bench) as face:
            lines = await _calls(bench, face, made.crew)
            lines += await _lists(bench, face, made.crew)
    finally:
        await bench.disband(made.crew.id)
    return Result("tools", HOW, lines)


async def _calls(bench: Bench, face: _Face, crew: tp.Crew) -> list[Line]:
    agent = crew.agents[0]
    arguments: dict[str, Any] = {"arguments": {}}
    whole, own = f"/crews/{crew.id}/mcp", f"/agents/{agent.id}/mcp"
    ways = {
        "ping": face.call(whole, "ping"),
        "crew": face.call(whole, "tools/call", {"name": f"{agent.name}__list_files", **arguments}),
        "agent": face.call(own, "tools/call", {"name": "list_files", **arguments}),
    }
    factory = _factory(bench)
    cpu = {name: Samples("ms") for name in ways}
    rates = {name: Samples("calls/s") for name in ways}
    for call in ways.values():
        await rate(call, CALLERS, WARM_UP)
    before = _descriptors(factory)
    for _ in range(bench.some(0.2)):
        for name, call in ways.items():
            quiet = await bench.gate.wait()
            since = _cpu_s(factory)
            rates[name].add(await rate(call, CALLERS, CALLS), quiet=quiet)
            cpu[name].add((_cpu_s(factory) - since) / CALLS * 1000, quiet=quiet)
    many = int(os.environ.get("HF_BENCH_TOOL_CALLS", "0"))
    if many:
        await rate(ways["crew"], CALLERS, many)
    grown = Samples("descriptors")
    grown.add(max(_descriptors(factory) - before, 0))
    added = Target(p50_max=cpu["ping"].at(50) + 0.3)
    ping = "ping, answered by the factory"
    return [
        Line("factory's CPU of a call by the crew's URL", cpu["crew"], added, cpu["ping"], ping),
        Line("factory's CPU of a call by the agent's URL", cpu["agent"], added, cpu["ping"], ping),
        Line("calls by the crew's URL", rates["crew"], floor=rates["ping"], floor_name=ping, rate=True),
        Line("calls by the agent's URL", rates["agent"], floor=rates["ping"], floor_name=ping, rate=True),
        Line("connections more than before", grown, Target(p50_max=16), note=f"after {many or CALLS} calls"),
    ]


async def _lists(bench: Bench, face: _Face, crew: tp.Crew) -> list[Line]:
    listing = face.call(f"/crews/{crew.id}/mcp", "tools/list")
    awake, hung = Samples(), Samples()
    await latencies(listing, LISTS, awake, quiet=await bench.gate.wait())
    stopped = [agent.instance.host_pid for agent in crew.agents[-HUNG:]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        await latencies(listing, LISTS, hung, quiet=await bench.gate.wait())
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    return [
        Line(f"tools/list of {SIZE} agents", awake),
        Line(f"the same while {HUNG} hang", hung, Target(ratio_max=1.5), awake, "the same while all answer"),
    ]


@asynccontextmanager
async def _open(bench: Bench) -> AsyncIterator[_Face]:
    told = bench.stack.client
    directory = bench.stack.home / "pki" / "operator"
    context = ssl.create_default_context(cafile=str(directory / CA_FILE))
    context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
    context.set_alpn_protocols(["http/1.1"])
    url = f"https://127.0.0.1:{bench.stack.ports['factory_http']}"
    timeout = aiohttp.ClientTimeout(total=CALL_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        token = bench.caller.metadata[0][1].removeprefix("Bearer ")
        yield _Face(session, url, context, told["authority"], lambda: token)


def _factory(bench: Bench) -> int:
    """The factory's process."""
    for pid in bench.stack.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"factory_server" in words and b"--hold" not in words:
            return pid
    raise RuntimeError("the stack has no factory")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
