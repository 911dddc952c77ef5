"""Serve methods that take a stream: the query makes the first piece, the body's bytes the ones after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from aiohttp import web
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from factory_server.api.http import answers
from factory_server.api.http.app import HttpFace
from factory_server.api.http.bindings import Binding
from factory_server.api.http.context import HttpContext
from factory_server.api.http.decode import Decoder, asked_of
from wire.guarded import GuardedMethod
from wire.policy import Row

BYTES: Final = "application/octet-stream"
PIECE_MAX_BYTES: Final = 256 * 1024


class Upload:
    """One such method: its request is either a head or bytes."""

    def __init__(
        self, face: HttpFace, binding: Binding, row: Row, behaviour: Callable[[Any, Any], Any] | None
    ) -> None:
        self._peers = face.peers
        self._decode = Decoder(binding)
        self._type = GetMessageClass(binding.method.input_type)
        fields: Any = binding.method.input_type.fields
        self._head = next(field.name for field in fields if field.message_type is not None)
        self._bytes = next(field.name for field in fields if field.type == FieldDescriptor.TYPE_BYTES)
        self._guarded = GuardedMethod(
            row, behaviour, self._type.FromString, face.guards, request_streaming=True
        )

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise web.HTTPUnsupportedMediaType(reason=f"send the archive itself as {BYTES}")
        context = HttpContext(request, self._peers)
        return answers.document(await self._guarded.call(self._pieces(request), context))

    async def _pieces(self, request: web.Request) -> AsyncIterator[Any]:
        """The pieces as the method's reader passes them: with the constraints of each looked at."""
        read = self._guarded.stream_deserializer
        assert read is not None  # its requests stream
        head = self._decode(asked_of(request))
        yield read(self._type(**{self._head: head}).SerializeToString())
        async for chunk in request.content.iter_chunked(PIECE_MAX_BYTES):
            yield read(self._type(**{self._bytes: chunk}).SerializeToString())
