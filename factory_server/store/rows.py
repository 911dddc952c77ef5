"""Turn what the database returns into the core's rows."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.rows import DictRow

from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentRow, CrewRow, InstanceRow, InstanceState, in_order
from hyperfactory.v1 import crew_service_pb2, types_pb2


def agent_row(r: DictRow) -> AgentRow:
    """Read a row of the view agent_now."""
    return AgentRow(
        id=r["id"],
        uid=r["uid"],
        crew=r["crew"],
        name=r["name"],
        group=r["group_name"],
        replicas=r["replicas"],
        profile=r["profile"],
        profile_digest=r["profile_digest"],
        spec=types_pb2.ProfileSpec.FromString(r["spec"]),
        scope=r["scope"],
        labels=r["labels"],
        state=AgentState(r["state"]),
        generation=r["generation"],
        warm=r["warm"],
        reason=r["reason"],
        message=r["message"],
        created_at=r["created_at"],
        updated_at=r["updated_at"],
        ready_at=r["ready_at"],
        heartbeat_at=r["heartbeat_at"],
        misses=r["misses"],
        lease_holder=r["lease_holder"],
        lease_until=r["lease_until"],
        not_before=r["not_before"],
        drain_until=r["drain_until"],
        replacements=r["replacements"],
        replaced_since=r["replaced_since"],
        frozen_at=r["frozen_at"],
        thaw_wanted=r["thaw_wanted"],
        instance=None if r["i_id"] is None else _carrier(r),
    )


def _carrier(r: DictRow) -> InstanceRow:
    return InstanceRow(
        id=r["i_id"],
        base=r["i_base"],
        state=InstanceState(r["i_state"]),
        agent=r["id"],
        generation=r["generation"],
        driver=r["i_driver"],
        control=r["i_control"],
        direct=r["i_direct"],
        host_pid=r["i_host_pid"],
        container_id=r["i_container_id"],
        address=r["i_address"],
        network=r["i_network"],
    )


def instance_row(r: DictRow) -> InstanceRow:
    """Read a row of instance."""
    return InstanceRow(
        id=r["id"],
        base=r["base"],
        state=InstanceState(r["state"]),
        agent=r["agent"] or "",
        generation=r["generation"],
        driver=r["driver"],
        control=r["control"],
        direct=r["direct"],
        host_pid=r["host_pid"],
        container_id=r["container_id"],
        address=r["address"],
        network=r["network"],
    )


def crew_row(r: DictRow, agents: Sequence[AgentRow]) -> CrewRow:
    """Read a row of crew, with its agents by name."""
    return CrewRow(
        id=r["id"],
        uid=r["uid"],
        name=r["name"],
        manifest=crew_service_pb2.CrewManifest.FromString(r["manifest"]),
        state=CrewState(r["state"]),
        wish_gone=r["wish_gone"],
        failed=r["failed"],
        solo=r["solo"],
        last_sequence=r["last_sequence"],
        reason=r["reason"],
        message=r["message"],
        created_at=r["created_at"],
        updated_at=r["updated_at"],
        ready_at=r["ready_at"],
        expires_at=r["expires_at"],
        drain_until=r["drain_until"],
        context_cursor=r["context_cursor"],
        agents=in_order(agents),
    )
