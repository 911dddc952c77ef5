"""A profile that contradicts itself is refused field by field."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from factory_server.core.profiles import violations
from hyperfactory.v1 import types_pb2


def server(**fields: object) -> types_pb2.McpServer:
    return types_pb2.McpServer(**{"name": "files", "command": "serve", **fields})  # type: ignore[arg-type]


def test_a_profile_with_servers_and_secrets_passes() -> None:
    whole = server(
        args=["--root", "/workspace"],
        env={"A": "1"},
        secret_env={"B": "key"},
        tools=["read", "write"],
        read_only_tools=["read"],
    )
    spec = types_pb2.ProfileSpec(
        base="office", mcp_servers=[whole, server(name="other", read_only_tools=["x"])]
    )
    assert list(violations(spec)) == []


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"base": "Office"}, "profile.spec.base", "NAME_INVALID"),
        (
            {"freeze_after": Duration(seconds=9), "idle_ttl": Duration(seconds=9)},
            "profile.spec.freeze_after",
            "CONTRADICTION",
        ),
        ({"base": "../x"}, "profile.spec.base", "NAME_INVALID"),
        ({"mcp_servers": [server(), server()]}, "profile.spec.mcp_servers[1].name", "DUPLICATE"),
        ({"mcp_servers": [server(command="a\0")]}, "profile.spec.mcp_servers[0].command", "MALFORMED"),
        ({"mcp_servers": [server(args=["a", "\0"])]}, "profile.spec.mcp_servers[0].args[1]", "MALFORMED"),
        ({"mcp_servers": [server(env={"A": "\0"})]}, 'profile.spec.mcp_servers[0].env["A"]', "MALFORMED"),
        (
            {"mcp_servers": [server(env={"A": "1"}, secret_env={"A": "key"})]},
            'profile.spec.mcp_servers[0].secret_env["A"]',
            "CONTRADICTION",
        ),
        (
            {"mcp_servers": [server(tools=["a"], read_only_tools=["a", "b"])]},
            "profile.spec.mcp_servers[0].read_only_tools[1]",
            "CONTRADICTION",
        ),
    ],
)
def test_each_contradiction_is_found_where_it_stands(
    spec: dict[str, object], field: str, reason: str
) -> None:
    (wrong,) = violations(types_pb2.ProfileSpec(**spec))  # type: ignore[arg-type]
    assert (wrong.field, wrong.reason) == (field, reason)
