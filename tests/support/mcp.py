"""A small HTTP and MCP client for tests over a unix socket, byte for byte, so that tests may also send rubbish."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wire.identity import operator_spiffe
from wire.mcp.checks import encoded
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, NAMED_BY, STATELESS

CODER = {"x-hyperfactory-caller": operator_spiffe("ada"), "x-hyperfactory-scopes": "coder"}
REVIEWER = {**CODER, "x-hyperfactory-scopes": "reviewer"}
WITHIN_S = 10.0


@dataclass
class Answer:
    """A response: its status, its headers by lower-case name, its body whole."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def messages(self) -> list[Any]:
        """The messages of a stream of events."""
        return [json.loads(line[6:]) for line in self.body.decode().split("\n") if line.startswith("data: ")]


class Stream:
    """A response that goes on."""

    def __init__(self, reader: asyncio.StreamReader, answer: Answer) -> None:
        self.answer = answer
        self._reader = reader

    async def chunk(self) -> bytes:
        """The next chunk; empty at the end."""
        size = int(await self._reader.readline(), 16)
        data = await self._reader.readexactly(size + 2)
        return data[:-2]

    async def message(self) -> Any:
        """The next message, past comments."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                text = (await self.chunk()).decode()
                for line in text.split("\n"):
                    if line.startswith("data: "):
                        return json.loads(line[6:])


@dataclass
class Http:
    """Sends requests to a socket, each over a connection of its own."""

    path: Path

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            yield reader, writer
        finally:
            writer.close()

    async def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        async with self.stream(method, path, headers, body) as stream:
            answer = stream.answer
            if answer.headers.get("transfer-encoding") == "chunked":
                async with asyncio.timeout(WITHIN_S):
                    while chunk := await stream.chunk():
                        answer.body += chunk
            return answer

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncIterator[Stream]:
        """A response while it comes; leaving goes away from it."""
        async with self.connect() as (reader, writer):
            writer.write(request(method, path, headers, body))
            async with asyncio.timeout(WITHIN_S):
                answer = await read_answer(reader)
            yield Stream(reader, answer)


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1"]
    if not any(name.lower() == "host" for name in headers):
        lines.append("host: localhost")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Its head, and its body where it has a length."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in lines[1:-2])
    named = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines[1:-2]}
    answer = Answer(int(lines[0].split(" ")[1]), {**headers, **named})
    answer.body = await reader.readexactly(int(named.get("content-length", 0)))
    return answer


class McpFailure(Exception):
    """An error response."""

    def __init__(self, code: int, message: str, data: Any, status: int) -> None:
        super().__init__(f"{code} {message}")
        self.code, self.message, self.data, self.status = code, message, data, status


class Mcp:
    """A client of the stateless revision."""

    def __init__(
        self, path: Path, who: Mapping[str, str] = CODER, capabilities: Mapping[str, Any] | None = None
    ) -> None:
        self.http = Http(path)
        self.who = dict(who)
        self.capabilities = dict(capabilities or {})
        self._ids = itertools.count(1)

    def compose(self, method: str, params: Mapping[str, Any], **meta: Any) -> tuple[dict[str, str], bytes]:
        """The headers and the body of a request that is right."""
        about = {META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: self.capabilities, **meta}
        message = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": method,
            "params": {**params, "_meta": about},
        }
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": STATELESS,
            "mcp-method": method,
            **self.who,
        }
        if method in NAMED_BY:
            headers["mcp-name"] = encoded(str(params.get(NAMED_BY[method])))
        return headers, json.dumps(message).encode()

    async def ask(self, method: str, **params: Any) -> Any:
        """The result; `McpFailure` for an error."""
        headers, body = self.compose(method, params)
        answer = await self.http.send("POST", "/mcp", headers, body)
        last = answer.messages()[-1] if "event-stream" in answer.headers["content-type"] else answer.json()
        if "error" in last:
            error = last["error"]
            raise McpFailure(error["code"], error["message"], error.get("data"), answer.status)
        return last["result"]

    async def call(self, name: str, **arguments: Any) -> Any:
        return await self.ask("tools/call", name=name, arguments=arguments)
