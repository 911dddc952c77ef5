"""A crew under its row's lock: move its agents, append its events, derive its state, write all of it once.

Every change of an agent's state goes through here, so the lock on the crew's row orders a crew's events and
makes the rows that a plan was made from the rows that it is applied to. The SQL compares again all the same.

The lock comes before any write of the transaction: its number is drawn with the first write, so the numbers of
a crew's transactions rise as its sequences do, and whoever reads all crews by them reads each in order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncCursor
from psycopg.rows import DictRow

from factory_server.core.errors import NotFound, Stale
from factory_server.core.lifecycle import AgentState, CrewState, crew_state
from factory_server.core.model import AgentRow, CrewHead, InstanceRow, SandboxFact, Step
from factory_server.store import encode, moves
from factory_server.store.moves import Fence, Move, Plan
from factory_server.store.pool import Transaction
from factory_server.store.rows import agent_row, instance_row
from hyperfactory.v1 import events_pb2

MOVED_FIELDS = (
    "id",
    "generation",
    "warm",
    "reason",
    "message",
    "lease_holder",
    "replacements",
)
MOVED_TIMES = ("ready_at", "lease_until", "not_before", "drain_until", "replaced_since", "frozen_at")


@dataclass(eq=False)
class LockedCrew:
    """One crew within one transaction, until `finish`."""

    transaction: Transaction
    id: str
    state: CrewState
    wish_gone: bool
    failed: bool
    solo: bool
    min_ready: int
    last_sequence: int
    reason: str
    message: str
    ready_at: datetime | None
    drain_until: datetime | None
    now: datetime
    states: dict[str, AgentState]
    """Members that are not STOPPED."""
    agents: dict[str, AgentRow]
    """The rows that were asked for."""
    events: list[events_pb2.Event] = field(default_factory=list)
    _expected: list[tuple[AsyncCursor[DictRow], int]] = field(default_factory=list)
    _actor: str = ""
    _why: tuple[str, str] = ("", "")

    @property
    def live(self) -> bool:
        """Whether it may still get members, signals and tasks."""
        return not self.wish_gone

    def head(self) -> CrewHead:
        """The crew as it will be committed."""
        return CrewHead(self.reason, self.message, self.ready_at, frozenset(self.states))

    async def take(self, steps: Sequence[Step]) -> list[AgentRow | None]:
        """Carry out steps on agents that were loaded; the row after each, None for one that lost."""
        rows: list[AgentRow | None] = []
        for batch in moves.batches(steps):
            plan = moves.plan(self.agents.values(), batch, self.now, {})
            if plan.wanted:
                claimed = await claim(self.transaction, self.id, plan.wanted)
                plan = moves.plan(self.agents.values(), batch, self.now, claimed)
            await self.write(plan)
            rows += [None if agent is None else plan.agents[agent] for agent in plan.outcomes]
        return rows

    async def write(self, plan: Plan) -> None:
        """Send what a plan says; `finish` looks at the answers."""
        for moved in moves.rounds([move for move in plan.moves if move.before is not None]):
            cursor = await self.transaction.send(
                "agents_move", now=self.now, moves=json.dumps([_moved(move) for move in moved])
            )
            self._expected.append((cursor, len(moved)))
        await self._write_instances(plan)
        self.events.extend(map(_event, plan.moves))
        self.agents.update(plan.agents)
        for move in plan.moves:
            self._note(move)

    async def finish(self) -> None:
        """Derive the crew's state, write events and the crew's row, and see that everything went as planned."""
        before = self.state
        self.state = crew_state(before, self.wish_gone, self.failed, self.states.values(), self.min_ready)
        if before is not self.state:
            self._describe()
            self.events.append(encode.crew_moved(before, self.state, self._actor, self.reason, self.message))
            if self.state is CrewState.READY and self.ready_at is None:
                self.ready_at = self.now
        expected = self.last_sequence
        await self._write_events()
        await self._write_crew(expected)
        sent, self._expected = self._expected, []
        for cursor, count in sent:
            if len(await cursor.fetchall()) != count:
                raise Stale(f"cannot write crew '{self.id}': another writer was first")

    def wish_end(self, *, failed: bool, reason: str, message: str, actor: str, until: datetime) -> None:
        """Wish the crew gone; once wished, that stands."""
        if not self.wish_gone:
            self.wish_gone, self.failed, self.drain_until = True, failed, until
            self.reason, self.message = encode.text(reason), encode.text(message)
            self._actor = actor

    def _note(self, move: Move) -> None:
        self._actor = move.actor
        self._why = (move.after.reason, move.after.message)
        self.transaction.agents = True
        if move.after.state is AgentState.STOPPED:
            self.states.pop(move.after.id, None)
        else:
            self.states[move.after.id] = move.after.state

    def _describe(self) -> None:
        """Say why the crew moved: an end keeps the reason of the wish."""
        if self.state is CrewState.READY:
            self.reason, self.message = "MembersReady", ""
        elif self.state is CrewState.DEGRADED:
            self.reason, self.message = self._why

    async def _write_instances(self, plan: Plan) -> None:
        send = self.transaction.send
        await self._intend([plan.agents[agent] for agent, _ in plan.wanted])
        if plan.sandboxes:
            facts = [_fact(fence, fact) for fence, fact in plan.sandboxes]
            cursor = await send("instances_started", facts=json.dumps(facts))
            self._expected.append((cursor, len(facts)))
        if plan.directs:
            fences = _fences([fence for fence, _ in plan.directs])
            cursor = await send("instances_direct", directs=[d for _, d in plan.directs], **fences)
            self._expected.append((cursor, len(plan.directs)))
        if plan.ended:
            await send("instances_end", **_fences(plan.ended))
        if plan.forgotten:
            await send("states_drop", **_fences(plan.forgotten))

    async def _intend(self, agents: Iterable[AgentRow]) -> None:
        wished = [a.instance for a in agents if a.instance is not None and not a.warm]
        if wished:
            await self.transaction.send(
                "instances_intend",
                ids=[i.id for i in wished],
                bases=[i.base for i in wished],
                **_fences([(i.agent, i.generation) for i in wished]),
            )

    async def _write_events(self) -> None:
        if not self.events:
            return
        await self.transaction.send(
            "events_insert",
            crew=self.id,
            after=self.last_sequence,
            now=self.now,
            types=[event.type for event in self.events],
            agents=[event.agent for event in self.events],
            data=[encode.stored(event) for event in self.events],
        )
        self.last_sequence += len(self.events)
        self.events = []
        self.transaction.crews[self.id] = self.last_sequence

    async def _write_crew(self, expected: int) -> None:
        cursor = await self.transaction.send(
            "crew_write",
            crew=self.id,
            expected=expected,
            last_sequence=self.last_sequence,
            state=str(self.state),
            reason=self.reason,
            message=self.message,
            ready_at=self.ready_at,
            wish_gone=self.wish_gone,
            failed=self.failed,
            drain_until=self.drain_until,
            now=self.now,
        )
        self._expected.append((cursor, 1))


async def lock_crew(transaction: Transaction, crew: str, agents: Sequence[str] | None = ()) -> LockedCrew:
    """Lock a crew and read some of its agents; None reads all that are not STOPPED."""
    lock = await transaction.send("crew_lock", crew=crew)
    members = await transaction.send("crew_members", crew=crew)
    if agents is None:
        rows = await transaction.rows("crew_agents_live", crew=crew)
    elif agents:
        rows = await transaction.rows("crew_agents_chosen", crew=crew, agents=list(agents))
    else:
        rows = []
    found = await lock.fetchone()
    if found is None:
        raise NotFound(f"no crew '{crew}'", resource_type="crew", resource_name=crew)
    return _locked(transaction, found, await members.fetchone() or {}, rows)


async def lock_agent(transaction: Transaction, agent: str) -> tuple[LockedCrew, AgentRow]:
    """Lock an agent's crew and read the agent."""
    lock = await transaction.send("crew_lock_of_agent", agent=agent)
    row = await transaction.row("agent_get", agent=agent)
    found = await lock.fetchone()
    if found is None or row is None:
        raise NotFound(f"no agent '{agent}'", resource_type="agent", resource_name=agent)
    members = await transaction.one("crew_members", crew=found["id"])
    locked = _locked(transaction, found, members, [row])
    return locked, locked.agents[agent]


async def claim(transaction: Transaction, crew: str, wanted: Mapping[Fence, str]) -> dict[Fence, InstanceRow]:
    """Take warm instances for as many generations as there are, and count who got none."""
    by_base: dict[str, list[Fence]] = {}
    for fence, base in wanted.items():
        by_base.setdefault(base, []).append(fence)
    claimed: dict[Fence, InstanceRow] = {}
    for base, fences in sorted(by_base.items()):
        rows = await transaction.rows(
            "instances_claim", crew=crew, base=base, count=len(fences), **_fences(fences)
        )
        claimed.update({(row["agent"], row["generation"]): instance_row(row) for row in rows})
    served = Counter(wanted[fence] for fence in claimed)
    bases = sorted(by_base)
    await transaction.send(
        "pool_count",
        bases=bases,
        claimed=[served[base] for base in bases],
        missed=[len(by_base[base]) - served[base] for base in bases],
    )
    return claimed


def _locked(transaction: Transaction, crew: DictRow, members: DictRow, rows: Sequence[DictRow]) -> LockedCrew:
    pairs = zip(members["ids"] or (), members["states"] or (), strict=True)
    return LockedCrew(
        transaction=transaction,
        id=crew["id"],
        state=CrewState(crew["state"]),
        wish_gone=crew["wish_gone"],
        failed=crew["failed"],
        solo=crew["solo"],
        min_ready=crew["min_ready"],
        last_sequence=crew["last_sequence"],
        reason=crew["reason"],
        message=crew["message"],
        ready_at=crew["ready_at"],
        drain_until=crew["drain_until"],
        now=members["now"],
        states={agent: AgentState(state) for agent, state in pairs},
        agents={row["id"]: agent_row(row) for row in rows},
    )


def _event(move: Move) -> events_pb2.Event:
    after = move.after
    return encode.agent_moved(
        agent=after.id,
        name=after.name,
        source=move.before.state if move.before else None,
        event=move.event,
        target=after.state,
        generation=after.generation,
        actor=move.actor,
        reason=after.reason,
        message=after.message,
    )


def _moved(move: Move) -> dict[str, Any]:
    assert move.before is not None
    record = {name: getattr(move.after, name) for name in MOVED_FIELDS}
    for name in MOVED_TIMES:
        moment = getattr(move.after, name)
        record[name] = moment.isoformat() if moment is not None else None
    source = move.before
    return record | {
        "source": source.state,
        "source_generation": source.generation,
        "event": move.event,
        "target": move.after.state,
    }


def _fact(fence: Fence, fact: SandboxFact) -> dict[str, Any]:
    return {
        "id": fact.instance,
        "agent": fence[0],
        "generation": fence[1],
        "driver": fact.driver,
        "control": fact.control,
        "host_pid": fact.host_pid,
        "container_id": fact.container_id,
    }


def _fences(fences: Sequence[Fence]) -> dict[str, list[Any]]:
    return {"agents": [agent for agent, _ in fences], "generations": [g for _, g in fences]}
