"""Secrets: what profiles refer to by name, and whoever holds the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from factory_server.core.errors import Refused
from hyperfactory.v1 import types_pb2


class Secrets(Protocol):
    """Holds secrets by name. They are read when they are needed and kept nowhere."""

    async def read(self, names: Iterable[str]) -> Mapping[str, str]:
        """The values of those that exist."""


def named_in(spec: types_pb2.ProfileSpec) -> frozenset[str]:
    """The secrets that a profile refers to."""
    servers = {name for server in spec.mcp_servers for name in server.secret_env.values()}
    return frozenset(servers | {spec.model.api_key_secret} - {""})


async def required(secrets: Secrets, names: Iterable[str], what: str) -> Mapping[str, str]:
    """All of them. Refused (SECRET_MISSING) with the first that does not exist."""
    wanted = sorted(set(names))
    found = await secrets.read(wanted) if wanted else {}
    for name in wanted:
        if name not in found:
            raise Refused(
                f"cannot {what}: secret '{name}' does not exist",
                reason="SECRET_MISSING",
                metadata={"secret": name},
            )
    return found
