"""Make crews and agents, and read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from factory_server.core.errors import NotFound, Refused
from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import (
    AgentFilter,
    AgentPlan,
    AgentRow,
    CrewFilter,
    CrewPlan,
    CrewRow,
    Page,
    RequestKey,
)
from factory_server.core.ports import Assembled, RegistryDelta
from factory_server.store import encode, moves, networks
from factory_server.store.gathered import Gathered
from factory_server.store.locked import LockedCrew, claim, lock_crew
from factory_server.store.moves import Move, Plan
from factory_server.store.pool import Part, Transaction, columns
from factory_server.store.requests import claim_request
from factory_server.store.rows import agent_row, crew_row

ENDED_CREWS = frozenset({CrewState.DISBANDED, CrewState.FAILED})
REQUESTED = "Requested"


class Crews(Part):
    """Crews and agents as rows."""

    _agent_reads: Gathered[AgentRow]

    async def assemble(
        self, plan: CrewPlan, request: RequestKey | None, actor: str, owner: str, *, lease_s: float
    ) -> Assembled:
        """Record a crew, its agents and as many warm claims as there are."""

        async def body(transaction: Transaction) -> Assembled:
            clock = await transaction.send("database_now")  # answered together with the next one
            earlier = await claim_request(transaction, request, plan.id)
            if earlier is not None:
                return Assembled(await read_crew(transaction, earlier), replayed=True)
            now = (await clock.fetchall())[0]["now"]
            await _insert_crew(transaction, plan, now, owner, lease_s)
            if plan.network is not None:
                await networks.take(transaction, plan.id, plan.network)
            crew = _fresh(transaction, plan, now)
            crew.events.append(encode.crew_moved(None, CrewState.ASSEMBLING, actor, REQUESTED, ""))
            await add_agents(crew, plan.agents, actor)
            await crew.finish()
            return Assembled(await read_crew(transaction, plan.id), replayed=False)

        return await self._db.run(body)

    async def add_agent(
        self,
        crew: str,
        plan: AgentPlan,
        request: RequestKey | None,
        actor: str,
        owner: str,
        *,
        lease_s: float,
    ) -> tuple[AgentRow, bool]:
        """Add one agent to a live crew; second value: replayed."""

        async def body(transaction: Transaction) -> tuple[AgentRow, bool]:
            locked = await lock_crew(transaction, crew)
            earlier = await claim_request(transaction, request, plan.id)
            if earlier is not None:
                return await read_agent(transaction, earlier), True
            if not locked.live:
                raise Refused(
                    f"cannot add agent '{plan.name}': crew '{crew}' is {locked.state}",
                    metadata={"state": str(locked.state)},
                )
            await add_agents(locked, [plan], actor)
            await locked.finish()
            await transaction.send("crew_lease_if_free", crew=crew, owner=owner, lease_s=lease_s)
            return await read_agent(transaction, plan.id), False

        return await self._db.run(body)

    async def get_crew(self, crew: str) -> CrewRow:
        """Return the crew with its agents, STOPPED ones included."""

        async def body(transaction: Transaction) -> CrewRow:
            return await read_crew(transaction, crew)

        return await self._db.snapshot(body)

    async def list_crews(self, where: CrewFilter, page: Page) -> Sequence[CrewRow]:
        """Return crews with agents, oldest first, at most page.size + 1."""
        states = where.states or frozenset(CrewState) - ENDED_CREWS

        async def body(transaction: Transaction) -> Sequence[CrewRow]:
            found = await transaction.rows(
                "crew_list_by_name" if where.name else "crew_list",
                **({"name": where.name} if where.name else {}),
                after=page.after,
                states=[str(state) for state in states],
                labels=json.dumps(dict(where.labels)),
                size=page.size + 1,
            )
            agents = await transaction.rows("crews_agents", crews=columns(found, "id"))
            by_crew: dict[str, list[AgentRow]] = {row["id"]: [] for row in found}
            for row in agents:
                by_crew[row["crew"]].append(agent_row(row))
            return [crew_row(row, by_crew[row["id"]]) for row in found]

        return await self._db.snapshot(body)

    async def get_agent(self, agent: str) -> AgentRow:
        """Return one agent."""
        row = await self._agent_reads.get(agent)
        if row is None:
            raise no_agent(agent)
        return row

    async def list_agents(self, where: AgentFilter, page: Page) -> Sequence[AgentRow]:
        """Return agents, oldest first, at most page.size + 1."""
        states = where.states or frozenset(AgentState) - {AgentState.STOPPED}

        async def body(transaction: Transaction) -> Sequence[AgentRow]:
            rows = await transaction.rows(
                "agent_list_of_crew" if where.crew else "agent_list",
                **({"crew": where.crew} if where.crew else {}),
                profile=where.profile,
                after=page.after,
                states=[str(state) for state in states],
                labels=json.dumps(dict(where.labels)),
                size=page.size + 1,
            )
            return [agent_row(row) for row in rows]

        return await self._db.read(body)

    async def registry_delta(self, mark: str) -> RegistryDelta:
        """Return agents that changed since `mark`, and the next mark."""

        async def body(transaction: Transaction) -> RegistryDelta:
            if mark:
                rows = await transaction.rows("registry_since", mark=mark)
            else:
                rows = await transaction.rows("registry_all")
            # One row without an agent carries the mark when nothing changed.
            return RegistryDelta([agent_row(r) for r in rows if r["id"] is not None], rows[0]["mark"])

        return await self._db.read(body)


async def read_crew(transaction: Transaction, crew: str) -> CrewRow:
    """Read a crew and all its agents."""
    found = await transaction.send("crew_get", crew=crew)
    agents = await transaction.rows("crew_agents", crew=crew)
    row = await found.fetchone()
    if row is None:
        raise NotFound(f"no crew '{crew}'", resource_type="crew", resource_name=crew)
    return crew_row(row, [agent_row(agent) for agent in agents])


async def read_agent(transaction: Transaction, agent: str) -> AgentRow:
    """Read an agent."""
    row = await transaction.row("agent_get", agent=agent)
    if row is None:
        raise no_agent(agent)
    return agent_row(row)


async def read_agents(transaction: Transaction, agents: Sequence[str]) -> Mapping[str, AgentRow]:
    """Read those of these agents that exist."""
    return {row["id"]: agent_row(row) for row in await transaction.rows("agents_get", agents=agents)}


def no_agent(agent: str) -> NotFound:
    """There is no such agent."""
    return NotFound(f"no agent '{agent}'", resource_type="agent", resource_name=agent)


async def add_agents(crew: LockedCrew, plans: Sequence[AgentPlan], actor: str) -> None:
    """Record new agents of a crew: requested, and at once with a warm instance where there is one."""
    await crew.transaction.send(
        "agents_insert",
        crew=crew.id,
        now=crew.now,
        agents=json.dumps([_insertable(plan, place) for place, plan in enumerate(plans, 1)]),
        specs=[plan.spec.SerializeToString() for plan in plans],
    )
    wanted = {(plan.id, 1): moves.base_of(plan.spec) for plan in plans}
    claimed = await claim(crew.transaction, crew.id, wanted)
    made = Plan()
    for plan in plans:
        agent = _requested(plan, crew.id, crew.now)
        made.agents[agent.id] = agent
        made.moves.append(Move(None, AgentEvent.REQUESTED, agent, actor))
        moves.begin(made, agent, crew.now, claimed, actor)
    await crew.write(made)


async def _insert_crew(
    transaction: Transaction, plan: CrewPlan, now: datetime, owner: str, lease_s: float
) -> None:
    manifest = plan.manifest
    ttl_s = manifest.ttl.ToNanoseconds() / 1e9 if manifest.HasField("ttl") else None
    await transaction.send(
        "crew_insert",
        id=plan.id,
        uid=plan.uid,
        name=manifest.name,
        manifest=manifest.SerializeToString(),
        labels=json.dumps(dict(manifest.labels)),
        min_ready=manifest.policy.min_ready,
        solo=plan.solo,
        now=now,
        ttl_s=ttl_s,
        owner=owner,
        lease_s=lease_s,
    )


def _fresh(transaction: Transaction, plan: CrewPlan, now: datetime) -> LockedCrew:
    return LockedCrew(
        transaction=transaction,
        id=plan.id,
        state=CrewState.ASSEMBLING,
        wish_gone=False,
        failed=False,
        solo=plan.solo,
        min_ready=plan.manifest.policy.min_ready,
        last_sequence=0,
        reason=REQUESTED,
        message="",
        ready_at=None,
        drain_until=None,
        now=now,
        states={},
        agents={},
    )


def _requested(plan: AgentPlan, crew: str, now: datetime) -> AgentRow:
    return AgentRow(
        id=plan.id,
        uid=plan.uid,
        crew=crew,
        name=plan.name,
        group=plan.group,
        replicas=plan.replicas,
        profile=plan.profile,
        profile_digest=plan.profile_digest,
        spec=plan.spec,
        scope=plan.scope,
        labels=plan.labels,
        state=AgentState.PROVISIONING,
        generation=1,
        warm=False,
        reason=REQUESTED,
        message="",
        created_at=now,
        updated_at=now,
    )


def _insertable(plan: AgentPlan, place: int) -> dict[str, object]:
    return {
        "id": plan.id,
        "uid": plan.uid,
        "name": plan.name,
        "group_name": plan.group,
        "replicas": plan.replicas,
        "profile": plan.profile,
        "profile_digest": plan.profile_digest,
        "spec_place": place,
        "scope": plan.scope,
        "labels": dict(plan.labels),
        "reason": REQUESTED,
    }
