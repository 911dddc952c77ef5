"""Which agents a broadcast is for."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from service_parts import agent

from factory_server.core.lifecycle import AgentState
from factory_server.services.broadcast import _is_target
from hyperfactory.v1 import crew_service_pb2

AGENTS = [
    agent("coder-1", group="coder", labels={"team": "blue", "tier": "1"}),
    agent("coder-2", AgentState.BUSY, group="coder", labels={"team": "red"}),
    agent("reviewer", AgentState.WARMING),
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({}, ["coder-1", "coder-2", "reviewer"]),
        ({"names": ["coder-2"]}, ["coder-2"]),
        ({"names": ["coder"]}, ["coder-1", "coder-2"]),
        ({"names": ["coder-1", "reviewer"]}, ["coder-1", "reviewer"]),
        ({"names": ["nobody"]}, []),
        ({"labels": {"team": "blue"}}, ["coder-1"]),
        ({"labels": {"team": "blue", "tier": "2"}}, []),
        ({"states": ["AGENT_STATE_BUSY", "AGENT_STATE_WARMING"]}, ["coder-2", "reviewer"]),
        ({"names": ["coder"], "states": ["AGENT_STATE_READY"]}, ["coder-1"]),
        ({"names": ["coder"], "labels": {"team": "red"}, "states": ["AGENT_STATE_READY"]}, []),
    ],
)
def test_fields_that_are_set_must_all_hold(target: dict[str, Any], expected: list[str]):
    wished = ParseDict(target, crew_service_pb2.BroadcastTarget())
    assert [a.name for a in AGENTS if _is_target(a, wished)] == expected
