"""What a method is asked: the request, who asks and what they can, and the way back while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from agent_runtime.assumed import AssumedAgent
from agent_runtime.mcp.exchange import Exchange
from agent_runtime.mcp.sealing import Sealer
from agent_runtime.mcp.sessions import Session
from wire.mcp.checks import Client, Headers
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Request
from wire.policy import Caller


class Asked(NamedTuple):
    """One request, checked as far as its envelope goes."""

    agent: AssumedAgent
    request: Request
    headers: Headers
    client: Client
    caller: Caller
    exchange: Exchange
    sealer: Sealer
    session: Session | None = None

    @property
    def params(self) -> Mapping[str, Any]:
        return self.request.params

    def text(self, name: str) -> str:
        """A parameter that must be a string."""
        value = self.params.get(name)
        if not isinstance(value, str) or not value:
            raise invalid_params(f"params.{name} is required, a string")
        return value

    def object(self, name: str) -> Mapping[str, Any]:
        """A parameter that is an object, if it is there."""
        value = self.params.get(name, {})
        if not isinstance(value, dict):
            raise invalid_params(f"params.{name} is an object")
        return value
