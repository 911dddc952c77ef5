"""An instance that has become an agent: its identity, crew, code and memory, and the work it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from agent_runtime.capabilities import Capabilities
from agent_runtime.chat import Conversation
from agent_runtime.ids import new_id
from agent_runtime.limits import (
    CHATS_MAX,
    START_MAX_S,
    SUSPENDED_MAX_S,
    TASK_MAX_S,
    TOOL_CALLS_MAX,
    TOOL_DEFAULT_S,
)
from agent_runtime.loader import code_failed
from agent_runtime.memory import Blob, State, pack, unpack
from agent_runtime.owner import TaskOwner
from agent_runtime.parts import Parts
from agent_runtime.profile import Context, TaskContext
from agent_runtime.signals import Inbox
from agent_runtime.talking import Pieces, Talking, asked
from agent_runtime.tasks import Gate, Progress, Result, Steps, TaskRunner
from agent_runtime.tools.memory import Hit, MemoryTools
from agent_runtime.tools.registry import Log, Outcome, Report, Round, Tool, unheard
from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import (
    DeadlineExceeded,
    Exhausted,
    FactoryError,
    FieldViolation,
    Invalid,
    Refused,
)


class AssumedAgent:
    """One agent at one generation. Its service endpoint and its control socket both lead here."""

    def __init__(self, parts: Parts, inbox: Inbox) -> None:
        self.parts = parts
        self.facts = parts.context.facts
        self.inbox = inbox
        self.gate = Gate()
        self.tasks = TaskRunner(self.gate)
        self.tool_calls = TaskRunner(self.gate, most=TOOL_CALLS_MAX, log_level=logging.DEBUG)
        self.memory = MemoryTools.of(parts.context, parts.model)
        self.memory.offer(parts.registry)
        self.talking = Talking(parts)
        self._chats = 0
        self._owner = TaskOwner()
        self._draining = False
        self._suspended: Blob | None = None
        self._suspension = 0
        """Counts suspensions and their ends: only the last one counts, and only until it is taken back."""

    async def start(self, state: Blob | None) -> None:
        """Restore the state, let the profile's code prepare, begin to handle signals."""
        parts = self.parts
        if state is not None:
            await self._restore(unpack(state))
        parts.code.ctx = parts.context
        try:
            async with asyncio.timeout(START_MAX_S):
                await parts.caller.call(parts.code.on_start, parts.context)
        except TimeoutError as error:
            raise code_failed("cannot start the agent", error) from error
        self._owner.spawn(self.inbox.work(self._on_signal), "signals")
        parts.servers.start()  # in the background: a slow one delays nothing but its own tools

    async def close(self) -> None:
        await self._owner.close()
        await self.tasks.close()
        await self.tool_calls.close()
        await self.parts.servers.stop(hurry=True)
        await self.parts.context.peers.close()
        self.parts.bus.close()
        self.parts.caller.close()

    def check_generation(self, crew: str, agent: str, generation: int) -> None:
        """Refuse a crew mate whose successor is in the roster."""
        mate = self.parts.context.roster.get(agent)
        if crew == self.facts.crew and mate is not None and generation < mate.generation:
            raise Refused(
                f"agent '{agent}' has a newer instance",
                reason="STALE_GENERATION",
                metadata={"generation": str(mate.generation)},
            )

    def own(self) -> tuple[str, str]:
        return self.facts.crew, self.facts.name

    async def take_roster(self, roster: pb.Roster) -> None:
        if self.parts.context.roster.apply(roster):
            await self.parts.context.peers.forget_gone()

    async def run_task(
        self, task: str, actor: str, task_input: Mapping[str, Any], scopes: frozenset[str]
    ) -> AsyncGenerator[Progress | Result, None]:
        """Yield `Progress` items, then the `Result` as the last."""
        said = asked(task_input) if self.talking.takes_words else None

        async def work(steps: Steps) -> Result:
            try:
                async with asyncio.timeout(TASK_MAX_S):
                    if said is not None:
                        return await self.talking.turn(said, scopes, steps)
                    context = self._task_context(task, actor, steps)
                    output = await self.parts.caller.call(self.parts.code.run_task, context, task_input)
            except TimeoutError:
                return Result(error=DeadlineExceeded(f"the task did not end within {TASK_MAX_S:g} s"))
            except FactoryError as error:
                return Result(error=error)
            return Result(output or {})

        async with aclosing(self.tasks.run(task, work)) as updates:
            async for update in updates:
                yield update

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any],
        timeout_s: float,
        scopes: frozenset[str],
        *,
        log: Log = unheard,
        answered: Round | None = None,
    ) -> AsyncGenerator[Progress | Outcome, None]:
        """Yield `Progress` items, then the `Outcome` as the last."""
        tool = self.require_tool(name, scopes)

        async def work(report: Report) -> Any:
            return await self._call(tool, arguments, timeout_s, report, log, answered)

        async with aclosing(self.tool_calls.run(new_id(), work)) as updates:
            async for update in updates:
                yield update

    def capabilities_changed(self) -> None:
        """Tell the factory and all who listen, soon: a condition of the agent's is another."""
        self.offered.changed()

    @property
    def offered(self) -> Capabilities:
        """What the agent offers now."""
        return self.parts.context.capabilities

    def require_tool(self, name: str, scopes: frozenset[str]) -> Tool:
        """A tool that a caller may use; `NotFound` or `Denied` otherwise."""
        return self.parts.registry.require(name, **self.parts.reach(scopes))

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Let the agent's own code say something that changes nothing."""
        with self.gate.pass_through():
            async with asyncio.timeout(TOOL_DEFAULT_S):
                return await self.parts.caller.call(function, *arguments)

    def visible_tools(self, scopes: frozenset[str]) -> list[Tool]:
        return self.parts.registry.visible(**self.parts.reach(scopes))

    async def chat(self, conversation: Conversation, scopes: frozenset[str]) -> Pieces:
        """Answer a conversation by the profile's own code, or by its model and tools."""
        if self._chats >= CHATS_MAX:
            raise Exhausted(f"cannot hold more than {CHATS_MAX} conversations at once", quota="chats")
        self._chats += 1
        try:
            with self.gate.pass_through():
                async with aclosing(self.talking.answer(conversation, scopes)) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            self._chats -= 1

    async def put_memory(self, key: str, value: Any, *, forget: bool) -> None:
        with self.gate.pass_through():
            if forget:
                self.parts.context.memory.forget(key)
            else:
                self.parts.context.memory.put(key, value)

    async def search_memory(self, query: str, limit: int) -> Sequence[Hit]:
        """What is remembered that is most like the query, best first."""
        with self.gate.pass_through():
            return await self.memory.search(query, limit)

    async def suspend(self, idle_for_s: float = 0.0) -> Blob:
        """The state, after which no new work is taken: what it would change, the blob would not hold."""
        if self.inbox.busy and self._suspended is not None:
            await self._take_back()  # whoever suspended it is gone, and a signal waits
        self._refuse_while_busy("suspend")
        if (idle_s := self.gate.idle_s()) < idle_for_s:
            why = f"cannot suspend: the agent was used {idle_s:.3f} s ago"
            raise Refused(why, metadata={"state": "READY", "idle_s": f"{idle_s:.6f}"})
        self._suspension += 1
        mine = self._suspension
        self.gate.shut("it hibernates")
        self.inbox.hold()
        try:
            extra = await self.parts.caller.call(self.parts.code.suspend)
            blob = await self._blob(bytes(extra))
        except BaseException:
            if mine == self._suspension:
                self._take_work()
            raise
        if mine != self._suspension:
            raise Refused("cannot suspend: it was taken back meanwhile", metadata={"state": "READY"})
        self._suspended = blob
        await self.parts.servers.stop()  # before the blob leaves: from here on the workspace does not change
        self._owner.spawn(self._wake_up_alone(mine), "suspended")
        return blob

    async def _blob(self, extra: bytes) -> Blob:
        """All that hibernation keeps. Vectors take the room that is left: they can be made again."""
        state = State(self.parts.context.memory.snapshot(), extra, self.talking.contexts.snapshot())
        vectors = await self.parts.context.in_thread(self.memory.snapshot, state.room_bytes)
        return pack(state._replace(vectors=vectors))

    async def resume(self, blob: Blob | None) -> None:
        """Take a state back, or without one work on with what is there."""
        if blob is None:
            await self._take_back()
            return
        self._refuse_while_busy("resume")
        await self._restore(unpack(blob))
        self._suspension += 1
        self._suspended = None
        self._take_work()

    async def drain(self, grace_s: float) -> int:
        """Refuse new work, wait for what runs; returns how much had to be abandoned."""
        self._draining = True
        self.gate.shut("it drains")
        abandoned = await self.gate.wait_empty(grace_s)
        await self.tasks.close()
        await self.tool_calls.close()
        await self.parts.servers.stop()
        return abandoned

    def _refuse_while_busy(self, verb: str) -> None:
        if len(self.gate) or self.inbox.busy or self.parts.servers.waiting:
            raise Refused(f"cannot {verb}: the agent is at work", metadata={"state": "BUSY"})

    async def _restore(self, state: State) -> None:
        """Raises Invalid about the state, whatever was wrong with it: another instance would fail as well."""
        try:
            self.parts.context.memory.restore(state.memory)
            self.talking.contexts.restore(state.conversations)
            self.memory.restore(state.vectors)
            if state.profile:
                await self.parts.caller.call(self.parts.code.resume, state.profile)
        except (FactoryError, ValueError) as error:
            violation = FieldViolation("state.data", "is not taken back")
            raise Invalid(f"cannot take the state back: {error}", violations=[violation]) from error

    async def _take_back(self) -> None:
        """End a suspension: nothing has changed since, only the profile's code must know."""
        self._suspension += 1
        suspended, self._suspended = self._suspended, None
        try:
            if suspended is not None and (state := unpack(suspended).profile):
                await self.parts.caller.call(self.parts.code.resume, state)
        finally:
            self._take_work()

    def _take_work(self) -> None:
        self.inbox.release()
        if not self._draining:
            self.parts.servers.start()
            self.gate.reopen()

    async def _wake_up_alone(self, suspension: int) -> None:
        """Take work again if nobody ended the instance: its hibernation has failed elsewhere."""
        await asyncio.sleep(SUSPENDED_MAX_S)
        if suspension == self._suspension:
            await self._take_back()

    async def _on_signal(self, signal: str, payload: Mapping[str, Any]) -> None:
        try:
            await self.parts.caller.call(self.parts.code.on_signal, signal, payload)
        finally:
            self.gate.touch()

    async def _call(
        self,
        tool: Tool,
        arguments: Mapping[str, Any],
        timeout_s: float,
        report: Report,
        log: Log = unheard,
        answered: Round | None = None,
    ) -> Outcome:
        try:
            return await self.parts.registry.call(tool, arguments, timeout_s, report, log, answered)
        except Exception as error:
            raise self.parts.caller.failure(error) from error

    def _task_context(self, task: str, actor: str, report: Report) -> TaskContext:
        base = self.parts.context
        shared = {field: getattr(base, field) for field in Context.__slots__}
        return TaskContext(**shared, task=task, actor=actor, report=report)
