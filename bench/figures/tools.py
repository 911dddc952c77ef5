"""A tool's call over MCP through the factory, the list of a crew of which some members hang, and how soon a change
is heard of."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
import tarfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from bench.bench import CALL_WITHIN_S, Bench
from bench.connection import Metadata
from bench.face import Face, open_face
from bench.line import Line, Result, Target
from bench.loops import latencies, rate
from bench.samples import Samples
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import skill_service_pb2 as sp
from hyperfactory.v1 import skill_service_pb2_grpc
from hyperfactory.v1 import types_pb2 as tp

SIZE = 100
HUNG = 5
CALLS = 500
CALLERS = 8
WARM_UP = 100
PACK, SCRIPT = "bench", "scripts/hello.sh"
LISTS = 20
TICKS_S = os.sysconf("SC_CLK_TCK")
HOW = (
    f"MCP over HTTPS (HTTP/1.1, mTLS, token) straight to the factory's HTTP port, one aiohttp client, {CALLERS} "
    "callers in a closed loop; list_files of an empty workspace. CPU is that of the factory's process in "
    f"/proc/<pid>/stat, per call over blocks of {CALLS}. Floor: `ping`, answered by the factory on the same "
    "connections. The list is of a crew of "
    f"{SIZE} coders, the same again while {HUNG} of them are stopped (SIGSTOP). HF_BENCH_TOOL_CALLS=100000 "
    "counts connections after so many calls. A change is a skill pack with a tool that is mounted into one of the "
    "agents or unmounted, from the request to the event at a listener of the crew's URL: the mounting is in it."
)


async def measure(bench: Bench) -> Result:
    """CPU and rate of calls, latency of lists."""
    members = [{"name": "coder", "profile": "coder", "replicas": SIZE}]
    manifest = ParseDict({"name": "tools", "members": members}, cp.CrewManifest())
    request = cp.AssembleCrewRequest(request_id=str(uuid.uuid4()), manifest=manifest)
    made = await bench.gateway.crews.AssembleCrew(
        request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata
    )
    try:
        async with open_face(bench) as face:
            lines = await _calls(bench, face, made.crew)
            lines += await _lists(bench, face, made.crew)
            lines += await _changes(bench, face, made.crew)
    finally:
        await bench.disband(made.crew.id)
    return Result("tools", HOW, lines)


async def _calls(bench: Bench, face: Face, crew: tp.Crew) -> list[Line]:
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
    more_ms = cpu["crew"].at(50) - cpu["ping"].at(50)
    per_core = Samples("calls/s")
    for taken_ms, quiet in cpu["crew"].values:
        per_core.add(1000 / taken_ms, quiet=quiet)
    ping = "ping, answered by the factory"
    return [
        Line("factory's CPU of a call by the crew's URL", cpu["crew"], added, cpu["ping"], ping),
        Line("factory's CPU of a call by the agent's URL", cpu["agent"], added, cpu["ping"], ping),
        Line(
            "calls by the crew's URL that a core of the factory's bears",
            per_core,
            Target(p50_min=3000),
            rate=True,
            note=f"1 / added CPU: {1000 / more_ms if more_ms > 0 else math.inf:.0f}/s",
        ),
        Line("calls by the crew's URL", rates["crew"], floor=rates["ping"], floor_name=ping, rate=True),
        Line("calls by the agent's URL", rates["agent"], floor=rates["ping"], floor_name=ping, rate=True),
        Line("connections more than before", grown, Target(p50_max=16), note=f"after {many or CALLS} calls"),
    ]


async def _lists(bench: Bench, face: Face, crew: tp.Crew) -> list[Line]:
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


async def _changes(bench: Bench, face: Face, crew: tp.Crew) -> list[Line]:
    """From a change to the event, and to the list that has it."""
    heard, listed = Samples(), Samples()
    agent = crew.agents[0].id
    stub = skill_service_pb2_grpc.SkillServiceStub(bench.direct.channel)
    packs = _Packs(stub, bench.caller.metadata)
    skill = await packs.publish()
    listing = face.call(f"/crews/{crew.id}/mcp", "tools/list")
    async with face.listen(f"/crews/{crew.id}/mcp") as event:
        for number in range(2 * max(bench.rounds, 3)):
            change = packs.unmount(agent) if number % 2 else packs.mount(agent, skill)
            quiet = await bench.gate.wait()
            since = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                group.create_task(change, name="change")
                await event()
                heard.add((time.perf_counter() - since) * 1000, quiet=quiet)
            await latencies(listing, 1, listed, quiet=quiet)
    return [
        Line("a change, to the event at a listener", heard, Target(p50_max=100, p99_max=100)),
        Line(f"tools/list of {SIZE} agents after a change", listed),
    ]


@dataclass(frozen=True, slots=True)
class _Packs:
    """Skill packs, as an operator handles them."""

    stub: skill_service_pb2_grpc.SkillServiceAsyncStub
    metadata: Metadata

    async def publish(self) -> str:
        """A pack with one tool; its pin."""

        async def pieces() -> AsyncIterator[sp.PublishSkillPackRequest]:
            yield sp.PublishSkillPackRequest(header=sp.SkillPackHeader(request_id=str(uuid.uuid4())))
            yield sp.PublishSkillPackRequest(chunk=_archive())

        answer = await self.stub.PublishSkillPack(pieces(), timeout=CALL_WITHIN_S, metadata=self.metadata)
        return f"{answer.pack.name}@{answer.pack.digest}"

    async def mount(self, agent: str, skill: str) -> None:
        request = sp.MountSkillPackRequest(request_id=str(uuid.uuid4()), agent=agent, skill=skill)
        await self.stub.MountSkillPack(request, timeout=CALL_WITHIN_S, metadata=self.metadata)

    async def unmount(self, agent: str) -> None:
        request = sp.UnmountSkillPackRequest(request_id=str(uuid.uuid4()), agent=agent, name=PACK)
        await self.stub.UnmountSkillPack(request, timeout=CALL_WITHIN_S, metadata=self.metadata)


def _archive() -> bytes:
    declared = json.dumps([{"name": PACK, "description": "Says hello.", "script": SCRIPT, "read_only": True}])
    text = (
        f"---\nname: {PACK}\ndescription: Says hello. For the figures.\nmetadata:\n"
        f"  hyperfactory/tools: '{declared}'\n---\n\n# Bench\n"
    )
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, data in (("SKILL.md", text.encode()), (SCRIPT, b"echo hello\n")):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


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
