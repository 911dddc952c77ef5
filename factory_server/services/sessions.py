"""Hold a line to every live instance: signals, rosters and identities go out, receipts and reports come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from factory_server.core import model
from factory_server.core.errors import FactoryError
from factory_server.core.line import Line
from factory_server.services.lines import Lines
from factory_server.services.owned import spawn
from hyperfactory.v1 import agent_service_pb2

log = logging.getLogger("factory.sessions")

RETRY_FIRST_S = 0.02
RETRY_MAX_S = 1.0
SEND_DEADLINE_S = 5.0


@dataclass(eq=False)
class Session:
    """The line to one instance of one agent. `up` is set while the Deliver stream stands."""

    agent: str
    crew: str
    generation: int
    line: Line
    up: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def send(self, item: agent_service_pb2.DeliverRequest) -> bool:
        """Send where the session stands; whether it went out. What did not is sent after the next attach."""
        if not self.up.is_set():
            return False
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                await self.line.send(item)
        except (FactoryError, TimeoutError) as error:
            log.info("session refuses an item", extra={"agent": self.agent, "error": str(error)})
            return False
        return True


OnAttached = Callable[[Session], Awaitable[None]]
OnReceipts = Callable[[Session, Sequence[agent_service_pb2.SignalReceipt]], Awaitable[None]]
OnReport = Callable[[Session, agent_service_pb2.AgentReport], None]


class Sessions:
    """All sessions of this process, by agent. Tasks belong to the group given to `run`."""

    def __init__(self, open_line: Callable[[str], Line]) -> None:
        self._open_line = open_line
        self.lines = Lines(open_line)
        self._sessions: dict[str, Session] = {}
        self._group: asyncio.TaskGroup | None = None
        self._suspending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.on_attached: list[OnAttached] = []
        self.on_receipts: OnReceipts | None = None
        self.on_report: OnReport | None = None
        self._changed = asyncio.Event()

    def suspending(self, agent: str) -> asyncio.Lock:
        """Held by whoever suspends the agent's instance, so that nobody takes back what another has begun."""
        return self._suspending.setdefault(agent, asyncio.Lock())

    def own(self, group: asyncio.TaskGroup) -> None:
        """Give the sessions' tasks their owner; call once, before any attach."""
        self._group = group

    def get(self, agent: str) -> Session | None:
        """The agent's session, standing or not."""
        return self._sessions.get(agent)

    async def find(self, agent: str, generation: int, *, within_s: float) -> Session | None:
        """The session with this generation; one that is about to be attached is waited for."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    held = self._sessions.get(agent)
                    if held is not None and held.generation == generation:
                        return held
                    await self._changed.wait()
        except TimeoutError:
            return None

    def of_crew(self, crew: str) -> list[Session]:
        """The sessions of a crew."""
        return [s for s in self._sessions.values() if s.crew == crew]

    def line(self, control: str) -> Line:
        """A line of its own to an instance that has no session yet."""
        return self.lines.take(control)

    @asynccontextmanager
    async def lend(self, agent: model.AgentRow) -> AsyncIterator[Line]:
        """The line of the agent's session, or one of its own where another replica holds the session."""
        session = self._sessions.get(agent.id)
        if session is not None and session.generation == agent.generation:
            yield session.line
            return
        line = self.line(agent.instance.control if agent.instance else "")
        try:
            yield line
        finally:
            await line.close()

    def attach(self, agent: model.AgentRow, line: Line | None = None) -> Session:
        """Hold a session with the agent's present instance (idempotent), over `line` where one is open."""
        held = self._sessions.get(agent.id)
        if held is not None and held.generation >= agent.generation:
            return held
        if held is not None:
            self._end(held)
        if agent.instance is None or self._group is None:
            raise RuntimeError(f"cannot attach {agent.id}: no instance, or sessions have no owner")
        session = Session(
            agent.id, agent.crew, agent.generation, line or self._open_line(agent.instance.control)
        )
        session.task = spawn(self._group, self._attend(session), f"session {agent.id}")
        self._sessions[agent.id] = session
        self._changed.set()
        self._changed = asyncio.Event()
        return session

    def detach(self, agent: str, generation: int) -> None:
        """End the session with this generation, if it is the one that is held."""
        held = self._sessions.get(agent)
        if held is not None and held.generation <= generation:
            del self._sessions[agent]
            self._end(held)

    def detach_crew(self, crew: str) -> None:
        """End the sessions with a crew that another process keeps."""
        for session in self.of_crew(crew):
            self.detach(session.agent, session.generation)

    def _end(self, session: Session) -> None:
        if session.task is not None:
            session.task.cancel()

    async def _attend(self, session: Session) -> None:
        """Keep the stream standing until the session is detached; its break is a hint, never a death."""
        pause_s = RETRY_FIRST_S
        try:
            while True:
                try:
                    async for said in session.line.attend():
                        pause_s = RETRY_FIRST_S
                        await self._take(session, said)
                except FactoryError as error:
                    log.debug("session broke", extra={"agent": session.agent, "error": str(error)})
                session.up.clear()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MAX_S)
        finally:
            session.up.clear()
            await session.line.close()

    async def _take(self, session: Session, said: agent_service_pb2.DeliverResponse) -> None:
        if not session.up.is_set():
            session.up.set()
            for attached in self.on_attached:
                await attached(session)
        if said.HasField("report") and self.on_report is not None:
            self.on_report(session, said.report)
        if said.receipts and self.on_receipts is not None:
            await self.on_receipts(session, said.receipts)
