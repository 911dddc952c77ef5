"""A driver that isolates nothing: instances are coroutines in this process, verified by the drivers' suite.

For tests, simulation and profiles under development. Sockets are real and wired like those of real sandboxes.
A `FakeHost` outlives the drivers that use it, as a machine outlives a factory's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from factory_server.core.errors import Exhausted, Invalid, NotFound, Unavailable
from factory_server.core.sandbox import (
    HTTP_SUFFIX,
    SOCKET_SUFFIX,
    DriverInfo,
    Enforcement,
    Exit,
    LogChunk,
    Property,
    Sandbox,
    SandboxSpec,
    Tier,
    Usage,
)
from factory_server.drivers import packs
from factory_server.drivers.exitstream import ExitHub
from factory_server.drivers.fakenet import FakeNetwork, FakeNetworks
from factory_server.drivers.namespaces import launcher, wiring
from factory_server.drivers.namespaces.records import stem

LOG_KEPT_BYTES: Final = 512 * 1024
LOG_POLL_S: Final = 0.02


@dataclass(eq=False)
class FakeInstance:
    """What an agent is given, and what the fake knows of it."""

    spec: SandboxSpec
    own_dir: str
    peers_dir: str
    workspace: str
    skills_dir: str = ""
    is_ready: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it is ready, or it has ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    frozen: bool = False
    output: bytes = b""
    output_start: int = 0
    task: asyncio.Task[int] | None = None
    end: Exit | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def ready(self) -> None:
        """To be called by the agent once `ctl.sock` is bound."""
        self.is_ready = True
        self.settled.set()

    def say(self, text: str) -> None:
        """Output of the agent, for `logs`."""
        data = self.output + text.encode()
        self.output_start += max(0, len(data) - LOG_KEPT_BYTES)
        self.output = data[-LOG_KEPT_BYTES:]


Agent = Callable[[FakeInstance], Awaitable[int]]
Weather = Callable[[str, str], Awaitable[None]]


async def silent_agent(instance: FakeInstance) -> int:
    """Two sockets that accept and say nothing, for tests that never talk to agents."""
    async with contextlib.AsyncExitStack() as stack:
        for name in ("ctl.sock", "svc.sock"):
            server = await asyncio.start_unix_server(
                lambda _, writer: writer.close(), f"{instance.own_dir}/{name}"
            )
            await stack.enter_async_context(server)
        instance.ready()
        await asyncio.Event().wait()
    return 0


@dataclass(eq=False)
class FakeHost:
    """The machine: its instances run until they end or the host is shut down."""

    agent: Agent = silent_agent
    instances: dict[str, FakeInstance] = field(default_factory=dict)
    hubs: list[ExitHub] = field(default_factory=list)
    networks: dict[str, FakeNetwork] = field(default_factory=dict)
    _tasks: asyncio.TaskGroup | None = None

    async def boot(self) -> None:
        """Be ready to run instances; harmless when it is."""
        if self._tasks is None:
            self._tasks = asyncio.TaskGroup()
            await self._tasks.__aenter__()

    async def shut_down(self) -> None:
        """Kill everything."""
        if self._tasks is None:
            return
        for instance in list(self.instances.values()):
            self.kill(instance.spec.instance)
        tasks, self._tasks = self._tasks, None
        await tasks.__aexit__(None, None, None)

    def run(self, instance: FakeInstance) -> None:
        """Start an instance's agent."""
        if self._tasks is None:
            raise Unavailable("the fake host is not running")
        name = instance.spec.instance
        self.instances[name] = instance
        instance.task = self._tasks.create_task(self._live(instance), name=f"fake-{name}")
        # Not in the coroutine itself: a task that is cancelled before its first step never runs.
        instance.task.add_done_callback(lambda task: self._finish(instance, task))

    async def _live(self, instance: FakeInstance) -> int:
        try:
            return await self.agent(instance)
        except Exception as error:
            instance.say(f"{error!r}\n")  # as an interpreter does, before it ends with 1
            return 1

    def _finish(self, instance: FakeInstance, task: asyncio.Task[int]) -> None:
        name = instance.spec.instance
        ended = Exit(name, signal=signal.SIGKILL) if task.cancelled() else Exit(name, code=task.result())
        instance.end = instance.end or ended
        for network in self.networks.values():
            network.members.pop(name, None)
        instance.ended.set()
        instance.settled.set()
        for hub in self.hubs:
            hub.push(instance.end)

    def kill(self, name: str, *, number: int = signal.SIGKILL, oom: bool = False) -> None:
        """End an instance as by a signal from outside."""
        instance = self.instances.get(name)
        if instance is not None and instance.end is None and instance.task is not None:
            instance.end = Exit(name, signal=number, oom=oom)
            instance.task.cancel()


class FakeDriver:
    """Implements `core.sandbox.Driver` on a `FakeHost`.

    `weather` is awaited before every verb with its name and the instance: it may raise or delay.
    """

    name = "fake"
    cannot_freeze = ""

    def __init__(
        self,
        state_dir: Path,
        *,
        host: FakeHost | None = None,
        weather: Weather | None = None,
        instances_max: int = 10_000,
    ) -> None:
        self.host = host or FakeHost()
        self.networks = FakeNetworks(self.host.networks, self._live, self._face_weather)
        self._where = launcher.places(state_dir)
        self._weather = weather
        self._instances_max = instances_max
        self._exits = ExitHub(self._nothing_to_renew)

    async def _nothing_to_renew(self) -> None:
        return

    async def start(self) -> None:
        """Use the host, and what runs on it."""
        await asyncio.to_thread(self._where.make)
        await self.host.boot()
        self.host.hubs.append(self._exits)

    async def close(self) -> None:
        """Leave the instances running on the host."""
        self._exits.close()
        if self._exits in self.host.hubs:
            self.host.hubs.remove(self._exits)

    async def terminate(self) -> None:
        """Kill all and remove all files."""
        await self.host.shut_down()
        self.host.instances.clear()
        self.host.networks.clear()
        await asyncio.to_thread(shutil.rmtree, self._where.sockets, ignore_errors=True)
        for name in ("work", packs.SHOWN, packs.MAKING):
            await asyncio.to_thread(shutil.rmtree, self._where.state / name, ignore_errors=True)
        await self.close()

    async def probe(self) -> DriverInfo:
        """Honest: nothing is isolated."""
        nothing = Property("isolation", Enforcement.ABSENT, "instances are coroutines of one process")
        return DriverInfo(self.name, Tier.FAKE, (nothing,))

    async def create(self, spec: SandboxSpec, *, deadline_s: float) -> Sandbox:
        """Run the agent until it is ready, or find it running."""
        if not spec.instance or "/" in spec.instance:
            raise Invalid(f"'{spec.instance}' is not a name for a sandbox")
        await self._face_weather("create", spec.instance)
        instance = self.host.instances.get(spec.instance)
        if instance is not None and instance.end is not None:
            await self.destroy(spec.instance)
            instance = None
        if instance is None:
            if len(self.host.instances) >= self._instances_max:
                raise Exhausted(
                    f"cannot create '{spec.instance}': {self._instances_max} run", quota="sandboxes"
                )
            instance = self._prepare(spec)
            self.host.run(instance)
        await self._wait_ready(instance, deadline_s)
        return self._sandbox(instance)

    def _prepare(self, spec: SandboxSpec) -> FakeInstance:
        own, peers, work = self._directories(spec.instance)
        for directory in (own, peers, work):
            directory.mkdir(parents=True, exist_ok=True)
        skills = packs.make_tree(self._where.state, stem(spec.instance))
        return FakeInstance(spec, str(own), str(peers), str(work), str(skills))

    def _directories(self, instance: str) -> tuple[Path, Path, Path]:
        name = stem(instance)
        sockets = self._where.sockets
        return sockets / "own" / name, sockets / "peers" / name, self._where.state / "work" / name

    async def _wait_ready(self, instance: FakeInstance, deadline_s: float) -> None:
        name = instance.spec.instance
        try:
            async with asyncio.timeout(deadline_s):
                await instance.settled.wait()
        except TimeoutError:
            raise Unavailable(f"cannot create '{name}': not ready within {deadline_s:g} s") from None
        if instance.end is not None:
            raise Unavailable(f"cannot create '{name}': it ended before it was ready")
        control = self._where.sockets / "ctl" / f"{stem(name)}.sock"
        own = Path(instance.own_dir) / "ctl.sock"
        if not control.exists():
            wiring.adopt(own, control, mode=0o600)
            wiring.close_door(own)

    def _sandbox(self, instance: FakeInstance) -> Sandbox:
        spec = instance.spec
        control = self._where.sockets / "ctl" / f"{stem(spec.instance)}.sock"
        return Sandbox(spec.instance, self.name, f"unix://{control}", labels=dict(spec.labels))

    async def list(self) -> Sequence[Sandbox]:
        """Every instance that runs."""
        await self._face_weather("list", "")
        alive = [item for item in self.host.instances.values() if item.end is None and item.is_ready]
        return [self._sandbox(instance) for instance in alive]

    async def publish(self, instance: str) -> str:
        """Link the sockets that it serves."""
        await self._face_weather("publish", instance)
        own = Path(self._live(instance).own_dir)
        target = self._where.sockets / "svc" / f"{stem(instance)}{SOCKET_SUFFIX}"
        try:
            wiring.publish(own, target, target.with_name(f"{stem(instance)}{HTTP_SUFFIX}"))
        except OSError as error:
            raise Unavailable(f"cannot publish '{instance}': {error}") from error
        return f"unix://{target}"

    async def wire(self, instance: str, links: Mapping[str, str]) -> None:
        """Link exactly these."""
        await self._face_weather("wire", instance)
        if any("/" in name or name.startswith(".") for name in links):
            raise Invalid(f"cannot wire '{instance}': not a link name")
        missing = wiring.wire(Path(self._live(instance).peers_dir), links)
        if missing:
            raise NotFound(f"cannot wire '{instance}': no socket for {', '.join(missing)}")

    async def mount(self, instance: str, name: str, path: str) -> None:
        """Show a skill pack, to whoever looks at `skills_dir`."""
        await self._face_weather("mount", instance)
        self._live(instance)
        await asyncio.to_thread(packs.mount, self._where.state, stem(instance), name, path)

    async def unmount(self, instance: str, name: str) -> None:
        """Show it no more."""
        await self._face_weather("unmount", instance)
        self._live(instance)
        await asyncio.to_thread(packs.unmount, self._where.state, stem(instance), name)

    async def mounts(self, instance: str) -> Sequence[str]:
        """The skill packs that are shown."""
        await self._face_weather("mounts", instance)
        self._live(instance)
        return packs.mounted(self._where.state, stem(instance))

    async def freeze(self, instance: str) -> None:
        """Note it; a coroutine cannot be stopped from outside."""
        await self._face_weather("freeze", instance)
        self._live(instance).frozen = True

    async def thaw(self, instance: str) -> None:
        """Note it."""
        await self._face_weather("thaw", instance)
        self._live(instance).frozen = False

    async def destroy(self, instance: str) -> None:
        """Cancel the agent and remove its files."""
        await self._face_weather("destroy", instance)
        found = self.host.instances.get(instance)
        if found is not None:
            self.host.kill(instance)
            await found.ended.wait()
            self.host.instances.pop(instance, None)
        await asyncio.to_thread(self._remove_files, instance)

    def _remove_files(self, instance: str) -> None:
        for directory in self._directories(instance):
            shutil.rmtree(directory, ignore_errors=True)
        packs.remove(self._where.state, stem(instance))
        for part, suffix in (("ctl", SOCKET_SUFFIX), ("svc", SOCKET_SUFFIX), ("svc", HTTP_SUFFIX)):
            (self._where.sockets / part / f"{stem(instance)}{suffix}").unlink(missing_ok=True)

    def exits(self) -> AsyncIterator[Exit]:
        """Instances that ended, from now on."""
        return self._exits.stream()

    async def stats(self, instance: str) -> Usage:
        """Nothing can be told apart in one process."""
        self._live(instance)
        return Usage()

    async def logs(self, instance: str, *, tail_bytes: int, follow: bool) -> AsyncIterator[LogChunk]:
        """What the agent said."""
        found = self.host.instances.get(instance)
        if found is None:
            return
        position = max(found.output_start, found.output_start + len(found.output) - tail_bytes)
        while True:
            ended = found.end is not None
            position = max(position, found.output_start)
            data = found.output[position - found.output_start :]
            if data:
                yield LogChunk(data, position)
                position += len(data)
            if not follow or ended:
                return
            await asyncio.sleep(LOG_POLL_S)

    def _live(self, instance: str) -> FakeInstance:
        found = self.host.instances.get(instance)
        if found is None or found.end is not None:
            raise NotFound(f"no sandbox '{instance}'", resource_type="sandbox", resource_name=instance)
        return found

    async def _face_weather(self, verb: str, instance: str) -> None:
        if self._weather is not None:
            await self._weather(verb, instance)
