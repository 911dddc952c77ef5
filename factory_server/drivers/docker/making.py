"""Make an instance, whole or not at all, and take it away."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from factory_server.core.causes import KEY, Cause
from factory_server.core.errors import Exhausted, Unavailable
from factory_server.core.sandbox import Exit, Sandbox, SandboxSpec
from factory_server.drivers import bases
from factory_server.drivers.docker import containers, directories, findings, hardening, output, sealing
from factory_server.drivers.docker.arrivals import Arrivals
from factory_server.drivers.docker.births import Birth, EndedError
from factory_server.drivers.docker.engine import ConflictError, Lane
from factory_server.drivers.docker.host import Host
from factory_server.drivers.docker.keeping import Keeper
from factory_server.drivers.namespaces import interpreter

DESTROY_MAX_S: Final = 15.0
LAST_WORDS_MAX: Final = 200
USERS: Final = range(10_000, 60_000)  # of one instance each; inside 65,536, which is all that a remap gives
POOL_LABEL: Final = "pool"
"""Who is made for a pool waits in a lane of its own, so that refilling never stands before a claim."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all containers of a driver have in common."""

    images: str
    command: Sequence[str]
    packages: Sequence[str]
    runtime: str
    bases: Path


class Maker:
    """Callers hold the instance's lock."""

    def __init__(self, host: Host, keeper: Keeper, arrivals: Arrivals, recipe: Recipe) -> None:
        self._host = host
        self._keeper = keeper
        self._arrivals = arrivals
        self._recipe = recipe

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """The instance of this name, made now or found."""
        host, instance = self._host, spec.instance
        name = host.container(instance)
        if await host.engine.read(lambda c: containers.exists(c, name), what=f"create '{instance}'"):
            await self._keeper.reconcile()
            living = host.roster.get(instance)
            if living is not None:
                return living.sandbox
            await self.wipe(instance)  # what an earlier life of this name left
        birth = host.births[instance] = Birth(instance)
        try:
            return await self._bear(birth, spec)
        except ConflictError as error:
            raise Unavailable(f"cannot create '{instance}': it is being made or removed elsewhere") from error
        except BaseException:
            birth.abandon()
            raise
        finally:
            del host.births[instance]

    async def _bear(self, birth: Birth, spec: SandboxSpec) -> Sandbox:
        host, instance = self._host, spec.instance
        await host.flights.landed(instance, deadline_s=DESTROY_MAX_S)
        packages = await host.in_thread(interpreter.locate, self._recipe.packages)
        body = await self.body(spec, self._recipe.command, packages)
        own = directories.own_of(host.files, instance)
        watch = self._arrivals.watch(own, lambda file: birth.see(file, directories.CONTROL))
        try:
            birth.container, pid = await self._start(birth, spec, body)
            await host.in_thread(sealing.seal, pid)
            await birth.settled()
        except EndedError as error:
            words = await self._last_words(instance)
            raise Unavailable(f"{error}{words}", metadata={KEY: Cause.IMAGE_BROKEN}) from error
        finally:
            self._arrivals.forget(watch)
        await host.in_thread(directories.adopt_control, host.files, instance)
        await directories.listening(host.files.control(instance))
        sandbox = await host.enrol(instance, birth.container, pid, spec.labels)
        birth.check()
        if sandbox is None:
            raise Unavailable(f"cannot create '{instance}': it ended as soon as it was ready")
        return sandbox

    async def _last_words(self, instance: str) -> str:
        """What it printed before it ended, for whoever asks why."""
        said = await output.kept(self._host.engine.socket, self._host.container(instance))
        lines = said.decode(errors="replace").strip().splitlines()
        return f": {lines[-1][-LAST_WORDS_MAX:]}" if lines else ""

    async def _start(self, birth: Birth, spec: SandboxSpec, body: Mapping[str, Any]) -> tuple[str, int]:
        host = self._host
        name = host.container(spec.instance)
        lane = Lane.REFILL if POOL_LABEL in spec.labels else Lane.CREATE
        flight = host.engine.submit(
            lane, lambda c: containers.make(c, name, body, lambda: not birth.abandoned)
        )
        host.flights.add(spec.instance, flight)
        return await host.engine.landing(flight, what=f"create '{spec.instance}'", deadline_s=lane.patience_s)

    async def body(
        self, spec: SandboxSpec, command: Sequence[str], packages: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """The container's configuration, with its directories made."""
        host = self._host
        taken = set(host.users.values())
        user = next((u for u in (secrets.choice(USERS) for _ in range(len(USERS))) if u not in taken), 0)
        if not user:
            raise Exhausted(f"cannot create '{spec.instance}': all users are taken", quota="sandboxes")
        host.users[spec.instance] = user
        owner = findings.remapped_base(host.info) + user
        own, peers, skills = await host.in_thread(directories.prepare, host.files, spec.instance, owner)
        base = await host.in_thread(bases.find, self._recipe.bases, spec.base)
        wish = hardening.Wish(
            instance=spec.instance,
            factory=host.factory,
            # A base that nobody has laid out as a tree may be an image of its own.
            image=f"{self._recipe.images}:{spec.base if base is None else bases.PLAIN}",
            user=user,
            own=str(own),
            peers=str(peers),
            skills=str(skills),
            hosts=str(directories.hosts_of(host.files, spec.instance)),
            limits=spec.limits,
            labels=spec.labels,
            command=command,
            packages=packages,
            runtime=self._recipe.runtime,
            base=str(base or ""),
        )
        return hardening.container(wish)

    async def wipe(self, instance: str) -> None:
        """Kill and remove, from any state; returns when nothing is left."""
        host = self._host
        name = host.container(instance)
        await host.flights.landed(instance, deadline_s=DESTROY_MAX_S)
        try:
            await host.engine.call(
                Lane.DELETE,
                lambda c: containers.remove(c, name),
                what=f"destroy '{instance}'",
                deadline_s=DESTROY_MAX_S,
            )
        except ConflictError as error:
            raise Unavailable(f"cannot destroy '{instance}': {error}") from error
        living = host.roster.get(instance)
        if living is not None:
            host.roster.end(living, Exit(instance, signal=signal.SIGKILL))
        host.users.pop(instance, None)
        await host.in_thread(host.files.remove, instance)
