"""Decide where a connection that names an agent or a group shall go, as the registry stands now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.registry import Route
from hyperfactory.v1 import types_pb2
from wire.errors import FactoryError, NotFound, Refused, Unavailable

RETRY_AFTER_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class ToAgent:
    """Lead it to this instance's socket."""

    route: Route


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Lead it to Traefik, which balances its calls over the group's members."""

    group: str


@dataclass(frozen=True, slots=True)
class Park:
    """Hold it until the name changes, or for `within_s`; `wake` names an agent that sleeps."""

    why: str
    wake: Route | None = None
    within_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """End its calls with this error."""

    error: FactoryError


Destination = ToAgent | ToGroup | Park | Answer


def destination(
    authority: str, route: Route | None, *, group: bool, routed: bool, current: bool
) -> Destination:
    """Where to: `group` says that the name is a group's, `routed` that Traefik knows it, `current` that the
    registry is neither unread nor cut off."""
    if route is None:
        return _nameless(authority, group=group, routed=routed, current=current)
    if route.serving:
        return ToAgent(route)
    match route.state:
        case types_pb2.AGENT_STATE_HIBERNATING:
            return Park("it hibernates", wake=route)
        case types_pb2.AGENT_STATE_READY if route.frozen:
            return Park("it is frozen", wake=route)
        case types_pb2.AGENT_STATE_DRAINING:
            return Answer(
                Unavailable(
                    f"cannot reach '{authority}': it is on its way out",
                    reason="DRAINING",
                    retry_after_s=RETRY_AFTER_S,
                )
            )
        case types_pb2.AGENT_STATE_FAILED:
            return Answer(
                Refused(f"cannot reach '{authority}': it was given up", metadata={"state": route.state_name})
            )
        case _:
            return Park(f"it is {route.state_name}")


def _nameless(authority: str, *, group: bool, routed: bool, current: bool) -> Destination:
    if group:
        return ToGroup(authority) if routed else Park("no member of the group serves yet")
    if not current:
        return Park("the registry cannot be read now")
    return Answer(
        NotFound(f"cannot reach '{authority}': no such agent", resource_type="agent", resource_name=authority)
    )


def gave_up(authority: str, why: str) -> FactoryError:
    """The error of a connection that was parked as long as we may."""
    return Unavailable(f"cannot reach '{authority}': {why}", retry_after_s=RETRY_AFTER_S)
