"""The factory's HTTP port, asked over MCP as a client would, with one aiohttp session."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.bench import CALL_WITHIN_S, Bench
from bench.loops import Call
from wire.identity import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, STATELESS


@dataclass(frozen=True, slots=True)
class Face:
    """The factory's HTTP port, and how it is asked."""

    session: aiohttp.ClientSession
    url: str
    tls: ssl.SSLContext
    authority: str
    token: Callable[[], str]

    def call(self, path: str, method: str, params: Mapping[str, Any] | None = None) -> Call:
        """A call of this method, again and again."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}})

        async def once() -> None:
            headers = {
                "authorization": f"Bearer {self.token()}",
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": "2025-11-25",
            }
            asked = self.session.post(
                self.url + path, data=body, headers=headers, ssl=self.tls, server_hostname=self.authority
            )
            async with asked as answer:
                said = await answer.json()
                if "result" not in said:
                    raise RuntimeError(f"{method}: {answer.status} {said}")

        return once

    @asynccontextmanager
    async def listen(self, path: str) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
        """A listener to changes of the list, and its next event."""
        method = "subscriptions/listen"
        meta = {META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: {}}
        params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        headers = {
            "authorization": f"Bearer {self.token()}",
            "content-type": "application/json",
            "mcp-protocol-version": STATELESS,
            "mcp-method": method,
        }
        stream = self.session.post(
            self.url + path,
            data=body,
            headers=headers,
            ssl=self.tls,
            server_hostname=self.authority,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=CALL_WITHIN_S),
        )

        async with stream as answer:

            async def event() -> bytes:
                while True:
                    found = await answer.content.readuntil(b"\n\n")
                    if b"data:" in found:
                        return found

            await event()  # what will come
            yield event


@asynccontextmanager
async def open_face(bench: Bench) -> AsyncIterator[Face]:
    """Connect to it."""
    told = bench.stack.client
    directory = bench.stack.home / "pki" / "operator"
    context = ssl.create_default_context(cafile=str(directory / CA_FILE))
    context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
    context.set_alpn_protocols(["http/1.1"])
    url = f"https://127.0.0.1:{bench.stack.ports['factory_http']}"
    timeout = aiohttp.ClientTimeout(total=CALL_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        token = bench.caller.metadata[0][1].removeprefix("Bearer ")
        yield Face(session, url, context, told["authority"], lambda: token)
