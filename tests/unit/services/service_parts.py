"""Parts of which a test gives only what it needs; everything else is absent and fails when touched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from factory_server.core.lifecycle import AgentState
from factory_server.core.model import AgentRow, EncodedEvent, InstanceRow, InstanceState
from factory_server.services.measures import Measures
from factory_server.services.parts import Parts
from hyperfactory.v1 import types_pb2

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Absent:
    """A port that the test has not given."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"'{name}' of a port that this test has not given")


def parts(**ports: Any) -> Parts:
    """Parts with these ports."""
    given = {
        name: ports.get(name, Absent()) for name in ("store", "bus", "driver", "identities", "open_line")
    }
    return Parts(**given, owner="f1", measures=Measures(CollectorRegistry()))


def agent(
    name: str = "w", state: AgentState = AgentState.READY, generation: int = 1, **fields: Any
) -> AgentRow:
    """An agent whose instance serves."""
    ident = f"a-{name}"
    instance = InstanceRow(
        f"{ident}-g{generation}",
        "python",
        InstanceState.OWNED,
        ident,
        generation,
        control=f"unix:///ctl/{name}-{generation}",
        direct=f"unix:///svc/{name}-{generation}",
    )
    whole: dict[str, Any] = {
        "id": ident,
        "uid": f"u-{name}",
        "crew": "c1",
        "name": name,
        "group": name,
        "replicas": 1,
        "profile": "generic",
        "profile_digest": "",
        "spec": types_pb2.ProfileSpec(),
        "scope": "coder",
        "labels": {},
        "state": state,
        "generation": generation,
        "warm": False,
        "reason": "",
        "message": "",
        "created_at": NOW,
        "updated_at": NOW,
        "instance": instance,
    }
    return AgentRow(**(whole | fields))


def event(sequence: int, kind: int = 1, of: str = "") -> EncodedEvent:
    """An event without a body."""
    return EncodedEvent("c1", sequence, kind, of, b"")
