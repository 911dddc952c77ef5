"""Encode rows as the contract's messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from factory_server.core import model
from factory_server.core.lifecycle import SERVING, AgentState, CrewState
from factory_server.services import context, profiles
from hyperfactory.v1 import (
    agent_service_pb2,
    crew_service_pb2,
    events_pb2,
    factory_service_pb2,
    types_pb2,
)
from wire.identity import agent_authority

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_S = 86_400
AGENT_STATES = {s: types_pb2.AgentState.Value(f"AGENT_STATE_{s.value}") for s in AgentState}
Conditions = Callable[[str], Iterable[types_pb2.Condition]]
CREW_STATES = {s: types_pb2.CrewState.Value(f"CREW_STATE_{s.value}") for s in CrewState}


def timestamp(time: datetime | None) -> Timestamp | None:
    """A proto timestamp; None stays None (the field is not set)."""
    if time is None:
        return None
    since = time - EPOCH  # FromDatetime takes three times as long, and an agent has five of them
    return Timestamp(seconds=since.days * DAY_S + since.seconds, nanos=since.microseconds * 1000)


def duration(seconds: float) -> Duration:
    """A proto duration."""
    span = Duration()
    span.FromNanoseconds(int(seconds * 1e9))
    return span


class Encoder:
    """Rows to messages; `gateway` is the gateway's `host:port`, `conditions` what an agent says of itself."""

    def __init__(self, gateway: str, conditions: Conditions = lambda _agent: ()) -> None:
        self._gateway = gateway
        self._conditions = conditions

    def agent(self, row: model.AgentRow) -> types_pb2.Agent:
        """One agent."""
        message = types_pb2.Agent(
            id=row.id,
            uid=row.uid,
            name=row.name,
            crew=row.crew,
            profile=row.profile,
            state=AGENT_STATES[row.state],
            generation=row.generation,
            endpoint=types_pb2.Endpoint(
                authority=agent_authority(row.name, row.crew),
                gateway=self._gateway,
                direct=row.instance.direct if row.instance and row.frozen_at is None else "",
            ),
            warm=row.warm,
            ready_time=timestamp(row.ready_at),
            last_heartbeat_time=timestamp(row.heartbeat_at),
            create_time=timestamp(row.created_at),
            update_time=timestamp(row.updated_at),
            reason=row.reason,
            message=row.message,
            profile_digest=row.profile_digest,
            misses=row.misses,
            group=row.group,
            scope=row.scope,
            labels=row.labels,
            limits=row.spec.limits,
            health_interval=row.spec.health_interval,
            replicas=row.replicas,
            skills=row.spec.skills,
            frozen_time=timestamp(row.frozen_at),
        )
        if row.instance is not None:
            message.instance.CopyFrom(
                types_pb2.Instance(
                    id=row.instance.id,
                    driver=row.instance.driver,
                    host_pid=row.instance.host_pid,
                    container_id=row.instance.container_id,
                    address=row.instance.address,
                )
            )
        if row.state is AgentState.BUSY:
            message.lease.CopyFrom(
                types_pb2.Lease(holder=row.lease_holder, expire_time=timestamp(row.lease_until))
            )
        message.conditions.append(_healthy(row))
        if row.frozen_at is not None:
            message.conditions.append(_frozen(row))
        if row.state in SERVING:
            message.conditions.extend(self._conditions(row.id))
        return message

    def crew(self, row: model.CrewRow, cursor: str = "") -> types_pb2.Crew:
        """One crew with its agents by name; agents that are STOPPED are shown only when all are."""
        live = [a for a in row.agents if a.state is not AgentState.STOPPED]
        return types_pb2.Crew(
            id=row.id,
            uid=row.uid,
            name=row.name,
            state=CREW_STATES[row.state],
            agents=[self.agent(a) for a in (live or row.agents)],
            last_sequence=row.last_sequence,
            labels=_struct(row.manifest.labels),
            create_time=timestamp(row.created_at),
            ready_time=timestamp(row.ready_at),
            expire_time=timestamp(row.expires_at),
            reason=row.reason,
            message=row.message,
            annotations=row.manifest.annotations,
            cursor=cursor,
        )


def _healthy(row: model.AgentRow) -> types_pb2.Condition:
    serving = row.state in (AgentState.READY, AgentState.BUSY)
    unknown = serving and row.misses > 0
    status = (
        types_pb2.CONDITION_STATUS_UNKNOWN
        if unknown
        else (types_pb2.CONDITION_STATUS_TRUE if serving else types_pb2.CONDITION_STATUS_FALSE)
    )
    return types_pb2.Condition(
        type="Healthy",
        status=status,
        reason="Missed" if unknown else row.reason,
        message=f"{row.misses} intervals missed" if unknown else row.message,
        since=timestamp(row.updated_at),
    )


def _frozen(row: model.AgentRow) -> types_pb2.Condition:
    return types_pb2.Condition(
        type="Frozen",
        status=types_pb2.CONDITION_STATUS_TRUE,
        reason="FrozenInPlace",
        message="keeps its memory, uses no CPU, and is woken by any use",
        since=timestamp(row.frozen_at),
    )


def _struct(labels: Mapping[str, str]) -> Struct:
    struct = Struct()
    struct.update(dict(labels))
    return struct


def profile(row: model.ProfileRow, image_now: str) -> types_pb2.Profile:
    """One profile; `image_now` is that of its base as it was last seen."""
    return types_pb2.Profile(
        name=row.name,
        spec=row.spec,
        version=row.version,
        digest=row.digest,
        stage=types_pb2.ProfileStage.Value(f"PROFILE_STAGE_{row.stage}"),
        etag=profiles.etag_of(row),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        description=row.description,
        image_digest=row.image_digest,
        conditions=_image_conditions(row, image_now),
    )


def _image_conditions(row: model.ProfileRow, image_now: str) -> list[types_pb2.Condition]:
    if not row.image_digest or not image_now:
        return []
    if row.image_digest == image_now:
        status, reason, message = types_pb2.CONDITION_STATUS_TRUE, "AsRecorded", ""
    else:
        status, reason = types_pb2.CONDITION_STATUS_FALSE, "ImageChanged"
        message = f"agents are made from {image_now} by now; an update of the profile records it"
    return [types_pb2.Condition(type="ImageCurrent", status=status, reason=reason, message=message)]


def pool(row: model.PoolRow) -> factory_service_pb2.Pool:
    """One warm pool."""
    filled = row.ready >= row.target
    reason = row.degraded_reason or ("AtTarget" if filled else "Refilling")
    return factory_service_pb2.Pool(
        base=row.base,
        target=row.target,
        ready=row.ready,
        refilling=row.starting,
        claimed=row.claimed,
        missed=row.missed,
        conditions=[
            types_pb2.Condition(
                type="PoolFilled",
                status=types_pb2.CONDITION_STATUS_TRUE if filled else types_pb2.CONDITION_STATUS_FALSE,
                reason=reason,
                message=row.degraded_message,
                since=timestamp(row.degraded_since),
            )
        ],
    )


def receipt(row: model.ReceiptRow) -> events_pb2.Receipt:
    """One final receipt."""
    message = events_pb2.Receipt(
        agent=row.agent,
        generation=row.generation,
        stage=events_pb2.ReceiptStage.Value(f"RECEIPT_STAGE_{row.stage}"),
        latency=duration(row.latency_s),
        broadcast=row.broadcast,
        name=row.name,
    )
    if row.error:
        message.error.CopyFrom(status_pb2.Status.FromString(row.error))
    return message


def context_entry(row: model.ContextRow) -> crew_service_pb2.ContextEntry:
    """One key of a context."""
    return crew_service_pb2.ContextEntry(key=row.key, value=context.to_value(row), version=row.version)


def events(rows: Sequence[model.EncodedEvent]) -> list[events_pb2.Event]:
    """Events as stored."""
    return [row.decode() for row in rows]


def phases(spent: Iterable[tuple[str, float]]) -> list[crew_service_pb2.PhaseTime]:
    """Where time went."""
    return [crew_service_pb2.PhaseTime(phase=name, milliseconds=ms) for name, ms in spent]


def task_result(raw: bytes) -> agent_service_pb2.TaskResult:
    """How a task ended."""
    return agent_service_pb2.TaskResult.FromString(raw)


def audit_event(row: model.AuditRow) -> factory_service_pb2.AuditEvent:
    """One audit event."""
    return factory_service_pb2.AuditEvent(
        id=row.id,
        time=timestamp(row.time),
        actor=row.actor,
        method=row.method,
        resource=row.resource,
        peer=row.peer,
        outcome=row.outcome,
        reason=row.reason,
    )
