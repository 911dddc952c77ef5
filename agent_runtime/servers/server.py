"""Keep one server serving: start it, offer what it lists, notice its end, start it again after a growing pause."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_runtime.capabilities import Capabilities
from agent_runtime.offers import Resource
from agent_runtime.servers.condition import SERVING, STARTING, STOPPED, Condition, Down
from agent_runtime.servers.limits import CALM_FIRST_S, CALM_MAX_S
from agent_runtime.servers.peer import Answered
from agent_runtime.servers.run import SUBSCRIPTIONS, Run
from agent_runtime.servers.session import PROMPTS, RESOURCES, TOOLS
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.servers.words import conceal
from wire.errors import AlreadyExists

log = logging.getLogger(__name__)

PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
LOOK_MAX_S: Final = 40.0
NAMES_SHOWN: Final = 3
_WISHES: Final = frozenset({SUBSCRIPTIONS})


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
    """One server of the profile, through all its starts. `rank` is its place in the profile; `shown` is called
    when it offers other resources or prompts, as those behind it may offer more or less then."""

    def __init__(
        self,
        spec: ServerSpec,
        workspace: Path,
        offered: Capabilities,
        rank: int = 0,
        shown: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.condition = Condition(spec.condition, STARTING)
        self._workspace = workspace
        self._offered = offered
        self._rank = rank
        self._shown = shown
        self._alone = asyncio.Lock()
        self._run: Run | None = None
        self._remarks: dict[str, str] = {}
        self.hurry = False
        """Its end need not be gentle: the sandbox goes with it."""

    @property
    def pid(self) -> int:
        return self._run.stdio.pid if self._run is not None else 0

    @property
    def waiting(self) -> int:
        """How many of its calls wait for their callers to come back with answers."""
        return self._run.desk.waiting if self._run is not None else 0

    def promises(self, kind: str) -> bool:
        """Whether it may offer resources, or prompts, as far as is known."""
        scope = self.spec.resource_scope if kind == RESOURCES else self.spec.prompt_scope
        return scope is not None and (self._run is None or self._run.promises(kind))

    def link(self, uri: str) -> Resource | None:
        return self._run.link(uri) if self._run is not None else None

    def look_at(self, kind: str) -> None:
        if self._run is not None:
            self._run.look_at(kind)

    def retell(self) -> None:
        """Say anew what it cannot offer."""
        if self.condition.serving:
            self._tell(SERVING, self._remark())

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
                    except Exception:
                        log.exception("cannot keep a server", extra={"server": self.spec.name})
                        self._tell("Failed", "a defect of the agent's; its log tells more")
                    await asyncio.sleep(pauses.after(time.monotonic() - began_s))
            finally:
                self._tell(STOPPED, "")

    async def _serve(self) -> None:
        """Start and serve until the server ends; always raises."""
        if self.spec.missing:
            raise Down("SecretMissing", f"secret '{self.spec.missing[0]}' does not exist")
        run = self._run = Run(self.spec, self._workspace, self._rank, self._offered.updated)
        try:
            async with asyncio.timeout(self.spec.start_max_s):
                await run.start()
                await self._look_at_tools(run)
            run.answers = True
            await self._watch(run)
        except TimeoutError:
            text = f"the server did not answer within {self.spec.start_max_s:g} s{run.last_words()}"
            raise Down("StartTimeout", text) from None
        except Answered as refusal:
            raise Down("HandshakeFailed", f"the server lists no tools: {refusal.message}") from refusal
        finally:
            self._withdraw()
            await run.end(patient=run.answers and not self.hurry)
            self._run = None

    async def _watch(self, run: Run) -> None:
        """Offer what is there now, as often as it may be another."""
        kinds = frozenset({RESOURCES, PROMPTS, SUBSCRIPTIONS})
        pause_s, looked_s, early = CALM_FIRST_S, 0.0, False
        while True:
            before = self._offered.revision
            for kind in sorted(kinds):
                await self._look(run, kind)
            if kinds != _WISHES:
                vain = early and self._offered.revision == before
                pause_s = min(pause_s * 2, CALM_MAX_S) if vain else CALM_FIRST_S
                looked_s = time.monotonic()
            kinds = await run.changed()
            early_s = looked_s + pause_s - time.monotonic()
            early = kinds != _WISHES and early_s > 0
            if early:  # the server tells of changes faster than anybody needs to know
                await run.calm(early_s)

    async def _look(self, run: Run, kind: str) -> None:
        """A server that is too busy to say keeps what it had until its next notice."""
        try:
            async with asyncio.timeout(LOOK_MAX_S):
                await self._take(run, kind)
        except (TimeoutError, Answered) as error:
            extra = {"server": self.spec.name, "kind": kind, "error": repr(error)}
            log.warning("a server does not list what it has", extra=extra)

    async def _take(self, run: Run, kind: str) -> None:
        source = self.spec.condition
        if kind == TOOLS:
            await self._look_at_tools(run)
        elif kind == RESOURCES and self.spec.resource_scope is not None:
            resources, self._remarks[kind] = await run.resources()
            self._offered.resources.lend(source, resources, self._rank)
            run.look_at(SUBSCRIPTIONS)
            self._shown()
        elif kind == PROMPTS and self.spec.prompt_scope is not None:
            prompts, self._remarks[kind] = await run.prompts()
            self._offered.prompts.lend(source, prompts, self._rank)
            self._shown()
        elif kind == SUBSCRIPTIONS:
            await run.subscribe(uri for uri in self._offered.wishes() if self._has(uri))

    async def _look_at_tools(self, run: Run) -> None:
        tools, self._remarks[TOOLS] = await run.tools()
        try:
            self._offered.tools.replace(self.spec.condition, tools)
        except AlreadyExists as error:
            raise Down("NameTaken", error.message) from error
        self._tell(SERVING, self._remark())

    def _has(self, uri: str) -> bool:
        """Whether a resource is this server's."""
        found = self._offered.find(uri)
        return found is not None and found.rank == self._rank

    def _withdraw(self) -> None:
        """Nothing of it can be used now."""
        source = self.spec.condition
        self._offered.tools.replace(source, ())
        self._offered.resources.withhold(source)
        self._offered.prompts.withhold(source)
        self._remarks.clear()

    def _remark(self) -> str:
        """What it has and the agent does not offer."""
        said = [remark for _, remark in sorted(self._remarks.items()) if remark]
        for kind, shelf in (("resource", self._offered.resources), ("prompt", self._offered.prompts)):
            if lost := shelf.lost(self.spec.condition):
                names = ", ".join(f"'{key[:80]}'" for key in lost[:NAMES_SHOWN])
                said.append(f"{len(lost)} {kind}s are another's: {names}")
        return "; ".join(said)

    def _tell(self, reason: str, message: str) -> None:
        following = self.condition.after(reason, conceal(message, self.spec.hidden))
        if following is self.condition:
            return
        self.condition = following
        level = logging.INFO if reason in (SERVING, STARTING, STOPPED) else logging.WARNING
        extra = {"server": self.spec.name, "reason": reason, "why": following.message}
        log.log(level, "server", extra=extra)
        self._offered.changed()
