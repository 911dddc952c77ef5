"""Sessions of the handshake era at a crew's endpoint: what each client said of itself, and what is open with it.

A session is only a memory, of this process: it may be forgotten at any time, and its client then begins a new one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from factory_server.core import model
from factory_server.core.errors import Exhausted
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Id, Json
from wire.mcp.revisions import HANDSHAKE
from wire.policy import Caller

SESSIONS_MAX: Final = 1024
OF_CALLER_MAX: Final = 256
IDLE_MAX_S: Final = 3600.0
"""As long as agents remember theirs."""
CLIENT_MAX_BYTES: Final = 16 * 1024
"""Of what a client says of itself: it is kept, and told to each agent that is called."""
CALLS_MAX: Final = 1024
"""Of one session at once."""
QUESTIONS_MAX: Final = 64
"""That wait for one client's answers."""


@dataclass(eq=False, slots=True)
class AgentSession:
    """The session at one agent that stands behind a client's."""

    row: model.AgentRow
    """The agent as it was when the session was begun there."""
    caller: Caller
    id: str
    level: str = ""
    """The log level that the agent was told."""
    calls: int = 0


class Question(NamedTuple):
    """What an agent has asked the client in the midst of a call: where the answer goes, and under which id."""

    at: AgentSession
    id: Id
    call: object


@dataclass(eq=False, slots=True)
class Session:
    """One client's. `capabilities` and `info` are as it said them."""

    id: str
    spiffe: str
    crew: str
    revision: str
    capabilities: Json
    info: Json
    level: str = ""
    at_agents: dict[str, AgentSession] = field(default_factory=dict)
    opening: dict[str, asyncio.Lock] = field(default_factory=dict)
    used_s: float = field(default_factory=time.monotonic)
    ended: bool = False
    _running: dict[Id, asyncio.Event] = field(default_factory=dict)
    _questions: dict[str, Question] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether a call is on its way."""
        return bool(self._running)

    @property
    def tells_agents(self) -> bool:
        """Whether agents must know this client: it can be asked back, or wants to hear more or less."""
        return bool(self.capabilities) or bool(self.level)

    @contextmanager
    def running(self, identifier: Id) -> Iterator[asyncio.Event]:
        """While a request runs; the event is set when the client does not want it any more."""
        if len(self._running) >= CALLS_MAX:
            raise Exhausted("the session has too many calls already", quota="calls of a session")
        cancelled = self._running.setdefault(identifier, asyncio.Event())
        try:
            yield cancelled
        finally:
            self._running.pop(identifier, None)

    def cancel(self, identifier: Any) -> None:
        """Stop what the client does not want any more. True is no 1."""
        if type(identifier) in (str, int) and (running := self._running.get(identifier)):
            running.set()

    def asked(self, at: AgentSession, identifier: Id, call: object) -> str:
        """Under which id the client is asked: two agents may choose the same one. Exhausted."""
        if len(self._questions) >= QUESTIONS_MAX:
            raise Exhausted("the agents ask too much at once", quota="questions of a session")
        ours = secrets.token_hex(16)
        self._questions[ours] = Question(at, identifier, call)
        return ours

    def taken_back(self, at: AgentSession, identifier: Any) -> str | None:
        """Our id of a question that the agent does not ask any more; None for one that is not open."""
        for ours, question in self._questions.items():
            if question.at is at and question.id == identifier:
                del self._questions[ours]
                return ours
        return None

    def answered(self, identifier: Id | None) -> Question | None:
        """The question that this answers; None where nobody waits for it any more."""
        return self._questions.pop(str(identifier), None)

    def forget_questions(self, call: object) -> None:
        """The call that asked them is over."""
        for ours in [ours for ours, question in self._questions.items() if question.call is call]:
            del self._questions[ours]

    def end(self) -> None:
        """Whatever runs in it is not wanted any more."""
        self.ended = True
        for cancelled in self._running.values():
            cancelled.set()
        self._questions.clear()


class Sessions:
    """A bounded number: of the caller who has most of them the one goes that was unused for longest."""

    def __init__(self, forget: Callable[[Session], None]) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._forget = forget

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, spiffe: str, crew: str, params: Mapping[str, Any]) -> Session:
        """A new one, as `initialize` asks for it. `McpError`, Exhausted."""
        self._forget_idle()
        own = [session for session in self._sessions.values() if session.spiffe == spiffe]
        if len(own) >= OF_CALLER_MAX:
            self._make_room(own)
        if len(self._sessions) >= SESSIONS_MAX:
            self._make_room(crowd_first(self._sessions.values()))
        session = _session(secrets.token_hex(16), spiffe, crew, params)
        self._sessions[session.id] = session
        return session

    def get(self, identifier: str, spiffe: str, crew: str) -> Session | None:
        """The session of this caller with this crew; another's is nobody's business."""
        session = self._sessions.get(identifier)
        if session is None or (session.spiffe, session.crew) != (spiffe, crew):
            return None
        now_s = time.monotonic()
        if _is_idle(session, now_s):
            self.end(session)
            return None
        session.used_s = now_s
        self._sessions.move_to_end(identifier)
        return session

    def end(self, session: Session) -> None:
        """Forget it, and what stands behind it."""
        self._sessions.pop(session.id, None)
        session.end()
        self._forget(session)

    def of_crew(self, crew: str) -> list[Session]:
        """Those with one crew."""
        return [session for session in self._sessions.values() if session.crew == crew]

    def end_crew(self, crew: str) -> None:
        """The crew is gone."""
        for session in self.of_crew(crew):
            self.end(session)

    def _make_room(self, sessions: Iterable[Session]) -> None:
        oldest = next((session for session in sessions if not session.busy), None)
        if oldest is None:
            raise Exhausted("every session that may be has a call on its way", quota="sessions")
        self.end(oldest)

    def _forget_idle(self) -> None:
        now_s = time.monotonic()
        for session in [session for session in self._sessions.values() if _is_idle(session, now_s)]:
            self.end(session)


def crowd_first(sessions: Iterable[Session]) -> list[Session]:
    """In their order, but first those of the caller who has most: nobody's new ones cost another one theirs."""
    known = list(sessions)
    counts = Counter(session.spiffe for session in known)
    return sorted(known, key=lambda session: -counts[session.spiffe])


def _is_idle(session: Session, now_s: float) -> bool:
    return now_s - session.used_s > IDLE_MAX_S and not session.busy


def _session(identifier: str, spiffe: str, crew: str, params: Mapping[str, Any]) -> Session:
    version = params.get("protocolVersion")
    if not isinstance(version, str):
        raise invalid_params("initialize needs protocolVersion")
    capabilities, info = params.get("capabilities", {}), params.get("clientInfo", {})
    if not isinstance(capabilities, dict) or not isinstance(info, dict):
        raise invalid_params("capabilities and clientInfo are objects")
    if len(json.dumps([capabilities, info])) > CLIENT_MAX_BYTES:
        raise invalid_params(f"a client says at most {CLIENT_MAX_BYTES} bytes of itself")
    revision = version if version in HANDSHAKE else HANDSHAKE[0]
    return Session(identifier, spiffe, crew, revision, capabilities, info)
