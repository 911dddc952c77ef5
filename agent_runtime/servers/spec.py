"""What a profile says of one MCP server, ready to be started: program, environment, and the tools it may offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent_runtime.tools.registry import CODER
from hyperfactory.v1 import types_pb2

START_DEFAULT_S: Final = 30.0


class ServerSpec(NamedTuple):
    """One server. `hidden` are the values that no log line and no condition may show."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    hidden: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()
    read_only: frozenset[str] = frozenset()
    start_max_s: float = START_DEFAULT_S
    resource_scope: str | None = ""
    """The least scope that sees its resources; None: nobody does."""
    prompt_scope: str | None = ""

    @property
    def condition(self) -> str:
        return f"McpServer/{self.name}"

    def may_offer(self, tool: str) -> bool:
        return not self.allowed or tool in self.allowed


def spec_of(message: types_pb2.McpServer, base: Mapping[str, str], secrets: Mapping[str, str]) -> ServerSpec:
    """`base` is the environment of every program of the agent; the server's own comes over it."""
    given = {name: secrets[key] for name, key in message.secret_env.items() if key in secrets}
    start_s = message.start_timeout.ToNanoseconds() / 1e9 if message.HasField("start_timeout") else 0.0
    return ServerSpec(
        name=message.name,
        argv=(message.command, *message.args),
        env={**base, **message.env, **given},
        hidden=tuple(value for value in given.values() if value),
        missing=tuple(sorted(set(message.secret_env.values()) - secrets.keys())),
        allowed=frozenset(message.tools),
        read_only=frozenset(message.read_only_tools),
        start_max_s=start_s or START_DEFAULT_S,
        resource_scope=_scope(message.resources),
        prompt_scope=_scope(message.prompts),
    )


def _scope(audience: types_pb2.McpAudience.ValueType) -> str | None:
    match audience:
        case types_pb2.MCP_AUDIENCE_UNSPECIFIED | types_pb2.MCP_AUDIENCE_ALL:
            return ""
        case types_pb2.MCP_AUDIENCE_WRITERS:
            return CODER
        case _:
            return None
