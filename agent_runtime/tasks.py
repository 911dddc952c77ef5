"""Run an agent's tasks: a few at once, each with progress to whoever waits, all of them ended by a drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent_runtime.limits import PROGRESS_QUEUED_MAX, TASKS_MAX
from agent_runtime.owner import TaskOwner
from agent_runtime.profile import ChatPiece
from wire.errors import AlreadyExists, Exhausted, FactoryError, Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """A step on the way."""

    fraction: float
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    delta: str = ""
    """Text to append to an answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a task ended: its output, or the error that its code raised."""

    output: Mapping[str, Any] = field(default_factory=dict)
    error: FactoryError | None = None
    answered: ChatPiece | None = None
    """Where the output is an answer: its last piece, which says why it ended and what it cost."""


class Steps:
    """The steps of one task on their way to its reader. The task never waits: a slow reader misses steps, and gets
    what was said meanwhile in one piece. Called as a `Report`."""

    def __init__(self) -> None:
        self._steps: deque[Progress] = deque(maxlen=PROGRESS_QUEUED_MAX)
        self._said: list[str] = []
        self._news = asyncio.Event()
        self._ended = False

    async def __call__(self, fraction: float, message: str, detail: Mapping[str, Any]) -> None:
        """Report a step."""
        self._steps.append(Progress(fraction, message, detail))
        await self._tell()

    async def say(self, text: str) -> None:
        """Append to the answer; none of it gets lost."""
        self._said.append(text)
        await self._tell()

    async def _tell(self) -> None:
        self._news.set()
        await asyncio.sleep(0)  # lets the reader write, so that a busy coroutine's steps do not bunch up

    def end(self, _task: asyncio.Task[Any]) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        while True:
            await self._news.wait()
            self._news.clear()
            ended = self._ended
            while self._steps or self._said:
                if self._said:
                    said, self._said = self._said, []
                    yield Progress(0.0, "", delta="".join(said))
                if self._steps:
                    yield self._steps.popleft()
            if ended:
                return


Work = Callable[[Steps], Awaitable[Any]]


class Gate:
    """Lets new work in until it is shut; knows how much is inside and tells when the last has left."""

    def __init__(self) -> None:
        self._inside = 0
        self._shut_because = ""
        self._empty = asyncio.Event()
        self._empty.set()
        self._used_at_s = time.monotonic()

    def __len__(self) -> int:
        return self._inside

    @property
    def open(self) -> bool:
        return not self._shut_because

    def touch(self) -> None:
        """Something was wanted of the agent now."""
        self._used_at_s = time.monotonic()

    def idle_s(self) -> float:
        """For how long nothing has been wanted; 0 while something is at work."""
        return 0.0 if self._inside else time.monotonic() - self._used_at_s

    def shut(self, because: str) -> None:
        self._shut_because = because

    def reopen(self) -> None:
        self._shut_because = ""

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Count one piece of work; `Unavailable` when shut."""
        if self._shut_because:
            raise Unavailable(f"the agent takes no work: {self._shut_because}", reason="DRAINING")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            self.touch()
            if not self._inside:
                self._empty.set()

    async def wait_empty(self, timeout_s: float) -> int:
        """Wait until nothing is inside, or time runs out; returns what is still there."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return self._inside
        return 0


class TaskRunner:
    """The tasks in work, by id. Whoever waits for one owns it: a call that ends early cancels its task."""

    def __init__(self, gate: Gate, *, most: int = TASKS_MAX, log_level: int = logging.INFO) -> None:
        self._gate = gate
        self._most = most
        self._log_level = log_level
        self._running: set[str] = set()
        self._owner = TaskOwner()

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, task: str, work: Work) -> AsyncGenerator[Progress | Any, None]:
        """Yield each progress, then the result as the last; raises what the work raised."""
        with self._gate.pass_through(), self._entry(task):
            log.log(self._log_level, "task begins", extra={"task": task})
            steps = Steps()
            running = self._owner.spawn(_outcome(work, steps), f"task {task}")
            running.add_done_callback(steps.end)
            try:
                async for progress in steps:
                    yield progress
            finally:
                # Also when the caller went away: nothing runs that nobody waits for.
                running.cancel()
                await asyncio.wait([running])
            log.log(self._log_level, "task ended", extra={"task": task})
            yield _settled(running)

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        await self._owner.close()

    @contextmanager
    def _entry(self, task: str) -> Iterator[None]:
        if task in self._running:
            raise AlreadyExists(f"task '{task}' is being worked on")
        if len(self._running) >= self._most:
            raise Exhausted(f"cannot work on more than {self._most} tasks at once", quota="tasks")
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)


async def _outcome(work: Work, steps: Steps) -> tuple[Any, Exception | None]:
    """The result or the error as a value: a task's errors are its caller's business, not the owner's."""
    try:
        return await work(steps), None
    except Exception as error:
        return None, error


def _settled(running: asyncio.Task[tuple[Any, Exception | None]]) -> Any:
    if running.cancelled():
        raise Unavailable("the agent ended the task: it is going away", reason="DRAINING")
    result, error = running.result()
    if error is not None:
        raise error
    return result
