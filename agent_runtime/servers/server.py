"""Keep one server serving: start it, offer its tools, notice its end, start it again after a growing pause."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent_runtime.owner import TaskOwner
from agent_runtime.servers.condition import SERVING, STARTING, STOPPED, Condition, Down
from agent_runtime.servers.offer import tools_of
from agent_runtime.servers.peer import Answered, Peer
from agent_runtime.servers.session import Session, open_session
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.servers.stdio import Stdio
from agent_runtime.servers.words import Words, conceal
from agent_runtime.tools.registry import Tool
from wire.errors import AlreadyExists
from wire.mcp.revisions import ACKNOWLEDGED, TOOLS_CHANGED

log = logging.getLogger(__name__)

PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
LIST_MAX_S: Final = 30.0

Offer = Callable[[str, Sequence[Tool]], None]
"""Replaces all tools of a source by these."""


@dataclass(slots=True)
class Pauses:
    """How long to wait before the next start. A server that served for a while begins anew."""

    next_s: float = PAUSE_FIRST_S

    def after(self, served_s: float) -> float:
        """With jitter, so that several servers of one cause do not start at once for ever."""
        if served_s >= HEALTHY_AFTER_S:
            self.next_s = PAUSE_FIRST_S
        pause_s = self.next_s
        self.next_s = min(pause_s * 2, PAUSE_MAX_S)
        return pause_s * random.uniform(0.75, 1.0)


class Server:
    """One server of the profile, through all its starts. `offer` shows its tools, `changed` its condition."""

    def __init__(self, spec: ServerSpec, workspace: Path, offer: Offer, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.condition = Condition(spec.condition, STARTING)
        self._workspace = workspace
        self._offer = offer
        self._changed = changed
        self._alone = asyncio.Lock()
        self._run: _Run | None = None
        self.hurry = False
        """Its end need not be gentle: the sandbox goes with it."""

    @property
    def pid(self) -> int:
        return self._run.stdio.pid if self._run is not None else 0

    async def keep(self) -> None:
        """Serve until cancelled."""
        async with self._alone:  # who was stopped may still be on its way out
            self.hurry = False
            self._tell(STARTING, "")
            pauses = Pauses()
            try:
                while True:
                    began_s = time.monotonic()
                    try:
                        await self._serve()
                    except Down as down:
                        self._tell(down.reason, down.message)
                    await asyncio.sleep(pauses.after(time.monotonic() - began_s))
            finally:
                self._tell(STOPPED, "")

    async def _serve(self) -> None:
        """Start and serve until the server ends; always raises."""
        if self.spec.missing:
            raise Down("SecretMissing", f"secret '{self.spec.missing[0]}' does not exist")
        run = self._run = _Run(self.spec)
        try:
            async with asyncio.timeout(self.spec.start_max_s):
                await run.start(self._workspace)
                tools, remark = await run.tools()
            self._show(tools, remark)
            run.answers = True
            while True:
                await run.changed()
                await self._look_again(run)
        except TimeoutError:
            text = f"the server did not answer within {self.spec.start_max_s:g} s{run.last_words()}"
            raise Down("StartTimeout", text) from None
        except Answered as refusal:
            raise Down("HandshakeFailed", f"the server lists no tools: {refusal.message}") from refusal
        finally:
            self._offer(self.spec.condition, ())
            await run.end(patient=run.answers and not self.hurry)
            self._run = None

    async def _look_again(self, run: _Run) -> None:
        """Offer what is there now; a server that is too busy to say keeps what it had until its next notice."""
        try:
            async with asyncio.timeout(LIST_MAX_S):
                tools, remark = await run.tools()
        except (TimeoutError, Answered) as error:
            extra = {"server": self.spec.name, "error": repr(error)}
            log.warning("a server does not list its tools", extra=extra)
            return
        self._show(tools, remark)

    def _show(self, tools: Sequence[Tool], remark: str) -> None:
        try:
            self._offer(self.spec.condition, tools)
        except AlreadyExists as error:
            raise Down("NameTaken", error.message) from error
        self._tell(SERVING, remark)

    def _tell(self, reason: str, message: str) -> None:
        following = self.condition.after(reason, conceal(message, self.spec.hidden))
        if following is self.condition:
            return
        self.condition = following
        level = logging.INFO if reason in (SERVING, STARTING, STOPPED) else logging.WARNING
        extra = {"server": self.spec.name, "reason": reason, "why": following.message}
        log.log(level, "server", extra=extra)
        self._changed()


class _Run:
    """One start of a server: its process, and the conversation with it."""

    def __init__(self, spec: ServerSpec) -> None:
        self._spec = spec
        self._words = Words(spec.name, spec.hidden)
        self.stdio = Stdio(self._words, self._receive, self._ended)
        self._peer = Peer(self.stdio.send, self.stdio.send_now, self._notice)
        self._session: Session | None = None
        self._news = asyncio.Event()
        self._end: Down | None = None
        self._listener = TaskOwner()
        self.answers = False

    async def start(self, workspace: Path) -> None:
        await self.stdio.start(self._spec.argv, workspace, self._spec.env)
        self._session = await open_session(self._peer)
        if self._session.stateless:
            self._listener.spawn(self._listen(self._session), f"{self._spec.name} listens")

    async def tools(self) -> tuple[list[Tool], str]:
        if self._session is None:
            raise Down("HandshakeFailed", "the server was not asked yet")
        return tools_of(self._spec, self._session, await self._session.list_tools())

    async def changed(self) -> None:
        """Wait until the list of tools may be another. Raises `Down` when the server ends."""
        await self._news.wait()
        self._news.clear()
        if self._end is not None:
            raise self._end

    def last_words(self) -> str:
        last = self._words.last()
        return f"; it said: {last}" if last else ""

    async def end(self, *, patient: bool) -> None:
        await self._listener.close()
        await self.stdio.end(patient=patient)
        self._peer.end(Down(STOPPED, "the server was stopped"))

    async def _listen(self, session: Session) -> None:
        with suppress(
            Down, Answered
        ):  # its end is noticed elsewhere; without notices its list stays as it is
            await session.listen()

    def _receive(self, line: bytes) -> None:
        self._peer.receive(line)

    def _notice(self, method: str, _params: Any) -> None:
        if method in (TOOLS_CHANGED, ACKNOWLEDGED):  # what changed before it listened, nobody has told
            self._news.set()

    def _ended(self, cause: Down) -> None:
        self._end = cause
        self._peer.end(cause)
        self._news.set()
