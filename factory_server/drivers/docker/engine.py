"""Calls to a Docker engine from an event loop: the blocking SDK in bounded lanes, a deadline on every call.

A lane is a few threads of its own, so that a slow kind of call never stands before another kind. A call that
outlives its deadline ends as `Unavailable` for its caller; its thread is free again when the engine answers or
the SDK gives up, a moment later.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.errors import NotFound as NoSuchThing

from factory_server.core.causes import KEY, Cause
from factory_server.core.errors import FactoryError, Invalid, NotFound, Unavailable

DEFAULT_ENGINE: Final = "unix:///var/run/docker.sock"
ENGINE_VARIABLE: Final = "DOCKER_HOST"
SILENCE_MAX_S: Final = 1.0
SUSPECT_MAX_S: Final = 0.1
"""Once the engine missed a deadline, reads wait only so long, for a while: their callers have others to ask."""
SUSPICION_S: Final = 2.0
DEFAULT_IMAGE: Final = "hyperfactory-agent:python"
HELLO_MAX_S: Final = 5.0
_STARTS_AT_ONCE: Final = max(2, os.cpu_count() or 1)  # more only makes each of them slower

SILENT: Final = {KEY: Cause.ENGINE_SILENT}

T = TypeVar("T")
Client = Any  # the SDK carries no types
Action = Callable[[Client], T]


class Lane(Enum):
    """Name, threads, and how long the SDK waits for an answer."""

    READ = ("read", 2, SILENCE_MAX_S)
    CREATE = ("create", _STARTS_AT_ONCE, 60.0)
    REFILL = ("refill", 1, 60.0)
    CHANGE = ("change", 2, 10.0)
    DELETE = ("delete", _STARTS_AT_ONCE, 30.0)
    NETWORK = ("network", 1, 30.0)  # parallel calls of this kind are slower than serial ones

    def __init__(self, label: str, threads: int, patience_s: float) -> None:
        self.label = label
        self.threads = threads
        self.patience_s = patience_s


class ConflictError(Exception):
    """The engine says 409: somebody else did or does this, or the thing is in another state."""


@dataclass(eq=False)
class Engine:
    """One engine on this host."""

    url: str
    _clients: dict[Lane, Client] = field(default_factory=dict)
    _threads: dict[Lane, ThreadPoolExecutor] = field(default_factory=dict)
    _suspect_until: float = 0.0

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return self.url.removeprefix("unix://")

    async def open(self) -> dict[str, Any]:
        """Make the lanes; the answer is what the engine says of itself."""
        if not self.url.startswith("unix://"):
            raise Invalid(f"cannot use the engine '{self.url}': sandboxes need one on this host (unix://…)")
        hello = ThreadPoolExecutor(1, thread_name_prefix="docker-hello")
        try:
            client, info = await self._within(
                hello.submit(self._hello), f"meet the engine on {self.url}", HELLO_MAX_S
            )
        finally:
            hello.shutdown(wait=False)
        for lane in Lane:
            self._clients[lane] = _client(self.url, client.api_version, lane.patience_s)
            self._threads[lane] = ThreadPoolExecutor(lane.threads, thread_name_prefix=f"docker-{lane.label}")
        client.close()
        said: dict[str, Any] = info
        return said

    def _hello(self) -> tuple[Client, dict[str, Any]]:
        client = _client(self.url, "auto", HELLO_MAX_S)
        return client, client.info()

    def close(self) -> None:
        """Give up what waits; what runs ends by itself."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def submit(self, lane: Lane, action: Action[T]) -> Future[T]:
        """Begin a call whose end somebody else awaits; errors of the SDK stay as they are."""
        try:
            return self._threads[lane].submit(action, self._clients[lane])
        except (KeyError, RuntimeError) as error:
            raise Unavailable("this driver is not open") from error

    async def call(self, lane: Lane, action: Action[T], *, what: str, deadline_s: float | None = None) -> T:
        """Run `action` with the lane's client; `what` names the deed in errors."""
        wait_s = lane.patience_s if deadline_s is None else deadline_s
        return await self._within(self.submit(lane, action), what, wait_s)

    async def landing(self, future: Future[T], *, what: str, deadline_s: float) -> T:
        """Wait for a call that was submitted."""
        return await self._within(future, what, deadline_s)

    async def read(self, action: Action[T], *, what: str) -> T:
        """A call that only looks: it answers soon, or not at all."""
        loop = asyncio.get_running_loop()
        suspected = loop.time() < self._suspect_until
        try:
            future = self.submit(Lane.READ, action)
            return await self._within(future, what, SUSPECT_MAX_S if suspected else SILENCE_MAX_S)
        except SilenceError:
            if not suspected:
                self._suspect_until = loop.time() + SUSPICION_S
            raise

    async def _within(self, future: Future[T], what: str, deadline_s: float) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise SilenceError(
                f"cannot {what}: the engine has not answered within {deadline_s:g} s", metadata=SILENT
            ) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise native(error, what) from error


class SilenceError(Unavailable):
    """The engine did not answer in time; that says nothing about any sandbox."""


def default_url() -> str:
    """The engine of this host's environment."""
    return os.environ.get(ENGINE_VARIABLE, DEFAULT_ENGINE)


def is_ready(image: str = DEFAULT_IMAGE) -> bool:
    """Whether that engine answers and has the agents' image; blocking, at a process's start."""
    try:
        client = _client(default_url(), "auto", SILENCE_MAX_S)
        client.inspect_image(image)
    except (DockerException, requests.RequestException, OSError):
        return False
    client.close()
    return True


def native(error: Exception, what: str) -> FactoryError:
    """An error of the SDK in our words."""
    match error:
        case ImageNotFound():
            message = f"cannot {what}: {error.explanation}; build the image: make agent-image"
            return Unavailable(message, metadata={KEY: Cause.IMAGE_MISSING})
        case NoSuchThing():
            return NotFound(f"cannot {what}: {error.explanation}", resource_type="sandbox")
        case APIError():
            return Unavailable(f"cannot {what}: {error.explanation or error}")
        case requests.Timeout():
            return SilenceError(f"cannot {what}: the engine does not answer", metadata=SILENT)
        case _:
            return Unavailable(f"cannot {what}: {error}")


def is_conflict(error: APIError) -> bool:
    """Whether the thing is in another state than the call needs."""
    return bool(error.response is not None and error.response.status_code == requests.codes.conflict)


def _client(url: str, version: str, timeout_s: float) -> Client:
    return docker.APIClient(base_url=url, version=version, timeout=timeout_s)
