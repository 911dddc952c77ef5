"""The `docker` driver: sandboxes as hardened containers that are reached by sockets alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from factory_server.core.errors import FactoryError, Invalid, NotFound, Unavailable
from factory_server.core.sandbox import DriverInfo, Exit, Limits, LogChunk, Sandbox, SandboxSpec, Tier, Usage
from factory_server.drivers import CREW_NETWORKS, bases
from factory_server.drivers.docker import containers, directories, findings, hardening, output, sealing
from factory_server.drivers.docker.arrivals import Arrivals
from factory_server.drivers.docker.births import Birth
from factory_server.drivers.docker.containers import Found
from factory_server.drivers.docker.engine import DEFAULT_IMAGE, ConflictError, Engine, Lane, default_url
from factory_server.drivers.docker.host import NAME, Host, factory_id
from factory_server.drivers.docker.keeping import Keeper
from factory_server.drivers.docker.making import Maker, Recipe
from factory_server.drivers.docker.networks import DockerNetworks
from factory_server.drivers.docker.roster import Living, Roster
from factory_server.drivers.docker.watch import Watch
from factory_server.drivers.exitstream import ExitHub
from factory_server.drivers.locks import Locks
from factory_server.drivers.namespaces import launcher, probe
from factory_server.drivers.namespaces.cgroups import Cgroups
from factory_server.drivers.namespaces.files import Files
from factory_server.drivers.namespaces.records import stem

log = logging.getLogger("factory.docker")

IMAGES: Final = DEFAULT_IMAGE.partition(":")[0]
START_MAX_S: Final = 5.0
LATE_LOOKS_S: Final = (1.0, 2.0)
PROBE_MAX_S: Final = 20.0
_INSTANCE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_LINK: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class DockerDriver:
    """Implements `core.sandbox.Driver` with a Docker engine on this host."""

    name = NAME
    cannot_freeze = ""

    def __init__(
        self,
        state_dir: Path,
        *,
        factory: str,
        engine: str = "",
        images: str = IMAGES,
        entry: str = "",
        packages: Iterable[str] = (),
        runtime: str = "",
        bases_dir: Path | None = None,
        addresses: str = CREW_NETWORKS,
    ) -> None:
        self._exits = ExitHub(self._nothing_to_renew)
        self._host = Host(
            factory_id(factory, state_dir),
            Engine(engine or default_url()),
            Files(launcher.places(state_dir)),
            Roster(self._exits),
        )
        command = hardening.entry_command(entry) if entry else []
        self._recipe = Recipe(
            images, command, tuple(packages), runtime, bases_dir or state_dir.resolve() / "bases"
        )
        self._keeper = Keeper(self._host)
        self.networks = DockerNetworks(self._host, self._find, pool=addresses)
        self._locks = Locks()
        self._opened: tuple[Maker, Arrivals, asyncio.Task[None]] | None = None
        self._tasks = asyncio.TaskGroup()
        self._learning = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None
        self._fencing: asyncio.Task[None] | None = None
        self._tenancy: directories.Tenancy | None = None

    # Life of the driver

    async def start(self) -> None:
        """Meet the engine, adopt what lives, and wipe what does not."""
        host = self._host
        await host.in_thread(host.files.where.make)
        await host.in_thread(self.networks.open)
        host.info = await host.engine.open()
        arrivals = Arrivals()
        arrivals.watch(host.files.where.sockets / "ctl", self._on_control)
        watch = Watch(
            host.engine.socket, host.factory, on_event=self._keeper.on_event, on_gap=self._keeper.reconcile
        )
        await self._tasks.__aenter__()
        watching = self._tasks.create_task(watch.run(), name="docker-events")
        self._opened = Maker(host, self._keeper, arrivals, self._recipe), arrivals, watching
        try:
            async with asyncio.timeout(START_MAX_S):
                await watch.connected.wait()  # before the first look, so that no end falls between them
        except TimeoutError:
            raise Unavailable("the engine gives no events") from None
        self._fencing = self._tasks.create_task(self.networks.watch(), name="docker-fence")
        tenancy = self._tenancy = await host.in_thread(directories.Tenancy, host.files)
        alone = await host.in_thread(tenancy.alone)
        async with self._learning:  # what we wipe here, nobody may be adopting
            found = await self._keeper.reconcile()
            if alone:  # or else what looks half-made may be another process's, which still makes it
                await self._sweep(found)
        if alone:
            self._sweeping = self._tasks.create_task(self._sweep_late(tenancy), name="docker-sweep")
        await host.in_thread(tenancy.share)

    async def _sweep(self, found: Sequence[Found]) -> None:
        host = self._host
        async with asyncio.TaskGroup() as group:
            for one in found:
                if one.instance not in host.roster:
                    group.create_task(self.destroy(one.instance))
        await host.in_thread(host.files.sweep, {stem(living.sandbox.instance) for living in host.roster})

    async def _sweep_late(self, tenancy: directories.Tenancy) -> None:
        """What the engine was still making for our predecessor when we first looked."""
        for pause_s in LATE_LOOKS_S:
            await asyncio.sleep(pause_s)
            try:
                if await self._host.in_thread(tenancy.alone):
                    for instance in self._keeper.strays(await self._keeper.reconcile(), age_s=0.0):
                        await self.destroy(instance)
            except FactoryError as error:
                log.warning("cannot sweep", extra={"action": "docker.sweep", "error": str(error)})
            finally:
                await self._host.in_thread(tenancy.share)

    def _on_control(self, name: str) -> None:
        """Replicas of a factory share the directories: each may be given what another made, and must know it."""
        if name.startswith(".") or self._is_known(name) or self._opened is None:
            return
        self._tasks.create_task(self._learn(name), name=f"docker-learn-{name}")

    def _is_known(self, name: str) -> bool:
        instances = [*(living.sandbox.instance for living in self._host.roster), *self._host.births]
        return name.removesuffix(".sock") in map(stem, instances)

    async def _learn(self, name: str) -> None:
        async with self._learning:
            try:
                if not self._is_known(name):
                    await self._keeper.reconcile()
            except FactoryError as error:
                log.warning(
                    "a sandbox of another process is not known yet",
                    extra={"action": "docker.learn", "error": str(error)},
                )

    async def _nothing_to_renew(self) -> None:
        return

    async def close(self) -> None:
        """Let go; containers live on."""
        self._exits.close()
        if self._opened is not None:
            _, arrivals, watching = self._opened
            self._opened = None
            watching.cancel()
            for task in (self._sweeping, self._fencing):
                if task is not None:
                    task.cancel()
            await self._tasks.__aexit__(None, None, None)
            arrivals.close()
        if self._tenancy is not None:
            self._tenancy.end()
            self._tenancy = None
        self.networks.close()
        self._host.roster.clear()
        self._host.engine.close()
        self._host.threads.shutdown(wait=False)

    async def terminate(self) -> None:
        """Destroy every container of this factory and remove all files; for a clean stop."""
        async with asyncio.TaskGroup() as group:
            for one in await self._keeper.found():
                group.create_task(self.destroy(one.instance))
        await self.networks.remove_all()
        await self._host.in_thread(directories.remove_everything, self._host.files)
        await self.close()

    @property
    def _maker(self) -> Maker:
        if self._opened is None:
            raise Unavailable("this driver is not open")
        return self._opened[0]

    # Verbs

    async def probe(self) -> DriverInfo:
        """Run a container that tries to get out, and report what held."""
        instance = f"probe-{secrets.token_hex(4)}"
        command = ["python", "-c", "import hf_probe; print(hf_probe.report())"]
        limits = Limits(pids_max=probe.PIDS_MAX, workspace_bytes=probe.WORKSPACE_BYTES)
        name = self._host.container(instance)
        self._host.births[instance] = Birth(instance)  # so that nobody takes it for half-made
        try:
            spec = SandboxSpec(instance, limits=limits)
            body = await self._maker.body(spec, command, {"hf_probe.py": str(probe.__file__)})
            text = await self._host.engine.call(
                Lane.CREATE,
                lambda c: containers.run(c, name, body, PROBE_MAX_S, started=sealing.seal),
                what="probe",
            )
            report = json.loads(text)
        except (ConflictError, ValueError) as error:
            raise Unavailable(f"cannot probe: {error}") from error
        finally:
            await self._maker.wipe(instance)
            del self._host.births[instance]
        found = findings.properties(self._host.info, report, owns_files=os.geteuid() == 0)
        return DriverInfo(self.name, Tier.FULL, (*found, await self.networks.try_out()))

    async def create(self, spec: SandboxSpec, *, deadline_s: float) -> Sandbox:
        """Start a container and wait for its control socket, or find it."""
        if not _INSTANCE.fullmatch(spec.instance):
            raise Invalid(f"'{spec.instance}' is not a name for a sandbox")
        try:
            async with asyncio.timeout(deadline_s), self._locks.alone(spec.instance):
                living = self._host.roster.get(spec.instance)
                return living.sandbox if living is not None else await self._maker.create(spec)
        except TimeoutError:
            raise Unavailable(f"cannot create '{spec.instance}': not ready within {deadline_s:g} s") from None

    async def list(self) -> Sequence[Sandbox]:
        """Every instance that serves; half-made rests of another life are swept meanwhile."""
        found = await self._keeper.reconcile()
        for instance in self._keeper.strays(found):
            self._tasks.create_task(self._discard(instance), name=f"docker-stray-{instance}")
        return [living.sandbox for living in self._host.roster]

    async def _discard(self, instance: str) -> None:
        try:
            await self.destroy(instance)
        except FactoryError as error:
            log.warning("cannot sweep '%s'", instance, extra={"action": "docker.sweep", "error": str(error)})

    async def publish(self, instance: str) -> str:
        """Take the service socket over, and its directory away from the agent; no call to the engine."""
        await self._find(instance)
        async with self._locks.alone(instance):
            seal = os.geteuid() == 0
            return await self._host.in_thread(self._host.files.publish, instance, seal)

    async def wire(self, instance: str, links: Mapping[str, str]) -> None:
        """Show exactly these sockets to the instance; no call to the engine."""
        for name in links:
            if not _LINK.fullmatch(name):
                raise Invalid(f"cannot wire '{instance}': '{name}' is not a link name")
        await self._find(instance)
        async with self._locks.alone(instance):
            missing = await self._host.in_thread(self._host.files.wire, instance, dict(links))
        if missing:
            raise NotFound(f"cannot wire '{instance}': no socket for {', '.join(missing)}")

    async def mount(self, instance: str, name: str, path: str) -> None:
        """Show a skill pack; no call to the engine."""
        await self._find(instance)
        async with self._locks.alone(instance):
            await self._host.in_thread(self._host.files.mount, instance, name, path)

    async def unmount(self, instance: str, name: str) -> None:
        """Show it no more; no call to the engine."""
        await self._find(instance)
        async with self._locks.alone(instance):
            await self._host.in_thread(self._host.files.unmount, instance, name)

    async def mounts(self, instance: str) -> Sequence[str]:
        """The skill packs that are shown."""
        await self._find(instance)
        return await self._host.in_thread(self._host.files.mounts, instance)

    async def freeze(self, instance: str) -> None:
        """Stop every process of the instance."""
        container = (await self._find(instance)).sandbox.container_id
        await self._host.engine.call(
            Lane.CHANGE, lambda c: containers.pause(c, container), what=f"freeze '{instance}'"
        )

    async def thaw(self, instance: str) -> None:
        """Let them run again."""
        container = (await self._find(instance)).sandbox.container_id
        await self._host.engine.call(
            Lane.CHANGE, lambda c: containers.unpause(c, container), what=f"thaw '{instance}'"
        )

    async def destroy(self, instance: str) -> None:
        """Kill, remove and wipe; one that is being made is given up."""
        birth = self._host.births.get(instance)
        if birth is not None:
            birth.abandon()
        async with self._locks.alone(instance):
            await self._maker.wipe(instance)

    def exits(self) -> AsyncIterator[Exit]:
        """Instances that ended, from now on."""
        return self._exits.stream()

    async def image_digest(self, base: str) -> str:
        """The id of the base's image; '' where the engine has none."""
        tree = await self._host.in_thread(bases.find, self._recipe.bases, base)
        image = f"{self._recipe.images}:{base if tree is None else bases.PLAIN}"
        found = await self._host.engine.read(lambda c: containers.image(c, image), what=f"look at '{image}'")
        if tree is None or not found:
            return found
        return await self._host.in_thread(bases.joined, found, tree)

    async def stats(self, instance: str) -> Usage:
        """Read the groups; no call to the engine."""
        groups = (await self._find(instance)).groups
        try:
            return Usage(*await self._host.in_thread(Cgroups((), "").usage, groups))
        except OSError as error:
            raise Unavailable(f"cannot read what '{instance}' uses: {error}") from error

    async def logs(self, instance: str, *, tail_bytes: int, follow: bool) -> AsyncIterator[LogChunk]:
        """The newest output, then what is added while the instance lives; offsets count from what is kept."""
        socket, name = self._host.engine.socket, self._host.container(instance)
        data = await output.kept(socket, name)
        position = max(0, len(data) - tail_bytes)
        if data[position:]:
            yield LogChunk(data[position:], position)
        position = len(data)
        if follow:
            async for piece in output.after(socket, name, position):
                yield LogChunk(piece, position)
                position += len(piece)

    async def _find(self, instance: str) -> Living:
        """Whoever lives under this name; the engine is asked only about what another process has just made."""
        living = self._host.roster.get(instance)
        if living is None and await self._host.in_thread(self._host.files.control(instance).is_socket):
            await self._keeper.reconcile()
            living = self._host.roster.get(instance)
        if living is None:
            raise NotFound(f"no sandbox '{instance}'", resource_type="sandbox", resource_name=instance)
        return living
