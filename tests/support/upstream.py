"""A strict scripted model behind an OpenAI-compatible endpoint: each request must be the one that is due.

A request off the script is answered with 500 and noted, so that a test cannot pass by a retry that hides it;
`Upstream.check()` fails on such notes and on turns that nobody asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass
class Turn:
    """One exchange: what the request must be like, and what is answered, event by event."""

    expect: Callable[[Body], bool] = lambda body: True
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: Sequence[Any] = ()
    """JSON objects of a stream; a str goes as it is; a float is a pause in seconds; None drops the connection."""
    body: Any = None
    """The whole answer instead of a stream: JSON, or a str as it is."""
    path: str = "/v1/chat/completions"


def delta(text: str) -> Body:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def call(name: str, arguments: str, *, index: int = 0, id: str = "call-x") -> list[Body]:
    """A tool call as endpoints stream it: name first, arguments in pieces."""
    half = len(arguments) // 2

    def part(**function: str) -> Body:
        return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "function": function}]}}]}

    first = part(name=name, arguments="")
    first["choices"][0]["delta"]["tool_calls"][0] |= {"id": id, "type": "function"}
    return [first, part(arguments=arguments[:half]), part(arguments=arguments[half:])]


def end(reason: str = "stop", read: int = 7, written: int = 3) -> list[Any]:
    return [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written}},
        "data: [DONE]\n\n",
    ]


def says(text: str, **more: Any) -> Turn:
    """A turn that streams a text, word by word."""
    words = [delta(word) for word in text.split(" ")]
    for word in words[1:]:
        word["choices"][0]["delta"]["content"] = " " + word["choices"][0]["delta"]["content"]
    return Turn(events=[*words, *end()], **more)


class Upstream:
    """The server's script and what it has seen."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = list(turns)
        self.seen: list[Body] = []
        self.authorizations: list[str] = []
        self.times_s: list[float] = []
        self.wrong: list[str] = []
        self.gone = asyncio.Event()
        """A client went away while it was answered."""
        self.url = ""

    def check(self) -> None:
        assert not self.wrong, self.wrong
        assert not self.turns, f"{len(self.turns)} turns were not asked for"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path, headers, body = await _request(reader)
            self.seen.append(body)
            self.authorizations.append(headers.get("authorization", ""))
            self.times_s.append(asyncio.get_running_loop().time())
            await self._answer(self._due(path, body), writer)
        except OSError:
            self.gone.set()
        except asyncio.CancelledError:
            return  # the test has ended; Python 3.11 takes a cancelled handler for a broken one
        finally:
            writer.close()

    def _due(self, path: str, body: Body) -> Turn:
        if self.turns and self.turns[0].path == path and self.turns[0].expect(body):
            return self.turns.pop(0)
        self.wrong.append(f"{path}: {json.dumps(body)[:500]}")
        return Turn(status=500, body={"error": {"message": "off the script"}})

    async def _answer(self, turn: Turn, writer: asyncio.StreamWriter) -> None:
        streamed = turn.body is None and turn.status == 200
        kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
        head = {"Content-Type": kind, **turn.headers}
        if not streamed:
            body = (turn.body if isinstance(turn.body, str) else json.dumps(turn.body)).encode()
            writer.write(_head(turn.status, {**head, "Content-Length": str(len(body))}) + body)
            await writer.drain()
            return
        writer.write(_head(turn.status, {**head, "Transfer-Encoding": "chunked"}))
        for event in turn.events:
            await self._event(event, writer)
            if event is None:
                return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _event(self, event: Any, writer: asyncio.StreamWriter) -> None:
        match event:
            case None:
                writer.transport.abort()
            case float():
                await asyncio.sleep(event)
            case _:
                text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
                data = text.encode()
                writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                await writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} as scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], Body]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first.split(" ")[1], headers, json.loads(await reader.readexactly(int(headers["content-length"])))


@asynccontextmanager
async def upstream(
    *turns: Turn,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    bound: socket.socket | None = None,
) -> AsyncIterator[Upstream]:
    """A server that plays these turns, on `bound` if given; checked at the end unless the test fails first."""
    model = Upstream(turns)
    place: dict[str, Any] = {"host": host, "port": 0} if bound is None else {"sock": bound}
    server = await asyncio.start_server(model._serve, ssl=tls, **place)
    port = server.sockets[0].getsockname()[1]
    model.url = f"{'https' if tls else 'http'}://{'localhost' if tls else host}:{port}/v1"
    try:
        yield model
        model.check()
    finally:
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await server.wait_closed()
