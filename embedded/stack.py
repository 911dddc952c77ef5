"""The whole product on one machine: start in dependency order, keep alive, stop in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import structlog

from embedded import ports, programs
from embedded.leftovers import end_traefik
from embedded.paths import forget_socket_dir, prepare_home
from embedded.postgres import EmbeddedPostgres
from embedded.process import is_running
from embedded.supervisor import Service, Supervised, run_once
from embedded.valkey import EmbeddedValkey

TERMINATE_WITHIN_S = 30.0
AUTHORITY = "factory.svc"

_log = structlog.get_logger("embedded.stack")


class AlreadyServedError(Exception):
    """Another process serves this home."""


class Stack:
    """Postgres, Valkey, factory, watchdog and gateway under one home.

    A service that dies is restarted. If we die, the services go on, and the next Stack adopts them.
    """

    def __init__(
        self,
        home: Path,
        *,
        say: Callable[[str], None] | None = None,
        destroy: bool = True,
        driver: str = "auto",
    ) -> None:
        self.home = home.resolve()
        self._say = say or (lambda line: None)
        self._destroy = destroy
        self._driver = driver
        self._lock: IO[str] | None = None
        self._ports: dict[str, int] = {}
        self._started: list[Supervised] = []
        self._keepers = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._urls: tuple[str, str] | None = None
        self._asked = asyncio.Event()
        self._waiting = False

    @property
    def interrupted(self) -> bool:
        """True when SIGINT or SIGTERM asked us to stop."""
        return self._asked.is_set()

    @property
    def endpoint(self) -> str:
        """The gateway's address, where clients connect."""
        return f"127.0.0.1:{self._ports['gateway']}"

    @property
    def client_file(self) -> Path:
        """What a client needs to connect as the operator."""
        return self.home / "client.json"

    async def __aenter__(self) -> Self:
        await self._keepers.__aenter__()
        self._listen_for_signals()
        try:
            await self._start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            # The body's own error travels by itself; the group need only see a cancellation.
            cancelled = isinstance(error, asyncio.CancelledError)
            await self._keepers.__aexit__(kind if cancelled else None, error if cancelled else None, None)
        finally:
            await self.stop()

    async def run_until_stopped(self) -> None:
        """Keep everything alive until SIGINT or SIGTERM."""
        self._waiting = True
        await self._asked.wait()

    async def stop(self, *, destroy: bool | None = None) -> None:
        """Stop in reverse order; end the sandboxes, too, unless told to leave them."""
        if self._lock is None:
            return
        self.client_file.unlink(missing_ok=True)
        programs_of_ours, stores = self._split()
        for supervised in reversed(programs_of_ours):
            await self._stop_one(supervised)
        for pid in await asyncio.to_thread(end_traefik, self.home):
            _log.warning("ended a leftover", action="stack.leftover", program="traefik", pid=pid)
        if self._destroy if destroy is None else destroy:
            await self._terminate()
        await _together(*(self._stop_one(supervised) for supervised in stores))
        self._started.clear()
        forget_socket_dir(self.home)
        self._lock.close()
        self._lock = None

    def _listen_for_signals(self) -> None:
        """Turn the first SIGINT or SIGTERM into one orderly stop; later ones change nothing."""
        loop, owner = asyncio.get_running_loop(), asyncio.current_task()

        def ask() -> None:
            if not self._asked.is_set() and not self._waiting and owner is not None:
                owner.cancel()
            self._asked.set()

        for signum in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError):  # only the main thread may
                loop.add_signal_handler(signum, ask)

    async def _start(self) -> None:
        prepare_home(self.home)
        self._lock = _lock(self.home)
        postgres, valkey = EmbeddedPostgres(self.home), EmbeddedValkey(self.home)
        self._ports = ports.choose(self.home, held=_held(self.home))
        await _together(self._start_one(postgres.service()), self._start_one(valkey.service()))
        self._urls = (postgres.url, valkey.url)
        await self._start_one(programs.factory(self.home, self._ports, *self._urls, self._driver))
        watchdog, gateway = (make(self.home, self._ports) for make in (programs.watchdog, programs.gateway))
        await _together(self._start_one(watchdog), self._start_one(gateway))
        ports.write_atomically(self.client_file, json.dumps(self._client(), indent=1))
        self._say(f"ready at {self.endpoint}; credentials in {self.client_file}")

    async def _start_one(self, service: Service) -> None:
        supervised = Supervised(service)
        self._started.append(supervised)
        since = asyncio.get_running_loop().time()
        await supervised.start()
        took_s = asyncio.get_running_loop().time() - since
        how = "adopted" if supervised.adopted else "started"
        self._say(f"{service.name:<9} {how} in {took_s:.2f} s (pid {supervised.pid})")
        self._tasks.append(self._keepers.create_task(supervised.keep(), name=f"keep-{service.name}"))

    async def _stop_one(self, supervised: Supervised) -> None:
        await supervised.stop()
        self._say(f"{supervised.service.name:<9} stopped")

    async def _terminate(self) -> None:
        if self._urls is None or not (self.home / "sandboxes").exists():
            return
        command = programs.terminate_command(self.home, self._ports, *self._urls, self._driver)
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = await run_once(command, TERMINATE_WITHIN_S)
        if code == 0:
            self._say("sandboxes ended")
        else:
            _log.error(
                "sandboxes may be left", action="stack.terminate_failed", code=code, log=str(command.log)
            )
            self._say(f"cannot end the sandboxes: see {command.log}")

    def _split(self) -> tuple[list[Supervised], list[Supervised]]:
        stores = [one for one in self._started if one.service.name in ("postgres", "valkey")]
        return [one for one in self._started if one not in stores], stores

    def _client(self) -> dict[str, str]:
        operator = self.home / "pki" / "operator"
        files = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem", "token": "token"}
        paths = {name: str(operator / file) for name, file in files.items()}
        return {"endpoint": self.endpoint, "authority": AUTHORITY, **paths, "home": str(self.home)}


async def serve(
    home: Path, *, say: Callable[[str], None] | None = None, destroy: bool = True, driver: str = "auto"
) -> None:
    """Run the stack until SIGINT or SIGTERM, whenever it comes, and stop cleanly."""
    stack = Stack(home, say=say, destroy=destroy, driver=driver)
    try:
        async with stack:
            await stack.run_until_stopped()
    except asyncio.CancelledError:
        if not stack.interrupted:
            raise


async def _together(*steps: Coroutine[Any, Any, None]) -> None:
    """Run steps at once; the first failure cancels the others and comes out as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


def _lock(home: Path) -> IO[str]:
    file = (home / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise AlreadyServedError(f"cannot serve '{home}': process {holder} already does") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _held(home: Path) -> set[str]:
    """Name the ports of programs that run already and will be adopted with them."""
    owners = {"factory": ("factory", "factory_http", "factory_metrics"), "watchdog": ("watchdog_metrics",)}
    owners["gateway"] = ("gateway", "gateway_metrics")
    return {port for name, held in owners.items() if is_running(home, name) for port in held}
