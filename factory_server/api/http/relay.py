"""Carry HTTP requests to an agent and its answers back: the bytes as they are, no faster than they are read."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from multidict import CIMultiDict

from factory_server.core import model
from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import http_socket
from factory_server.services.reach import Reach
from factory_server.upstream import Answer, NotSent, Upstreams
from wire.identity import FACTORY_AUTHORITY, agent_authority
from wire.policy import Caller

SERVE_MAX_S: Final = 30.0
"""A hibernating agent serves within so long, or the call is refused."""
DEAF_MAX_S: Final = 2.0
"""An agent that serves but has nobody at its HTTP socket is given so long: its row may be older than its end."""
AGAIN_S: Final = 0.05
CALL_MAX_S: Final = 3600.0
WRITE_MAX_S: Final = 60.0
"""A client that reads nothing for so long is gone, though its connection is there: it holds one of the agent's."""
EVENTS: Final = "text/event-stream"
HOSTS_MAX: Final = 256
"""Hosts and origins whose reading is remembered."""
CALLER: Final = b"x-hyperfactory-caller"
SCOPES: Final = b"x-hyperfactory-scopes"
OURS: Final = frozenset({FACTORY_AUTHORITY, "localhost", "127.0.0.1", "::1"})
"""Hosts by which the factory is called."""

_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_FORWARDED: Final = frozenset(
    {name.encode() for name in _HOP}
    | {b"host", b"origin", b"content-length", b"expect", b"authorization", b"proxy-authorization", b"cookie"}
)
"""What ends here: how this connection is kept, and what proves who calls to us and to nobody else."""
_OUR_PREFIXES: Final = (b"x-hyperfactory-", b"x-forwarded-")
_NOT_RETURNED: Final = _HOP | {"content-length"}


@dataclass(frozen=True, slots=True)
class Carried:
    """A request as the agent gets it, but for the names that depend on which agent it is."""

    method: str
    target: str
    headers: Iterable[tuple[bytes, bytes]]
    caller: Caller
    body: bytes
    instead: Mapping[bytes, bytes]
    """Headers (in lower case) that are other ones for the agent."""

    def without(self, name: bytes) -> Carried:
        """The same without one header (in lower case)."""
        return replace(self, headers=[(n, v) for n, v in self.headers if n.lower() != name])

    def to(self, agent: model.AgentRow) -> bytes:
        """Its bytes."""
        authority = agent_authority(agent.name, agent.crew)
        lines = [f"{self.method} {self.target} HTTP/1.1".encode()]
        host, origin = b"", None
        named = _connection_names(self.headers)
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"host":
                host = value
            elif lower == b"origin":
                origin = value
            elif lower not in _NOT_FORWARDED and lower not in named and not lower.startswith(_OUR_PREFIXES):
                lines.append(name + b": " + self.instead.get(lower, value))
        lines.append(b"host: " + (authority.encode() if hostname(b"//" + host) in OURS else host))
        if origin is not None:
            own = hostname(origin) == FACTORY_AUTHORITY
            lines.append(b"origin: " + (b"https://" + authority.encode() if own else origin))
        lines.append(CALLER + b": " + self.caller.spiffe.encode())
        lines.append(SCOPES + b": " + " ".join(sorted(self.caller.scopes)).encode())
        lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


def carried(
    request: web.Request,
    target: str,
    caller: Caller,
    body: bytes,
    instead: Mapping[bytes, bytes] | None = None,
) -> Carried:
    """This request, for an agent."""
    query = request.rel_url.raw_query_string
    whole = f"{target}?{query}" if query else target
    return Carried(request.method, whole, request.raw_headers, caller, body, instead or {})


@functools.lru_cache(HOSTS_MAX)
def hostname(url: bytes) -> str:
    """The host in a URL, or in `//` and a Host header; empty where there is none."""
    try:
        return (urlsplit(url.decode("latin-1")).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _connection_names(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that the sender says are about its connection only."""
    said = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(part.strip().lower() for value in said for part in value.split(b","))


class Relay:
    """Asks agents, and waits for those that sleep."""

    def __init__(self, reach: Reach, upstreams: Upstreams) -> None:
        self._reach = reach
        self._upstreams = upstreams

    async def ask(self, agent: str, message: Callable[[model.AgentRow], bytes]) -> Answer:
        """The agent's answer, its head there already; to be closed. What certainly was not begun is sent again:
        nobody took it, or the instance was asleep. NotFound, Refused, Unavailable."""
        ends = time.monotonic() + SERVE_MAX_S
        deaf_until = 0.0
        anew = False
        while True:
            row = await self._reach.serving(agent, within_s=ends - time.monotonic(), anew=anew)
            try:
                answer = await self._sent(row, message)
                if answer is not None:
                    return answer
            except NotSent:
                now = time.monotonic()
                deaf_until = deaf_until or now + DEAF_MAX_S
                if now >= min(deaf_until, ends):
                    raise
            except Unavailable:
                if time.monotonic() >= ends or not await self._reach.slept(row):
                    raise
            anew = True
            await asyncio.sleep(AGAIN_S)

    async def tell(self, row: model.AgentRow, message: bytes, within_s: float) -> int:
        """Send a message to this very instance, and wake nobody; the status of its answer. Unavailable."""
        if row.instance is None:
            raise NotSent(f"agent '{row.name}' has no instance")
        try:
            async with asyncio.timeout(within_s):
                answer = await self._upstreams.send(http_socket(row.instance.direct), message)
                try:
                    status, _ = await answer.head()
                    await answer.start()
                finally:
                    answer.close()
        except TimeoutError:
            raise Unavailable(f"agent '{row.name}' did not answer within {within_s:g} s") from None
        return status

    async def _sent(self, row: model.AgentRow, message: Callable[[model.AgentRow], bytes]) -> Answer | None:
        """The answer; None where the instance takes no work, as it is about to fall asleep."""
        if row.instance is None:
            raise NotSent(f"agent '{row.name}' has no instance")
        answer = await self._upstreams.send(http_socket(row.instance.direct), message(row))
        try:
            async with asyncio.timeout(CALL_MAX_S):
                status, _ = await answer.head()
                drowsy = status == 503 and b'"DRAINING"' in await answer.start()
        except TimeoutError:
            answer.close()
            raise Unavailable(f"agent '{row.name}' did not answer within {CALL_MAX_S:g} s") from None
        except BaseException:
            answer.close()
            raise
        if not drowsy:
            return answer
        answer.close()
        return None


Change = Callable[[bytes], bytes]
"""What becomes of a piece of a stream; of nothing, at its end, what was held back."""


async def relayed(
    request: web.Request,
    answer: Answer,
    change: Change | None = None,
    *,
    without: frozenset[str] = frozenset(),
) -> web.StreamResponse:
    """Pass the answer on, without some of its headers; where it is a stream of events, as `change` makes of it. It
    is closed in any case, and with it the call of a client that went away."""
    try:
        status, headers = await answer.head()
        dropped = _NOT_RETURNED | without
        kept = CIMultiDict((name, value) for name, value in headers if name not in dropped)
        if not kept.get("content-type", "").startswith(EVENTS):
            change = None
        body = answer.whole()
        if body is not None:
            whole = body if change is None else change(body) + change(b"")
            return web.Response(status=status, headers=kept, body=whole)
        response = web.StreamResponse(status=status, headers=kept)
        await response.prepare(request)
        while data := await answer.read():
            if data := data if change is None else change(data):
                await _write(response, data)
        if change is not None and (rest := change(b"")):
            await _write(response, rest)
        await response.write_eof()
        return response
    finally:
        answer.close()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_MAX_S):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None
