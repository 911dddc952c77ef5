"""Check a request that came by HTTP: its revision, its headers against its body, what it says of its client."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from wire.mcp.errors import INVALID_PARAMS, bad_request, header_mismatch, unsupported_version
from wire.mcp.messages import ID_MAX_CHARS, NONE, Request
from wire.mcp.revisions import (
    HANDSHAKE,
    LOG_LEVELS,
    META_CLIENT_CAPABILITIES,
    META_CLIENT_INFO,
    META_LOG_LEVEL,
    META_PROGRESS_TOKEN,
    META_VERSION,
    METHOD_HEADER,
    NAME_HEADER,
    NAMED_BY,
    PARAM_PREFIX,
    STATELESS,
    VERSION_HEADER,
)

Headers = Mapping[str, str]
"""By lower-case name; a header that came twice is joined by a comma, as HTTP has it."""

_ENCODED: Final = re.compile(r"=\?base64\?([A-Za-z0-9+/]*={0,2})\?=")
_PLAIN: Final = re.compile(r"[\x20-\x7e\t]*")
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?")
_SAFE_INTEGER: Final = 2**53 - 1


class Client(NamedTuple):
    """What a client says of itself: nobody has verified it."""

    capabilities: Mapping[str, Any] = NONE
    name: str = ""
    revision: str = STATELESS

    @property
    def stateless(self) -> bool:
        return self.revision == STATELESS


def is_stateless(headers: Headers, request: Request) -> bool:
    """Whether a request is of the stateless era; what is not clear is, so that it is told what is missing."""
    if META_VERSION in request.meta:
        return True
    version = headers.get(VERSION_HEADER)
    return version is not None and version not in HANDSHAKE


def check_stateless(headers: Headers, request: Request) -> Client:
    """The client behind a request of the stateless revision; `McpError` for what the revision forbids."""
    meta = _meta(headers, request)
    version = str(meta[META_VERSION])
    if headers.get(VERSION_HEADER) != version:
        said = headers.get(VERSION_HEADER, "none")
        raise header_mismatch(f"MCP-Protocol-Version is '{said[:40]}', the body says '{version[:40]}'")
    if version != STATELESS:
        raise unsupported_version(version[:64])
    if headers.get(METHOD_HEADER) != request.method:
        raise header_mismatch(f"Mcp-Method is not the body's '{request.method}'")
    if member := NAMED_BY.get(request.method):
        _check_name(headers.get(NAME_HEADER), request.params.get(member))
    return client_of(meta)


def _meta(headers: Headers, request: Request) -> Mapping[str, Any]:
    """The request's own words about its revision and its client, all of those that it must have."""
    meta = request.meta
    version = headers.get(VERSION_HEADER)
    if not meta and version is not None and version not in (STATELESS, *HANDSHAKE):
        raise unsupported_version(version[:64])
    for key, kind in ((META_VERSION, str), (META_CLIENT_CAPABILITIES, Mapping)):
        if not isinstance(meta.get(key), kind):
            raise bad_request(f"params._meta needs '{key}'", INVALID_PARAMS)
    return meta


def client_of(meta: Mapping[str, Any]) -> Client:
    info = meta.get(META_CLIENT_INFO)
    name = str(info.get("name", "")) if isinstance(info, Mapping) else ""
    return Client(dict(meta[META_CLIENT_CAPABILITIES]), name[:128], str(meta[META_VERSION]))


def _check_name(header: str | None, value: Any) -> None:
    if not isinstance(value, str):
        raise bad_request("the request names nothing", INVALID_PARAMS)
    if header is None or decoded(header) != value:
        raise header_mismatch(f"Mcp-Name is not the body's '{value[:128]}'")


def decoded(header: str) -> str:
    """What a header's value stands for; `McpError` for what no header may hold."""
    if found := _ENCODED.fullmatch(header):
        try:
            return base64.b64decode(found[1], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise header_mismatch("a value is no base64 of UTF-8") from None
    if not _PLAIN.fullmatch(header):
        raise header_mismatch("a value has invalid characters")
    return header


def encoded(value: str) -> str:
    """A value in the form that a header may hold."""
    if value == value.strip() and _PLAIN.fullmatch(value) and not _ENCODED.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def check_params(headers: Headers, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Compare `Mcp-Param-*` with the arguments that the tool's schema marks with `x-mcp-header`."""
    for name, path in mirrored(schema):
        value = _at(arguments, path)
        header = headers.get(PARAM_PREFIX + name.lower())
        if value is None:
            if header is not None:
                raise header_mismatch(f"Mcp-Param-{name} has no argument")
        elif header is None or not _same(decoded(header), value):
            raise header_mismatch(f"Mcp-Param-{name} is not the argument's value")


def mirrored(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Header names and the paths of the arguments that they repeat."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or len(path) > 8:
        return
    for key, inner in properties.items():
        if isinstance(inner, Mapping):
            if isinstance(name := inner.get("x-mcp-header"), str):
                yield name, (*path, key)
            yield from mirrored(inner, (*path, key))


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        arguments = arguments.get(key) if isinstance(arguments, Mapping) else None
    return arguments


def _same(header: str, value: Any) -> bool:
    match value:
        case bool():
            return header == ("true" if value else "false")
        case int() | float():
            if not _NUMBER.fullmatch(header):
                return False
            return abs(number := float(header)) <= _SAFE_INTEGER and number == value
        case _:
            return bool(header == value)


def progress_token(request: Request) -> str | int | None:
    """What the client calls its request's progress by; None where it wants none."""
    token = request.meta.get(META_PROGRESS_TOKEN)
    if isinstance(token, str) and len(token) > ID_MAX_CHARS:
        raise bad_request(f"'{META_PROGRESS_TOKEN}' has at most {ID_MAX_CHARS} characters", INVALID_PARAMS)
    return token if isinstance(token, str | int) and not isinstance(token, bool) else None


def log_level(request: Request) -> str | None:
    """The least level that the client wants to hear of; None: nothing at all."""
    level = request.meta.get(META_LOG_LEVEL)
    if level is not None and level not in LOG_LEVELS:
        raise bad_request(f"'{META_LOG_LEVEL}' is none of {', '.join(LOG_LEVELS)}", INVALID_PARAMS)
    return level
