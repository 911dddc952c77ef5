"""Errors as MCP says them: a code, a sentence, data, and the HTTP status that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wire.errors import (
    AgentCodeFailed,
    DeadlineExceeded,
    Denied,
    Exhausted,
    FactoryError,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from wire.mcp.revisions import SUPPORTED

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
HANDSHAKE_RESOURCE_NOT_FOUND: Final = -32002  # revisions with a handshake only

OK: Final = 200
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404


@dataclass(eq=False)
class McpError(Exception):
    """What a JSON-RPC error says. `status` is the HTTP status of the stateless revision's answer."""

    code: int
    message: str
    data: Mapping[str, Any] | None = None
    status: int = OK

    def __str__(self) -> str:
        return self.message


def bad_request(message: str, code: int = INVALID_REQUEST) -> McpError:
    return McpError(code, message, status=BAD_REQUEST)


def invalid_params(message: str) -> McpError:
    """The parameters are not those of the method, or name what there is not."""
    return McpError(INVALID_PARAMS, message)


def unknown_method(method: str) -> McpError:
    return McpError(METHOD_NOT_FOUND, f"method '{method[:128]}' not found", status=NOT_FOUND)


def header_mismatch(message: str) -> McpError:
    return McpError(HEADER_MISMATCH, f"header mismatch: {message}", status=BAD_REQUEST)


def missing_capability(capabilities: Mapping[str, Any]) -> McpError:
    """The client has not declared what serving it would need, as `{"sampling": {}}`."""
    what = ", ".join(sorted(capabilities))
    data = {"requiredCapabilities": dict(capabilities)}
    return McpError(MISSING_CAPABILITY, f"the client lacks the capability {what}", data, BAD_REQUEST)


def unsupported_version(requested: str, supported: Sequence[str] = SUPPORTED) -> McpError:
    data = {"supported": list(supported), "requested": requested}
    return McpError(UNSUPPORTED_VERSION, "unsupported protocol version", data, BAD_REQUEST)


# Native errors that JSON-RPC has no word for go by the number that gRPC gives them, outside its reserved range.
_NATIVE: Final[tuple[tuple[type[FactoryError], int, int], ...]] = (
    (Invalid, INVALID_PARAMS, OK),
    (NotFound, INVALID_PARAMS, OK),
    (AgentCodeFailed, INTERNAL_ERROR, OK),
    (DeadlineExceeded, 4, 504),
    (Denied, 7, FORBIDDEN),
    (Exhausted, 8, 429),
    (Unavailable, 14, 503),
    (Unauthenticated, 16, 401),
)
_FAILED_PRECONDITION: Final = 9


def from_native(error: FactoryError) -> McpError:
    """The error that a caller by MCP is told."""
    data = {"reason": error.reason, "metadata": dict(error.metadata)}
    for kind, code, status in _NATIVE:
        if isinstance(error, kind):
            return McpError(code, error.message, data, status)
    return McpError(_FAILED_PRECONDITION, error.message, data, OK)
