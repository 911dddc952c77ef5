"""Questions of a server in the midst of a call: which call they belong to, and how its caller is asked.

A server does not say for which call it asks. So a question is put to the caller of the calls that run, if that is
one caller; where calls of several run, nobody can tell, and the server is told so. Each question has a deadline
and ends with its call.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent_runtime.owner import TaskOwner
from agent_runtime.servers.condition import STOPPED, Down
from agent_runtime.servers.limits import PARKED_MAX, QUESTION_MAX_S
from agent_runtime.servers.peer import Step
from agent_runtime.tools.registry import Log, Round, unheard
from wire.errors import Invalid
from wire.mcp.errors import INVALID_REQUEST, McpError, unknown_method
from wire.mcp.forms import INPUTS

ROOTS: Final = "roots/list"
# What we can do for a server, or let callers do who have said that they can.
CAPABILITIES: Final[Mapping[str, Any]] = {
    "roots": {},
    "sampling": {"tools": {}},
    "elicitation": {"form": {}, "url": {}},
}

Object = Mapping[str, Any]
Start = Callable[[Step], Coroutine[Any, Any, dict[str, Any]]]


class Ears(NamedTuple):
    """Whoever made a call, as far as it hears of its way."""

    step: Step
    log: Log = unheard


async def _unheard(_progress: Object) -> None:
    return None


NOBODY: Final = Ears(_unheard)


def roots_of(workspace: Path) -> dict[str, Any]:
    """Where a server may look: the agent's workspace, whoever calls, as a caller's own files are elsewhere."""
    return {"roots": [{"uri": workspace.as_uri(), "name": "workspace"}]}


def lacking(method: str, params: Object, capabilities: Object) -> str:
    """The capability that a client lacks to be asked this; empty where it has it."""
    needed = INPUTS[method]
    given = capabilities.get(needed)
    if not isinstance(given, Mapping):
        return needed
    if needed == "elicitation":
        mode = str(params.get("mode", "form"))[:16]
        return "" if mode in given or (mode == "form" and "url" not in given) else f"elicitation.{mode}"
    wants_tools = "tools" in params or "toolChoice" in params
    return "sampling.tools" if needed == "sampling" and wants_tools and "tools" not in given else ""


class _Work:
    """A call at the server, through all its rounds, and the questions that wait for its caller's next one."""

    def __init__(self, owner: TaskOwner, round: Round, ears: Ears, start: Start) -> None:
        self.round = round
        self.ears = ears
        self.questions: dict[str, tuple[dict[str, Any], asyncio.Future[Any]]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self._asked = 0
        self._news = asyncio.Event()
        self._owner = owner
        self.task = owner.spawn(_settled(start(self._step)), "a call at a server")
        self.task.add_done_callback(lambda _: self._news.set())

    async def pause(self) -> bool:
        """Wait until it has ended, or, which is true then, until its caller must come back with answers."""
        while not self.task.done():
            if self.questions:
                return True
            self._news.clear()
            await self._news.wait()
        return False

    def go_on(self, round: Round, ears: Ears) -> None:
        """Take what the caller has answered; what is open is asked again."""
        self.round, self.ears = round, ears
        for key in list(self.questions.keys() & round.answers.keys()):
            _, answer = self.questions.pop(key)
            if not answer.done():
                answer.set_result(round.answers[key])

    def result(self) -> dict[str, Any]:
        if self.task.cancelled():
            raise Down(STOPPED, "the server was stopped")
        value, error = self.task.result()
        if error is not None:
            raise error
        found: dict[str, Any] = value
        return found

    async def ask(self, method: str, params: Object) -> Any:
        """The caller's answer; `McpError` where none comes in time, or the call has ended before."""
        live = self.round.ask
        put = self._put(method, params) if live is None else live(method, params)
        asking = self._owner.spawn(_settled(put), f"a question by {method}")
        try:
            await asyncio.wait(
                {asking, self.task}, timeout=QUESTION_MAX_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not asking.done() or asking.cancelled():
                raise _refused("the call has ended" if self.task.done() else "nobody answered in time")
            answer, error = asking.result()
        finally:
            asking.cancel()
        if error is not None:
            raise error if isinstance(error, McpError) else _refused(str(error)[:200])
        return answer

    async def _put(self, method: str, params: Object) -> Any:
        """Wait until the caller comes back."""
        self._asked += 1
        key, answer = f"q{self._asked}", asyncio.get_running_loop().create_future()
        self.questions[key] = ({"method": method, "params": dict(params)}, answer)
        self._news.set()
        try:
            return await answer
        finally:
            self.questions.pop(key, None)

    async def _step(self, progress: Object) -> None:
        await self.ears.step(progress)


class Desk:
    """The calls that run at one server, and where its questions are put."""

    def __init__(self, workspace: Path) -> None:
        self._roots = roots_of(workspace)
        self._owner = TaskOwner()
        self._works: dict[_Work, None] = {}
        self._parked: dict[str, _Work] = {}

    @property
    def waiting(self) -> int:
        """How many calls wait for their callers to come back."""
        return len(self._parked)

    async def carry(self, round: Round, ears: Ears, start: Start) -> dict[str, Any]:
        """The result of a call, or one that wants answers first, as the stateless revision writes it."""
        work = self._resume(round, ears) if round.state else self._begin(round, ears, start)
        try:
            if await work.pause():
                asks = {key: question for key, (question, _) in work.questions.items()}
                state = self._park(work)
                return {"resultType": "input_required", "inputRequests": asks, "requestState": state}
            return work.result()
        except asyncio.CancelledError:
            work.task.cancel()
            raise

    async def answer(self, method: str, params: Object) -> Object:
        """The answer to a request of the server's."""
        if method == ROOTS:
            return self._roots
        if method not in INPUTS:
            raise unknown_method(method)
        answer = await self._asker(method, params).ask(method, params)
        if not isinstance(answer, dict):
            raise _refused("the caller's answer is no object")
        return answer

    def log(self, level: str, data: Any) -> bool:
        """Tell the caller of the calls that run; False where nobody can tell who that is."""
        works = list(self._works)
        if len({work.round.caller for work in works}) != 1:
            return False
        works[-1].ears.log(level, data)
        return True

    async def close(self) -> None:
        """End all calls."""
        await self._owner.close()
        for state in list(self._parked):
            self._unpark(state)

    def _begin(self, round: Round, ears: Ears, start: Start) -> _Work:
        work = _Work(self._owner, round, ears, start)
        self._works[work] = None
        work.task.add_done_callback(lambda _: self._works.pop(work, None))
        return work

    def _resume(self, round: Round, ears: Ears) -> _Work:
        work = self._unpark(round.state)
        if work is None:
            raise Invalid(
                "the call that asked has ended, or its answers came too late: call again from the beginning"
            )
        work.go_on(round, ears)
        return work

    def _park(self, work: _Work) -> str:
        state = os.urandom(16).hex()
        self._parked[state] = work
        work.ears = NOBODY
        work.timer = asyncio.get_running_loop().call_later(QUESTION_MAX_S, self._give_up, state)
        return state

    def _unpark(self, state: str) -> _Work | None:
        work = self._parked.pop(state, None)
        if work is not None and work.timer is not None:
            work.timer.cancel()
        return work

    def _give_up(self, state: str) -> None:
        """Nobody came back."""
        if work := self._unpark(state):
            work.task.cancel()

    def _asker(self, method: str, params: Object) -> _Work:
        """The call whose caller is asked: the newest that can be."""
        works = list(reversed(self._works))
        if not works:
            raise _refused("no call runs whose caller could be asked")
        if len({work.round.caller for work in works}) > 1:
            raise _refused("calls of several callers run: nobody can tell whose call asks")
        missing = ""
        for work in works:
            missing = lacking(method, params, work.round.capabilities)
            if not missing and (work.round.ask is not None or self.waiting < PARKED_MAX):
                return work
        raise _refused(
            f"the caller lacks the capability {missing}" if missing else "too many callers are asked"
        )


def _refused(why: str) -> McpError:
    return McpError(INVALID_REQUEST, f"cannot ask: {why}")


async def _settled(work: Awaitable[Any]) -> tuple[Any, Exception | None]:
    """The result or the error as a value: it is its waiter's business, not the owner's."""
    try:
        return await work, None
    except Exception as error:
        return None, error
