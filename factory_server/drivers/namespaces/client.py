"""The factory's side of the fork server's socket: requests with deadlines, exits as they come."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from factory_server.core.errors import Unavailable
from factory_server.drivers.namespaces import protocol
from factory_server.drivers.namespaces.protocol import Message

HELLO_MAX_S: Final = 5.0


class RejectedError(Exception):
    """The fork server answered with an error; `kind` is one of the protocol's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(eq=False)
class ForkClient:
    """One connection. After the server hung up, every request fails and `on_lost` was called."""

    on_event: Callable[[Message], None]
    on_lost: Callable[[], None]
    greeting: Message = field(default_factory=dict)
    _socket: socket.socket | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _answers: dict[int, asyncio.Queue[Message]] = field(default_factory=dict)
    _hello: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    _send_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def connect(self, path: Path) -> None:
        """Connect and wait for the greeting; OSError or Unavailable when nobody answers."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._read)
        try:
            async with asyncio.timeout(HELLO_MAX_S):
                await self._hello.wait()
        except TimeoutError:
            self.close()
            raise Unavailable("the sandboxes' fork server does not answer") from None
        if self._socket is None:
            raise ConnectionResetError("the sandboxes' fork server was about to end")

    @property
    def connected(self) -> bool:
        """Whether requests have a chance."""
        return self._socket is not None

    def close(self) -> None:
        """Hang up; whoever waits gets Unavailable."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self.lost.set()
        self._hello.set()
        for answers in self._answers.values():
            answers.put_nowait({"lost": True})

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            packet = self._socket.recv(protocol.MESSAGE_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            greeted = bool(self.greeting)
            self.close()
            if greeted:
                self.on_lost()
            return
        message = protocol.decode(packet)
        if message.get("event") == "hello":
            self.greeting = message
            self._hello.set()
        elif "event" in message:
            self.on_event(message)
        elif (answers := self._answers.get(message["id"])) is not None:
            answers.put_nowait(message)  # bounded: a request is answered by few pages

    async def request(self, op: str, *, deadline_s: float, **body: Any) -> Message:
        """Ask and wait; the pages of a list are joined under `items`."""
        number = next(self._numbers)
        answers: asyncio.Queue[Message] = asyncio.Queue(maxsize=protocol.OUTBOX_MAX)
        self._answers[number] = answers
        try:
            async with asyncio.timeout(deadline_s):
                await self._send(protocol.encode({"id": number, "op": op, **body}))
                return await self._collect(answers)
        except TimeoutError:
            raise Unavailable(f"the fork server did not finish '{op}' within {deadline_s:g} s") from None
        finally:
            del self._answers[number]

    async def _collect(self, answers: asyncio.Queue[Message]) -> Message:
        items: list[Message] = []
        while True:
            answer = await answers.get()
            if "lost" in answer:
                raise Unavailable("the connection to the sandboxes' fork server broke")
            if "error" in answer:
                raise RejectedError(answer["kind"], answer["error"])
            items += answer.get("items", ())
            if not answer.get("more"):
                return {**answer, "items": items}

    async def _send(self, packet: bytes) -> None:
        async with self._send_lock:  # a packet is sent whole, but waits for room must not pile up
            if self._socket is None:
                raise Unavailable("no connection to the sandboxes' fork server")
            try:
                await asyncio.get_running_loop().sock_sendall(self._socket, packet)
            except OSError as error:
                raise Unavailable(f"cannot reach the sandboxes' fork server: {error.strerror}") from error
