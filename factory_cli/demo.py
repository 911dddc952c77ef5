"""Show the whole product in half a minute: a crew, a mission, a death, a healing, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from embedded.paths import UnsafeDirectoryError
from embedded.stack import AlreadyServedError, Stack
from embedded.supervisor import CannotStartError
from factory_cli import assembling, crews, leaks, manifest, tasks
from factory_cli.client import ASSEMBLE_WITHIN_S, CALL_WITHIN_S, DISBAND_WITHIN_S, Client, connect
from factory_cli.failures import CommandFailedError, Exit
from factory_cli.narrate import Narrator
from factory_cli.output import Output, enum_name
from factory_cli.requests import duration, new_id
from factory_cli.watching import Watch, events_of
from hyperfactory.v1 import crew_service_pb2, types_pb2

DEMO_WITHIN_S = 180.0
SIGNAL_WITHIN_S = 10.0
TASK_WITHIN_S = 60.0
HEAL_WITHIN_S = 20.0
MISSION = {"mission": "count primes", "numbers": 20_000}
PRIMES = 2_262
"""Below 20,000: what the mission must find."""
SECOND_TASK = {"mission": "prove that the healed coder works", "start": 0, "stop": 1_000}
SECOND_PRIMES = 168
VICTIM = "coder-1"
LABEL = "made-by"
MANIFEST = Path(__file__).parent.parent / "examples" / "crews" / "hello.json"


def main(home: Path, out: Output, driver: str = "auto") -> Exit:
    """Run the demo; whatever fails is an error with a sentence."""
    demo = Demo(home, out, driver)
    try:
        asyncio.run(_bounded(demo))
    except (AlreadyServedError, CannotStartError, UnsafeDirectoryError) as error:
        raise CommandFailedError(str(error)) from error
    except TimeoutError as error:
        raise CommandFailedError(f"the demo hung in step '{demo.step}'; see {home}/logs") from error
    demo.show_timings()
    return Exit.OK


async def _bounded(demo: Demo) -> None:
    async with asyncio.timeout(DEMO_WITHIN_S):
        await demo.run()


class Demo:
    """One run, step by step."""

    def __init__(self, home: Path, out: Output, driver: str) -> None:
        self.step = ""
        self._home = home
        self._driver = driver
        self._out = out
        self._timings: list[tuple[str, float]] = []
        self._facts: dict[str, Any] = {}
        self._ready: dict[tuple[str, int], asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self) -> None:
        """Start the stack, play, stop the stack, and look whether anything is left."""
        stack = Stack(self._home, say=lambda line: self._out.text(f"  {line}"), driver=self._driver)
        async with self._timed("start the stack"):
            await stack.__aenter__()
        try:
            async with connect(stack.client_file) as client:
                await self._play(client)
        finally:
            async with self._timed("stop the stack"):
                await stack.__aexit__(None, None, None)
        self._demand_nothing_left(await leaks.settle(self._home), "after the stack stopped")

    async def _play(self, client: Client) -> None:
        await self._tidy(client)
        crew = await self._assemble(client)
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._watch(client, crew.id), name="demo-watch")
            await self._signal(client, crew)
            await self._mission(client, crew)
            await self._kill_and_heal(client, crew)
            await self._disband(client, crew)
            watcher.cancel()
        async with self._timed("count leaks"):
            counts = await leaks.settle(self._home)
        leaks.show(self._out, counts)
        self._demand_nothing_left(counts, "after the crew was disbanded")

    async def _tidy(self, client: Client) -> None:
        """Take away what an interrupted demo left: its crews come back with their stack."""
        request = crew_service_pb2.ListCrewsRequest(filter=f"label.{LABEL}=demo")
        for crew in (await client.crews.ListCrews(request, timeout=CALL_WITHIN_S)).crews:
            await self._disband(client, crew)

    async def _assemble(self, client: Client) -> types_pb2.Crew:
        wish = manifest.parse(manifest.read_text(str(MANIFEST)))
        wish.labels[LABEL] = "demo"
        request = crew_service_pb2.AssembleCrewRequest(request_id=new_id(), manifest=wish)
        async with self._timed("assemble the crew"):
            answer = await client.crews.AssembleCrew(request, timeout=ASSEMBLE_WITHIN_S)
        crews.show(self._quiet(), answer.crew)
        assembling.show_report(self._out, answer.report)
        return answer.crew

    async def _watch(self, client: Client, crew: str) -> None:
        """Tell every event, and note which agent became READY in which generation."""
        narrator = Narrator()
        async for response in events_of(client, Watch(crew)):
            for event in response.events:
                self._out.text(f"  {narrator.tell(event)}")
                step = event.agent_step
                if event.WhichOneof("payload") == "agent_step" and step.to == types_pb2.AGENT_STATE_READY:
                    self._ready[event.agent, step.generation].set()

    async def _signal(self, client: Client, crew: types_pb2.Crew) -> None:
        request = crew_service_pb2.BroadcastRequest(
            request_id=new_id(), crew=crew.id, signal="MISSION_START", ttl=duration(SIGNAL_WITHIN_S)
        )
        ParseDict(MISSION, request.payload)
        async with self._timed("broadcast MISSION_START"):
            within_s = SIGNAL_WITHIN_S + crews.BROADCAST_MARGIN_S
            summary = await crews.follow_receipts(client, self._quiet(), request, within_s=within_s)
        if any(enum_name(count, "stage") != "ACKED" and count.count for count in summary.stages):
            raise CommandFailedError("not every agent took MISSION_START")

    async def _mission(self, client: Client, crew: types_pb2.Crew) -> None:
        async with self._timed("run the mission"):
            output = await self._task(client, crew, "planner", MISSION)
        self._facts["mission"] = output
        found, approved, parts = output.get("primes"), output.get("approved"), output.get("parts", [])
        by = " + ".join(f"{part['count']:.0f} by {part['coder']}" for part in parts)
        self._out.text(
            f"{found:.0f} primes below {MISSION['numbers']} ({by}); approved by the reviewer: {approved}"
        )
        if found != PRIMES or approved is not True:
            raise CommandFailedError(f"the mission's result is wrong: {output}")

    async def _kill_and_heal(self, client: Client, crew: types_pb2.Crew) -> None:
        before = await client.member(crew.id, VICTIM)
        if not before.instance.host_pid:
            raise CommandFailedError(f"cannot kill {VICTIM}: its driver does not tell its process")
        self._out.text(f"killing {VICTIM} (pid {before.instance.host_pid}, generation {before.generation}) …")
        async with self._timed(f"heal {VICTIM} after SIGKILL"):
            os.kill(before.instance.host_pid, signal.SIGKILL)
            async with asyncio.timeout(HEAL_WITHIN_S):
                await self._ready[before.id, before.generation + 1].wait()
        after = await client.agent(before.id)
        if (after.name, after.generation) != (before.name, before.generation + 1):
            raise CommandFailedError(f"{VICTIM} came back as {after.name} generation {after.generation}")
        self._out.text(f"{VICTIM} is READY again: same id {after.id}, generation {after.generation}")
        async with self._timed(f"run a task on {VICTIM}"):
            output = await self._task(client, crew, VICTIM, SECOND_TASK)
        self._out.text(f"{VICTIM} found {output.get('count'):.0f} primes below {SECOND_TASK['stop']}")
        if output.get("count") != SECOND_PRIMES:
            raise CommandFailedError(f"the second task's result is wrong: {output}")

    async def _task(self, client: Client, crew: types_pb2.Crew, agent: str, body: dict[str, Any]) -> Any:
        request = crew_service_pb2.RunTaskRequest(
            request_id=new_id(), crew=crew.id, agent=agent, timeout=duration(TASK_WITHIN_S)
        )
        ParseDict(body, request.input)
        within_s = TASK_WITHIN_S + tasks.TASK_MARGIN_S
        result = await tasks.follow(client, self._quiet(), request, within_s=within_s)
        if result.status.code:
            raise CommandFailedError(f"the task of {agent} failed: {result.status.message}")
        return MessageToDict(result.output)

    async def _disband(self, client: Client, crew: types_pb2.Crew) -> None:
        request = crew_service_pb2.DisbandCrewRequest(request_id=new_id(), crew=crew.id)
        async with self._timed("disband the crew"):
            answer = await client.crews.DisbandCrew(request, timeout=DISBAND_WITHIN_S)
        if answer.crew.state != types_pb2.CREW_STATE_DISBANDED:
            raise CommandFailedError(f"the crew is {enum_name(answer.crew, 'state')}, not DISBANDED")

    def _demand_nothing_left(self, counts: list[leaks.Count], moment: str) -> None:
        self._facts["leaks"] = leaks.total(counts)
        if leaks.total(counts):
            leaks.show(self._out, counts)
            raise CommandFailedError(f"{leaks.total(counts)} things are left {moment}")

    def _quiet(self) -> Output:
        """With --json, the steps' own documents would spoil the one document."""
        return self._out if not self._out.as_json else Output(as_json=False, stdout=io.StringIO())

    @asynccontextmanager
    async def _timed(self, step: str) -> AsyncIterator[None]:
        self.step = step
        self._out.text(f"== {step}")
        loop = asyncio.get_running_loop()
        since = loop.time()
        yield
        self._timings.append((step, (loop.time() - since) * 1000))

    def show_timings(self) -> None:
        """Print how long each step took."""
        if self._out.as_json:
            steps = [{"step": step, "milliseconds": round(ms, 1)} for step, ms in self._timings]
            self._out.document({"steps": steps, **self._facts})
            return
        self._out.text()
        self._out.table(("STEP", "MILLISECONDS"), [(step, f"{ms:10.1f}") for step, ms in self._timings])
        self._out.text(
            f"all done in {sum(ms for _, ms in self._timings) / 1000:.1f} s; nothing is left behind"
        )
