"""What every path of the agent's HTTP socket demands: a host and an origin that are ours, and who calls.

Only the factory can open the socket; it has proven who calls and says so in headers. Host and origin are
checked all the same, since the factory passes on what browsers send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from agent_runtime.http.messages import Handler, HttpError, Request, Response
from wire.errors import Unauthenticated
from wire.identity import parse_spiffe
from wire.policy import TOKEN_PRINCIPALS, Caller, Principal, set_caller
from wire.tokens import SCOPES

CALLER_HEADER: Final = "x-hyperfactory-caller"
SCOPES_HEADER: Final = "x-hyperfactory-scopes"
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Front:
    """Stands before the handlers of one agent."""

    def __init__(self, authority: str) -> None:
        self._hosts = LOOPBACK | {authority}

    def guarded(self, handler: Handler) -> Handler:
        """The handler behind all checks; it finds the caller by `wire.policy.current_caller`."""

        async def guard(request: Request) -> Response:
            self.check_host(request.headers)
            set_caller(caller_of(request.headers))
            return await handler(request)

        return guard

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Refuse a foreign host, as a rebound DNS name would be, and a foreign origin."""
        if _hostname(f"//{headers.get('host', '')}") not in self._hosts:
            raise HttpError(421, "the request is for another host")
        origin = headers.get("origin")
        if origin is not None and _hostname(origin) not in self._hosts:
            raise HttpError(403, "the request is from a foreign origin")


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def caller_of(headers: Mapping[str, str]) -> Caller:
    """Who calls, in the factory's words."""
    try:
        spiffe = parse_spiffe(headers.get(CALLER_HEADER, ""))
    except Unauthenticated as error:
        raise HttpError(401, "the factory does not say who calls") from error
    principal = Principal[spiffe.kind.upper()]
    said = frozenset(headers.get(SCOPES_HEADER, "").split()) & SCOPES
    agent = spiffe.name if principal is Principal.AGENT else ""
    scopes = said if principal in TOKEN_PRINCIPALS else SCOPES
    if not scopes:
        raise HttpError(403, "the caller has no scope here")
    return Caller(principal, spiffe.uri, spiffe.name, spiffe.crew, agent, scopes=scopes, peer="http socket")
