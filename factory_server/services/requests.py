"""Name a request, so that its repeat is known for what it is."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message

from factory_server.core.model import RequestKey


def key_of(actor: str, method: str, request_id: str, request: Message) -> RequestKey:
    """The idempotency key: (actor, method, request id) and a hash of the whole request.

    Deterministic serialisation suffices as canonical form: one build of protobuf hashes its own messages,
    map entries sorted; a difference after an upgrade refuses a repeat rather than running it twice.
    """
    body = request.SerializeToString(deterministic=True)
    return RequestKey(actor, method, request_id, hashlib.sha256(body).digest())
