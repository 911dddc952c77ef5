"""Name the keys, channels and users of a crew on the bus. The agent runtime uses the same scheme."""

from __future__ import annotations

import re

USER = re.compile(r"^crew-([a-z0-9]+)-([a-z0-9]+)-g([0-9]+)$")
CREW_KEY = re.compile(r"^crew(?:-vectors)?:([a-z0-9]+):")
DOORBELL = "hf:doorbell"
CONTEXT_LOG_MAX = 10_000
VECTOR_INDEXES = "hf:vector-indexes"
"""Hash: crew → bytes that its vectors' index may take."""


def prefix(crew: str) -> str:
    """What every key and channel of a crew begins with."""
    return f"crew:{crew}:"


def vectors(crew: str) -> str:
    """What every key of a crew's index of vectors begins with: none that an agent may touch."""
    return f"crew-vectors:{crew}:"


def crew_of(name: str) -> str | None:
    """Whose key it is, if a crew's."""
    found = CREW_KEY.match(name)
    return found[1] if found else None


def context(crew: str) -> str:
    """Hash of the shared context: key → `{"v": value, "n": version}`."""
    return f"crew:{crew}:ctx"


def context_log(crew: str) -> str:
    """Stream of the context's changes: key, value (JSON, empty when removed), version, actor."""
    return f"crew:{crew}:ctxlog"


def user(crew: str, agent: str, generation: int) -> str:
    """The ACL user of one generation of an agent."""
    return f"crew-{crew}-{agent}-g{generation}"


def rules(crew: str, password: str) -> list[str]:
    """What such a user may do: data within the crew's prefix, and nothing that looks beyond it."""
    return [
        "reset",
        "on",
        f">{password}",
        f"~{prefix(crew)}*",
        f"&{prefix(crew)}*",
        "+@read",
        "+@write",
        "+@stream",
        "+@pubsub",
        "+@transaction",
        "+@connection",
        "-@admin",
        "-@dangerous",
        "-@scripting",
        "-keys",
        "-scan",
        "-randomkey",
        "-pubsub",
        "+client|setname",
        "+client|setinfo",
    ]
