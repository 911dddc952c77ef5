"""Agent cards, generated from what an agent is and from the tools that it offers to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from factory_server.api.a2a.checks import MODES
from factory_server.core import model
from factory_server.core.tools import Entry
from hyperfactory.v1 import agent_service_pb2
from lf.a2a.v1 import a2a_pb2 as pb

BINDING: Final = "GRPC"
PROTOCOL: Final = "1.0"
MTLS, BEARER = "mtls", "bearer"


def card(agent: model.AgentRow, description: str, tools: Sequence[Entry], gateway: str) -> pb.AgentCard:
    """The card of one agent; `gateway` is where the factory's port is reached, `host:port`."""
    made = pb.AgentCard(
        name=f"{agent.crew}/{agent.name}",
        description=description or f"Agent '{agent.name}' of profile '{agent.profile}'.",
        version=agent.profile_digest or str(agent.generation),
        default_input_modes=MODES,
        default_output_modes=MODES,
        supported_interfaces=[
            pb.AgentInterface(
                url=f"https://{gateway}", protocol_binding=BINDING, tenant=agent.id, protocol_version=PROTOCOL
            )
        ],
        skills=[_work(agent), *(_skill(entry.tool) for entry in tools)],
    )
    made.capabilities.streaming = True
    made.capabilities.push_notifications = False
    made.capabilities.extended_agent_card = True
    made.security_schemes[MTLS].mtls_security_scheme.description = "A client certificate of the factory's."
    bearer = made.security_schemes[BEARER].http_auth_security_scheme
    bearer.scheme, bearer.bearer_format = "Bearer", "JWT"
    bearer.description = "A token of the factory's, bound to that certificate."
    needed = made.security_requirements.add()
    for scheme in (MTLS, BEARER):
        needed.schemes[scheme].SetInParent()
    return made


def _work(agent: model.AgentRow) -> pb.AgentSkill:
    """What every agent takes: tasks."""
    return pb.AgentSkill(
        id="task",
        name="Task",
        description="Takes a task as its profile defines it: text, and a JSON object of its input. Where a model "
        "answers, the messages of a context are one conversation.",
        tags=[agent.profile, *sorted(f"{key}={value}" for key, value in agent.labels.items())],
    )


def _skill(tool: agent_service_pb2.Tool) -> pb.AgentSkill:
    tags = ["tool", "read-only" if tool.read_only else "writes"]
    return pb.AgentSkill(
        id=tool.name, name=tool.title or tool.name, description=tool.description or tool.name, tags=tags
    )
