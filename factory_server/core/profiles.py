"""What a profile may not say, beyond what each field alone may not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from factory_server.core.errors import FieldViolation
from hyperfactory.v1 import types_pb2

_BASE: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")


def violations(spec: types_pb2.ProfileSpec, path: str = "profile.spec") -> Iterator[FieldViolation]:
    """One for each field that contradicts another, or can never work."""
    if spec.base and not _BASE.fullmatch(spec.base):
        yield FieldViolation(f"{path}.base", f"'{spec.base}' is no name for a base", "NAME_INVALID")
    if spec.HasField("idle_ttl") and spec.freeze_after.ToNanoseconds() >= spec.idle_ttl.ToNanoseconds():
        text = "must be shorter than idle_ttl, at which the agent is stored away"
        yield FieldViolation(f"{path}.freeze_after", text, "CONTRADICTION")
    seen: dict[str, int] = {}
    for i, server in enumerate(spec.mcp_servers):
        here = f"{path}.mcp_servers[{i}]"
        if server.name in seen:
            text = f"the name '{server.name}' is taken by mcp_servers[{seen[server.name]}]"
            yield FieldViolation(f"{here}.name", text, "DUPLICATE")
        seen.setdefault(server.name, i)
        yield from _of_server(here, server)


def _of_server(path: str, server: types_pb2.McpServer) -> Iterator[FieldViolation]:
    for i, word in enumerate((server.command, *server.args)):
        if "\0" in word:
            field = f"{path}.args[{i - 1}]" if i else f"{path}.command"
            yield FieldViolation(field, "no program can be given a zero byte", "MALFORMED")
    for variable in sorted(server.env):
        if "\0" in server.env[variable]:
            field = f'{path}.env["{variable}"]'
            yield FieldViolation(field, "no program can be given a zero byte", "MALFORMED")
    for variable in sorted(server.env.keys() & server.secret_env.keys()):
        text = "is set by env and by secret_env"
        yield FieldViolation(f'{path}.secret_env["{variable}"]', text, "CONTRADICTION")
    if server.tools:
        for i, tool in enumerate(server.read_only_tools):
            if tool not in server.tools:
                text = f"'{tool}' is not among the tools that are offered"
                yield FieldViolation(f"{path}.read_only_tools[{i}]", text, "CONTRADICTION")
