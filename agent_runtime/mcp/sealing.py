"""State that a tool hands to its caller and takes back: sealed, so that it comes back as it was or not at all."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from typing import Final

from agent_runtime.mcp.limits import STATE_MAX_CHARS
from wire.mcp.errors import McpError, invalid_params

_MAC_BYTES: Final = 16


class Sealer:
    """Seals for one instance: its successor takes no state of it, and the caller begins anew."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def seal(self, state: str, purpose: str) -> str:
        """`purpose` says for which call of whom it is good."""
        data = state.encode()
        if len(data) > STATE_MAX_CHARS:
            raise McpError(-32603, "the tool's state is too large")
        return base64.urlsafe_b64encode(self._mac(data, purpose) + data).decode()

    def open(self, sealed: str, purpose: str) -> str:
        try:
            raw = base64.b64decode(sealed.encode(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise invalid_params("params.requestState is not ours") from None
        mac, data = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(data, purpose)):
            raise invalid_params("params.requestState is not ours, or of another call")
        return data.decode()

    def _mac(self, data: bytes, purpose: str) -> bytes:
        # The purpose's length first, so that no other pair of purpose and data gives the same bytes.
        name = purpose.encode()
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + data, hashlib.sha256)[:_MAC_BYTES]
