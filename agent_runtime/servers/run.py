"""One start of a server: its process, the conversation with it, what it lists, and what it has told since."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent_runtime.offers import Prompt, Resource
from agent_runtime.owner import TaskOwner
from agent_runtime.servers.asking import Desk
from agent_runtime.servers.condition import STOPPED, Down
from agent_runtime.servers.features import linked, prompts_of, resources_of
from agent_runtime.servers.limits import LINKS_MAX, SERVER_GARBAGE_MAX_BYTES, SUBSCRIBED_MAX
from agent_runtime.servers.offer import tools_of
from agent_runtime.servers.peer import Answered, Peer
from agent_runtime.servers.session import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Endless, Session, open_session
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.servers.stdio import Stdio
from agent_runtime.servers.words import Words
from agent_runtime.tools.registry import Tool
from wire.mcp.errors import METHOD_NOT_FOUND
from wire.mcp.revisions import (
    ACKNOWLEDGED,
    LOGGED,
    PROMPTS_CHANGED,
    RESOURCE_UPDATED,
    RESOURCES_CHANGED,
    TOOLS_CHANGED,
)

LIST_MAX_S: Final = 15.0
SUBSCRIPTIONS: Final = "subscriptions"
ALL: Final = frozenset({TOOLS, RESOURCES, PROMPTS})
_TOLD_BY: Final[Mapping[str, frozenset[str]]] = {
    TOOLS_CHANGED: frozenset({TOOLS}),
    RESOURCES_CHANGED: frozenset({RESOURCES}),
    PROMPTS_CHANGED: frozenset({PROMPTS}),
    ACKNOWLEDGED: ALL,  # what changed before it listened, nobody has told
}

Updated = Callable[[str], None]


class Run:
    """`updated` is told which resource's content is another."""

    def __init__(self, spec: ServerSpec, workspace: Path, rank: int, updated: Updated) -> None:
        self._spec = spec
        self._workspace = workspace
        self._rank = rank
        self._updated = updated
        self._words = Words(spec.name, spec.hidden)
        self.desk = Desk(workspace)
        self.stdio = Stdio(self._words, self._receive, self._ended)
        self._peer = Peer(self.stdio.send, self.stdio.send_now, self._notice, self.desk.answer, self._garbage)
        self._garbage_bytes = 0
        self._session: Session | None = None
        self._links: OrderedDict[str, Resource] = OrderedDict()
        self._subscribed: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._changed: set[str] = set()
        self._end: Down | None = None
        self._gone = asyncio.Event()
        self._listener = TaskOwner()
        self.answers = False

    async def start(self) -> None:
        await self.stdio.start(self._spec.argv, self._workspace, self._spec.env)
        self._session = await open_session(self._peer, self.desk)
        self._listen()

    def promises(self, kind: str) -> bool:
        """Whether it offers resources, or prompts, now or later."""
        return self._session is None or self._session.lists(kind)

    async def tools(self) -> tuple[list[Tool], str]:
        return tools_of(self._spec, self._there(), await self._there().list(TOOLS), self._saw)

    async def resources(self) -> tuple[list[Resource], str]:
        """Resources, then templates, which are lists of their own, of which a server may lack one."""
        found: list[Resource] = []
        remarks: list[str] = []
        for kind, key in ((RESOURCES, "uri"), (TEMPLATES, "uriTemplate")):
            listed, remark = await self._listed(kind)
            some, unfit = resources_of(self._spec, self._there(), listed, key, self._rank)
            found += some
            remarks += [remark, unfit]
        return found, "; ".join(filter(None, remarks))

    async def prompts(self) -> tuple[list[Prompt], str]:
        listed, remark = await self._listed(PROMPTS)
        found, unfit = prompts_of(self._spec, self._there(), listed)
        return found, "; ".join(filter(None, (remark, unfit)))

    def link(self, uri: str) -> Resource | None:
        """A resource that a result has pointed to, though no list has it."""
        return self._links.get(uri)

    async def subscribe(self, wanted: Iterable[str]) -> None:
        """Be told of changes of exactly these resources."""
        wished = frozenset(sorted(wanted)[:SUBSCRIBED_MAX])
        session = self._there()
        if wished == self._subscribed or not session.can("resources", "subscribe"):
            return
        if session.stateless:
            self._subscribed = wished
            self._listen()
            return
        for uri in sorted(wished ^ self._subscribed):
            with suppress(Answered):  # it knows best what can be subscribed to
                await session.subscribe(uri, wanted=uri in wished)
            self._subscribed ^= {uri}

    def look_at(self, kind: str) -> None:
        """What is of this kind may be another."""
        self._changed.add(kind)
        self._news.set()

    async def changed(self) -> frozenset[str]:
        """Wait until something may be another; which kinds. Raises `Down` when the server ends."""
        await self._news.wait()
        self._news.clear()
        if self._end is not None:
            raise self._end
        kinds = frozenset(self._changed)
        self._changed.clear()
        return kinds

    async def calm(self, seconds: float) -> None:
        """Wait, unless the server ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._gone.wait()

    def last_words(self) -> str:
        last = self._words.last()
        return f"; it said: {last}" if last else ""

    async def end(self, *, patient: bool) -> None:
        await self._listener.close()
        await self.stdio.end(patient=patient)
        self._peer.end(Down(STOPPED, "the server was stopped"))
        await self._peer.close()
        await self.desk.close()

    def _there(self) -> Session:
        if self._session is None:
            raise Down("HandshakeFailed", "the server was not asked yet")
        return self._session

    async def _listed(self, kind: str) -> tuple[list[dict[str, Any]], str]:
        """A list that a server can do without; where it is endless, what fits."""
        try:
            async with asyncio.timeout(LIST_MAX_S):
                return await self._there().list(kind), ""
        except Endless as endless:
            return endless.found, endless.message
        except Answered as refusal:
            said = "" if refusal.code == METHOD_NOT_FOUND else f"it lists no {kind}: {refusal.message}"
            return [], said
        except TimeoutError:  # many an older server falls silent at a method that it does not know
            return [], f"it lists no {kind}"

    def _listen(self) -> None:
        """A stateless server tells of changes as long as it is asked to."""
        if self._session is not None and self._session.stateless:
            before, self._listener = self._listener, TaskOwner()
            self._listener.spawn(self._hear(self._session, before), f"{self._spec.name} listens")

    async def _hear(self, session: Session, before: TaskOwner) -> None:
        await before.close()
        with suppress(
            Down, Answered
        ):  # its end is noticed elsewhere; without notices its lists stay as they are
            await session.listen(self._subscribed)

    def _saw(self, content: Iterable[Mapping[str, Any]]) -> None:
        """Remember what results point to."""
        for block in content:
            if block.get("type") == "resource_link" and self._spec.resource_scope is not None:
                found = linked(self._spec, self._there(), block, self._rank)
                if found is not None and self._there().lists(RESOURCES):
                    self._links[found.uri] = found
                    self._links.move_to_end(found.uri)
                    if len(self._links) > LINKS_MAX:
                        self._links.popitem(last=False)

    def _receive(self, line: bytes) -> None:
        before = self._garbage_bytes
        self._peer.receive(line)
        if self._garbage_bytes == before:
            self._garbage_bytes = 0

    def _garbage(self, line: bytes) -> None:
        """What is printed to the output and is no message: worth a look in the log, within bounds."""
        self._words.say(line)
        self._garbage_bytes += len(line)
        if self._garbage_bytes > SERVER_GARBAGE_MAX_BYTES:
            self.stdio.fail(Down("NotMcp", "the server's output is no MCP"))

    def _notice(self, method: str, params: Mapping[str, Any]) -> None:
        uri = params.get("uri")
        if method == RESOURCE_UPDATED and isinstance(uri, str):
            self._updated(uri)
        elif method == LOGGED:
            level, data = str(params.get("level", "info")), params.get("data")
            if not self.desk.log(level, data):
                self._words.say(f"{level}: {data if isinstance(data, str) else json.dumps(data)}".encode())
        else:
            for kind in _TOLD_BY.get(method, ()):
                self.look_at(kind)

    def _ended(self, cause: Down) -> None:
        self._end = cause
        self._gone.set()
        self._peer.end(cause)
        self._news.set()
