"""The `namespaces` driver: the factory's hand on its fork server and on the sandboxes' files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from factory_server.core.errors import Exhausted, Invalid, NotFound, Unavailable
from factory_server.core.sandbox import DriverInfo, Exit, Limits, LogChunk, Sandbox, SandboxSpec, Tier, Usage
from factory_server.drivers import bases
from factory_server.drivers.exitstream import ExitHub
from factory_server.drivers.locks import Locks
from factory_server.drivers.namespaces import findings, launcher, logs, probe, processes, protocol
from factory_server.drivers.namespaces.cgroups import Cgroups, Group
from factory_server.drivers.namespaces.client import RejectedError
from factory_server.drivers.namespaces.files import Files
from factory_server.drivers.namespaces.link import ForkLink
from factory_server.drivers.namespaces.protocol import Message
from factory_server.drivers.namespaces.records import stem
from factory_server.drivers.unconnected import NoNetworks

CALL_MAX_S: Final = 10.0
DESTROY_MAX_S: Final = 10.0
PROBE_MAX_S: Final = 10.0
FREEZE_MAX_S: Final = 2.0
FREEZE_POLL_S: Final = 0.001
LOG_POLL_S: Final = 0.1  # only while somebody follows
FILE_THREADS: Final = 2
ENTRY: Final = "agent_runtime.boot:run"
PACKAGES: Final = ("agent_runtime", "wire", "hyperfactory", "buf")
_INSTANCE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_LINK: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

T = TypeVar("T")


class NamespacesDriver:
    """Implements `core.sandbox.Driver` with Linux namespaces on this host."""

    name = "namespaces"
    cannot_freeze = ""

    def __init__(
        self,
        state_dir: Path,
        *,
        factory: str,
        entry: str = ENTRY,
        packages: Iterable[str] = PACKAGES,
        leash_s: float = 0.0,
        rootless: bool | None = None,
        bases_dir: Path | None = None,
    ) -> None:
        self.networks = NoNetworks(self.name)
        where = launcher.places(state_dir)
        self._bases = bases_dir or where.state / "bases"
        wish = launcher.Wish(where, factory, entry, tuple(packages), leash_s, self._bases)
        self._files = Files(where)
        self._threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="sandbox-files")
        self._locks = Locks()
        self._known: dict[str, Message] = {}
        self._cgroups = Cgroups((), factory)
        self._exits = ExitHub(self._renew)
        self._link = ForkLink(
            wish,
            self._threads,
            on_event=self._on_event,
            on_lost=lambda: self._exits.push(None),
            on_alive=self._on_alive,
            rootless=rootless,
        )

    # Life of the driver

    async def start(self) -> None:
        """Find or start the fork server, and wipe what no sandbox owns any more."""
        await self._in_thread(self._files.where.make)
        await self._in_thread(lambda: self._bases.mkdir(exist_ok=True))
        # Looked at before the list is read: a replica may be making more, and its list has them already.
        present = await self._in_thread(self._files.present)
        items = (await self._ask("list", CALL_MAX_S))["items"]
        for item in items:
            if item["ended"]:
                await self.destroy(item["instance"])
        known = {item["instance"] for item in items if not item["ended"]}
        await self._in_thread(self._files.sweep, known, present)

    async def close(self) -> None:
        """Hang up; the fork server and its sandboxes live on."""
        self._exits.close()
        self._link.close()
        self._threads.shutdown(wait=False)

    async def terminate(self) -> None:
        """Destroy every sandbox, end the fork server and remove all files; for a clean stop."""
        client = await self._link.client()
        with contextlib.suppress(Unavailable):  # it may be gone before its answer is read
            await client.request("stop", deadline_s=CALL_MAX_S, kill=True)
        async with asyncio.timeout(DESTROY_MAX_S):
            await client.lost.wait()
        await self._in_thread(self._files.remove_everything)
        with contextlib.suppress(OSError):  # the operator's, unless nothing was ever put there
            await self._in_thread(self._bases.rmdir)
        await self.close()

    def _on_alive(self, alive: Mapping[str, Message]) -> None:
        """After a gap nobody saw the exits: whoever was there and is not any more has ended."""
        for instance in self._known.keys() - alive.keys():
            self._exits.push(Exit(instance))
        self._known = dict(alive)

    def _on_event(self, message: Message) -> None:
        instance = message["instance"]
        if message["event"] == "born":
            self._known[instance] = message
            return
        self._known.pop(instance, None)
        self._exits.push(Exit(instance, message["code"], message["signal"], message["oom"]))

    async def _renew(self) -> None:
        await self._link.client()

    async def _ask(self, op: str, deadline_s: float, **body: object) -> Message:
        client = await self._link.client()
        return await client.request(op, deadline_s=deadline_s, **body)

    async def _in_thread(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action, *arguments)

    # Verbs

    async def probe(self) -> DriverInfo:
        """Run a sandbox that tries to get out, and report what held."""
        instance = f"probe-{secrets.token_hex(4)}"
        limits = Limits(pids_max=probe.PIDS_MAX, workspace_bytes=probe.WORKSPACE_BYTES)
        wish = {**_wish(SandboxSpec(instance, limits=limits)), "probe": True}
        try:
            answer = await self._ask("create", PROBE_MAX_S, wish=wish)
        except RejectedError as error:
            raise Unavailable(f"cannot probe: {error}") from error
        finally:
            await self.destroy(instance)
        tier = Tier.ROOTLESS if self._link.rootless else Tier.FULL
        report = json.loads(answer["report"])
        found = findings.properties(tier, report, answer["missing"], answer["groups"])
        return DriverInfo(self.name, tier, (*found, self.networks.finding))

    async def create(self, spec: SandboxSpec, *, deadline_s: float) -> Sandbox:
        """Fork the instance, or find it; its control socket answers."""
        wish = _wish(spec)
        if not await self.has_base(spec.base):
            raise bases.missing(spec.instance, spec.base, self._bases)
        if spec.base != bases.PLAIN:
            wish["base"] = spec.base
        try:
            answer = await self._create(wish, deadline_s)
        except RejectedError as error:
            if error.kind == protocol.EXHAUSTED:
                raise Exhausted(f"cannot create '{spec.instance}': {error}", quota="sandboxes") from error
            raise Unavailable(f"cannot create '{spec.instance}': {error}") from error
        self._known[spec.instance] = answer
        return self._sandbox(answer)

    async def has_base(self, base: str) -> bool:
        """Whether sandboxes can be made of it."""
        return base == bases.PLAIN or await self._in_thread(bases.find, self._bases, base) is not None

    async def _create(self, wish: Message, deadline_s: float) -> Message:
        try:
            return await self._ask("create", deadline_s, wish=wish)
        except RejectedError as error:
            if error.kind != protocol.EXITED:
                raise
        await self.destroy(wish["instance"])  # what an earlier life of this name left
        return await self._ask("create", deadline_s, wish=wish)

    def _sandbox(self, item: Message) -> Sandbox:
        name, control = item["instance"], f"unix://{self._files.control(item['instance'])}"
        return Sandbox(name, self.name, control, host_pid=item["pid"], labels=item["labels"])

    async def list(self) -> Sequence[Sandbox]:
        """Every instance that serves."""
        items = (await self._ask("list", CALL_MAX_S))["items"]
        return [self._sandbox(item) for item in items if item["ready"] and not item["ended"]]

    async def publish(self, instance: str) -> str:
        """Take the service socket over, and its directory away from the agent."""
        self._live(instance)
        async with self._locks.alone(instance):
            return await self._in_thread(self._files.publish, instance, not self._link.rootless)

    async def wire(self, instance: str, links: Mapping[str, str]) -> None:
        """Show exactly these sockets to the instance."""
        for name in links:
            if not _LINK.fullmatch(name):
                raise Invalid(f"cannot wire '{instance}': '{name}' is not a link name")
        self._live(instance)
        async with self._locks.alone(instance):
            missing = await self._in_thread(self._files.wire, instance, dict(links))
        if missing:
            raise NotFound(f"cannot wire '{instance}': no socket for {', '.join(missing)}")

    async def mount(self, instance: str, name: str, path: str) -> None:
        """Show a skill pack."""
        self._live(instance)
        async with self._locks.alone(instance):
            await self._in_thread(self._files.mount, instance, name, path)

    async def unmount(self, instance: str, name: str) -> None:
        """Show it no more."""
        self._live(instance)
        async with self._locks.alone(instance):
            await self._in_thread(self._files.unmount, instance, name)

    async def mounts(self, instance: str) -> Sequence[str]:
        """The skill packs that are shown."""
        self._live(instance)
        return await self._in_thread(self._files.mounts, instance)

    async def freeze(self, instance: str) -> None:
        """Stop every process of the instance."""
        await self._set_frozen(instance, frozen=True)

    async def thaw(self, instance: str) -> None:
        """Let them run again."""
        await self._set_frozen(instance, frozen=False)

    async def _set_frozen(self, instance: str, *, frozen: bool) -> None:
        item = self._live(instance)
        groups = _groups(item)
        try:
            if not self._cgroups.freeze(groups, frozen=frozen):
                await self._in_thread(processes.stop if frozen else processes.resume, item["pid"])
                return
            async with asyncio.timeout(FREEZE_MAX_S):
                while self._cgroups.is_frozen(groups) != frozen:  # noqa: ASYNC110 - the kernel sends no event
                    await asyncio.sleep(FREEZE_POLL_S)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"cannot {'freeze' if frozen else 'thaw'} '{instance}': {error!r}") from error

    async def destroy(self, instance: str) -> None:
        """Kill, reap and wipe."""
        async with self._locks.alone(instance):
            try:
                await self._ask("destroy", DESTROY_MAX_S, instance=instance)
            except RejectedError as error:
                raise Unavailable(f"cannot destroy '{instance}': {error}") from error
            self._known.pop(instance, None)
            await self._in_thread(self._files.remove, instance)

    def exits(self) -> AsyncIterator[Exit]:
        """Instances that ended, from now on; reading it also revives a dead fork server."""
        return self._exits.stream()

    async def stats(self, instance: str) -> Usage:
        """Read the groups, or the processes where there are no groups."""
        item = self._live(instance)
        groups = _groups(item)
        try:
            if "memory" in item["missing"]:
                return Usage(*await self._in_thread(processes.usage, item["pid"]))
            return Usage(*await self._in_thread(self._cgroups.usage, groups))
        except OSError as error:
            raise Unavailable(f"cannot read what '{instance}' uses: {error}") from error

    async def logs(self, instance: str, *, tail_bytes: int, follow: bool) -> AsyncIterator[LogChunk]:
        """The newest output, then what is added while the instance lives."""
        directory = self._files.where.state / "logs" / stem(instance)
        position, data = await self._in_thread(logs.tail, directory, tail_bytes)
        while True:
            if data:
                yield LogChunk(data, position)
            position += len(data)
            alive = instance in self._known
            if not follow or (not alive and not data):
                return
            if alive:
                await asyncio.sleep(LOG_POLL_S)
            position, data = await self._in_thread(logs.since, directory, position)

    def _live(self, instance: str) -> Message:
        item = self._known.get(instance)
        if item is None:
            raise NotFound(f"no sandbox '{instance}'", resource_type="sandbox", resource_name=instance)
        return item


def _wish(spec: SandboxSpec) -> Message:
    if not _INSTANCE.fullmatch(spec.instance):
        raise Invalid(f"'{spec.instance}' is not a name for a sandbox")
    if len(json.dumps(dict(spec.labels))) > protocol.LABELS_MAX_BYTES:
        raise Invalid(f"the labels of '{spec.instance}' are longer than {protocol.LABELS_MAX_BYTES} bytes")
    wanted, default = spec.limits, Limits()
    return {
        "instance": spec.instance,
        "labels": dict(spec.labels),
        "memory_bytes": wanted.memory_bytes or default.memory_bytes,
        "pids_max": wanted.pids_max or default.pids_max,
        "cpu_millis": wanted.cpu_millis or default.cpu_millis,
        "workspace_bytes": wanted.workspace_bytes or default.workspace_bytes,
    }


def _groups(item: Message) -> Sequence[Group]:
    return [Group(version, frozenset(controllers), path) for version, controllers, path in item["groups"]]
