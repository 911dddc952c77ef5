"""What the services need from outside, as Protocols: the store, the bus, identities, an agent's session.

Adapters implement these; services know nothing else of them. All store methods are one transaction each,
raise `core.errors` only, and return rows as they are after commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from factory_server.core import model
from factory_server.core.networks import NetworkStore
from factory_server.core.pool_ports import PoolStore
from factory_server.core.skill_ports import SkillStore
from factory_server.core.tools import ToolStore
from factory_server.core.vectors import VectorStore
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2, events_pb2


@dataclass(frozen=True, slots=True)
class Assembled:
    """A crew as recorded. `replayed`: the request came before, and this is its crew as it is now."""

    crew: model.CrewRow
    replayed: bool


@dataclass(frozen=True, slots=True)
class Updated:
    """A crew as updated, and the names of those that came and went with it."""

    crew: model.CrewRow
    added: Sequence[str]
    removed: Sequence[str]
    replayed: bool


@dataclass(frozen=True, slots=True)
class RegistryDelta:
    """Agents that changed since a mark, and the next mark. Repeats are possible, omissions are not."""

    agents: Sequence[model.AgentRow]
    mark: str


class CrewStore(Protocol):
    """Crews, agents, instances."""

    async def assemble(
        self,
        plan: model.CrewPlan,
        request: model.RequestKey | None,
        actor: str,
        owner: str,
        *,
        lease_s: float,
    ) -> Assembled:
        """Record a crew, its agents and as many warm claims as there are (SKIP LOCKED), events included.

        A claimed agent is WARMING with its instance (events requested, instance_started); the others are
        PROVISIONING with an instance row STARTING named `<uid>-g1` (intent first). The crew is leased to
        `owner`, so that its reconciler may begin at once. Raises Invalid (REQUEST_ID_REUSED).
        """

    async def add_agent(
        self,
        crew: str,
        plan: model.AgentPlan,
        request: model.RequestKey | None,
        actor: str,
        owner: str,
        *,
        lease_s: float,
    ) -> tuple[model.AgentRow, bool]:
        """Add one agent to a live crew, as in `assemble`; second value: replayed. AlreadyExists, NotFound,
        Refused (crew not live)."""

    async def update_crew(
        self,
        crew: str,
        plan: model.CrewPlan,
        request: model.RequestKey,
        actor: str,
        owner: str,
        *,
        drain_s: float,
        lease_s: float,
    ) -> Updated:
        """Make a live crew the planned one: agents join as in `assemble`, others leave as in `stop_agent`, its
        manifest, labels, policy and end are the plan's. What `core.scaling.change` raises; NotFound."""

    async def get_crew(self, crew: str) -> model.CrewRow:
        """The crew with its agents, STOPPED ones included. NotFound."""

    async def list_crews(self, where: model.CrewFilter, page: model.Page) -> Sequence[model.CrewRow]:
        """Crews with agents, oldest first, at most page.size + 1 (so that the caller sees whether more follow);
        `page.after` is the last crew's id. Ids sort by creation."""

    async def get_agent(self, agent: str) -> model.AgentRow:
        """One agent. NotFound."""

    async def list_agents(self, where: model.AgentFilter, page: model.Page) -> Sequence[model.AgentRow]:
        """Agents, oldest first (by id), at most page.size + 1."""

    async def registry_delta(self, mark: str) -> RegistryDelta:
        """Agents that changed since `mark` ('' for all that are not STOPPED). Health facts are no change."""

    async def step(self, crew: str, steps: Sequence[model.Step]) -> model.Stepped:
        """Carry out steps in order, each by compare-and-swap; those that lost have `agent=None`.

        The target state is that of the transition table, which the SQL itself guards. `replace`, `wake` and
        `retry` raise the generation, claim a warm instance when there is one (then `instance_started` follows
        in the same transaction and the agent is WARMING) or record an intent instance `<uid>-g<generation>`;
        the old instance becomes DYING. `replace` also counts towards the budget: a new 10-minute window
        starts when the last one is over. `shutdown`, `gave_up` and `ttl_expired` make the instance DYING only
        with `drained`/`gave_up`/`ttl_expired` (a draining agent keeps its instance until `drained` is wished:
        the reconciler calls `release_instance` first). Appends one AGENT_STATE event per step that won, then
        recomputes the crew's state (`lifecycle.crew_state`) and appends a CREW_STATE event if it moved
        (ready_at is set the first time). Bumps the registry mark of changed agents.
        """

    async def disband(
        self,
        crew: str,
        request: model.RequestKey | None,
        actor: str,
        *,
        failed: bool,
        reason: str,
        message: str,
        drain_s: float,
    ) -> model.CrewRow:
        """Wish the crew gone: wish_gone, drain_until, every agent that is not STOPPED or DRAINING gets
        `shutdown`. Idempotent."""

    async def stop_agent(
        self, agent: str, request: model.RequestKey | None, actor: str, *, drain_s: float
    ) -> model.AgentRow:
        """`shutdown` from whatever state; no change where it is DRAINING or STOPPED. A solo crew is wished
        gone with it. Idempotent."""

    async def acquire(
        self, agent: str, request: model.RequestKey | None, actor: str, *, holder: str, lease_s: float
    ) -> model.AgentRow:
        """READY → BUSY for `holder`. Refused (LEASE_HELD, WRONG_STATE)."""

    async def renew(
        self,
        agent: str,
        generation: int,
        request: model.RequestKey | None,
        actor: str,
        *,
        holder: str,
        lease_s: float,
    ) -> model.AgentRow:
        """Prolong a lease. Refused (STALE_GENERATION, LEASE_HELD, WRONG_STATE)."""

    async def release(
        self, agent: str, generation: int, request: model.RequestKey | None, actor: str, *, holder: str
    ) -> model.AgentRow:
        """BUSY → READY by the holder. Refused as in `renew`; an already released one is returned as it is."""

    async def retry_agent(self, agent: str, request: model.RequestKey | None, actor: str) -> model.AgentRow:
        """`retry` on a FAILED agent; clears its budget. Refused (WRONG_STATE)."""

    async def hibernate(
        self,
        crew: str,
        step: model.Step,
        moved_at: datetime,
        state: model.StateRow,
        request: model.RequestKey | None,
    ) -> model.Stepped:
        """Carry out a `ttl_expired` step and store the agent's state with it, in one transaction; the stored bytes
        are read back and compared by checksum before the instance is given up. The step loses, and nothing is
        stored, where the agent has moved since `moved_at` (its state would be older than its last work) or has
        pending signals. Unavailable where what was stored is not what was given."""

    async def wake_agent(self, agent: str, request: model.RequestKey | None, actor: str) -> model.AgentRow:
        """`wake` on a HIBERNATING agent; one that is frozen gets `thaw_wanted` and is returned still frozen; one
        that lives is returned as it is. Refused (WRONG_STATE) for one that ends, has ended or was given up."""

    async def freeze_agent(
        self,
        agent: model.AgentRow,
        actor: str,
        reason: str,
        message: str,
        request: model.RequestKey | None,
    ) -> model.AgentRow | None:
        """Set `frozen_at` of a READY agent, with its condition's event; `updated_at` stays, as it is still idle.
        None where it has moved since the row was read, has pending signals, or is frozen already."""

    async def thaw_agent(self, agent: str, generation: int, actor: str, reason: str) -> model.AgentRow | None:
        """Clear `frozen_at` of a READY agent, with its condition's event; `updated_at` is now. None where it is
        not frozen, or in another generation. Every step clears it, too, without an event."""

    async def saved_state(self, agent: str) -> model.StateRow | None:
        """The newest state of an agent. States older than a generation are dropped when it becomes READY
        (`health_ok`), all of them with `drained`."""

    async def lease_crews(self, owner: str, *, lease_s: float, limit: int) -> Sequence[str]:
        """Take (or prolong) the reconciler's lease on crews that are not settled or due, SKIP LOCKED; their ids.

        A crew is due when it is live and its lease is free or this owner's (so that adoption and expiry are
        seen), or draining. Settled terminal crews are never returned.
        """

    async def release_crews(self, owner: str) -> None:
        """Give all leases of this owner back (clean shutdown)."""

    async def release_instance(self, instance: str) -> None:
        """Mark an instance DYING, from whatever state. Idempotent; unknown ids are fine."""

    async def release_instances(self, instances: Sequence[str]) -> None:
        """`release_instance` for many in one transaction."""

    async def forget_instances(self, instances: Sequence[str]) -> None:
        """`forget_instance` for many in one transaction."""

    async def dying_instances(self, limit: int) -> Sequence[model.InstanceRow]:
        """Instances that must be destroyed."""

    async def forget_instance(self, instance: str) -> None:
        """The instance is destroyed: delete its row."""

    async def list_instances(self) -> Sequence[model.InstanceRow]:
        """All rows, for adoption and sweeping."""

    async def record_health(self, facts: Sequence[model.HealthFact]) -> int:
        """Write heartbeats and misses (asynchronous commit, no event, no registry change); the number of facts
        about an older generation, which are ignored."""


class EventStore(Protocol):
    """The event log."""

    async def append(self, crew: str, events: Sequence[events_pb2.Event]) -> int:
        """Append (sequence, time and crew are filled in here); the last sequence. NotFound."""

    async def read_events(self, crew: str, after: int, limit: int) -> Sequence[model.EncodedEvent]:
        """Events of a crew with sequence > after, in order."""

    async def event_bounds(self, crew: str) -> tuple[int, int]:
        """(oldest kept sequence or head + 1, head sequence). NotFound."""

    async def read_all_events(self, mark: str, limit: int) -> tuple[Sequence[model.EncodedEvent], str]:
        """Events of all crews in a gap-free commit order after `mark` ('' = oldest; `latest_mark()` = now)."""

    async def latest_mark(self) -> str:
        """The mark from which only later commits are read."""

    async def compact_events(self, *, keep_s: float, keep_per_crew: int) -> int:
        """Drop old events of settled and live crews beyond retention, requests older than 24 h, tasks and
        broadcasts that ended before it, crews that ended `keep_s` ago, with all that is theirs, and audit rows
        older than 400 days; how many rows."""


class BroadcastStore(Protocol):
    """Broadcasts and their receipts."""

    async def open_broadcast(
        self,
        crew: str,
        request: model.RequestKey,
        actor: str,
        *,
        signal: str,
        payload: bytes,
        agents: Sequence[tuple[str, str]],
        ttl_s: float,
    ) -> tuple[model.BroadcastRow, bool]:
        """Record a broadcast to (id, name) pairs with PENDING receipts and its SIGNAL event; second: joined."""

    async def get_broadcast(self, broadcast: str) -> model.BroadcastRow:
        """NotFound."""

    async def record_receipts(
        self, broadcast: str, receipts: Sequence[model.ReceiptRow]
    ) -> Sequence[model.ReceiptRow]:
        """Make PENDING receipts final (exactly once each), append RECEIPT events, close the broadcast when none
        is pending; those that became final now, with ordinals."""

    async def read_receipts(self, broadcast: str, after: int) -> Sequence[model.ReceiptRow]:
        """Final receipts with ordinal > after, in order."""

    async def pending_receipts(
        self, crew: str
    ) -> Sequence[tuple[model.BroadcastRow, Sequence[model.ReceiptRow]]]:
        """Open broadcasts of a crew with their pending receipts (for redelivery and expiry)."""


class TaskStore(Protocol):
    """Tasks."""

    async def open_task(
        self,
        crew: str,
        agents: Sequence[str],
        request: model.RequestKey,
        actor: str,
        *,
        input: bytes,
        timeout_s: float,
        lease_s: float,
    ) -> tuple[model.TaskRow, bool]:
        """Acquire the first of `agents` (ids, in order of preference) that is READY, READY → BUSY with holder
        `task/<id>`, and record the task with its TASK event; second: joined. Refused (WRONG_STATE where none
        is READY; LEASE_HELD where all are BUSY; metadata state/holder)."""

    async def close_task(self, task: str, *, phase: str, result: bytes) -> model.TaskRow:
        """End a task once: TASK event, and BUSY → READY if this task still holds the agent in that generation.
        A task that ended is returned as it is."""

    async def renew_task(self, task: str, *, lease_s: float) -> bool:
        """Prolong the lease of the task's agent; False where the task no longer holds it."""

    async def get_task(self, task: str) -> model.TaskRow:
        """NotFound."""

    async def agent_tasks(self, agent: str, limit: int, *, results: bool) -> Sequence[model.TaskRow]:
        """The newest tasks of an agent, newest first; without `results`, only those that failed carry one."""

    async def open_tasks(self, crew: str) -> Sequence[model.TaskRow]:
        """Tasks that have not ended."""


class ProfileStore(Protocol):
    """Profiles."""

    async def create_profile(
        self, row: model.ProfileRow, request: model.RequestKey | None
    ) -> model.ProfileRow:
        """AlreadyExists."""

    async def get_profile(self, name: str) -> model.ProfileRow:
        """NotFound."""

    async def get_profiles(self, names: Sequence[str]) -> Mapping[str, model.ProfileRow]:
        """Those that exist."""

    async def list_profiles(self, page: model.Page) -> Sequence[model.ProfileRow]:
        """By name, at most page.size + 1."""

    async def update_profile(
        self, row: model.ProfileRow, expect_version: int, request: model.RequestKey | None
    ) -> model.ProfileRow:
        """Write version expect_version + 1 (old versions are kept by digest). Stale, NotFound."""

    async def ensure_profile(self, row: model.ProfileRow) -> None:
        """Make or update a built-in profile; no change where its digest and its image (if given) are the same."""


class ContextStore(Protocol):
    """The mirror of crews' contexts, and small things."""

    async def mirror_context(
        self, crew: str, rows: Sequence[model.ContextRow], cursor: str
    ) -> Sequence[model.ContextRow]:
        """Upsert rows whose version is newer than the stored one, append CONTEXT events for them, move the
        crew's context_cursor; those that were new. Idempotent, so that several replicas may tail."""

    async def read_context(self, crew: str) -> Sequence[model.ContextRow]:
        """All keys that are set."""

    async def find_request(self, request: model.RequestKey) -> str | None:
        """The stored reference of an earlier request with this key and hash; None for a new one. Invalid
        (REQUEST_ID_REUSED)."""

    async def save_request(self, request: model.RequestKey, reference: str) -> str:
        """Store the reference of a request once; the one that stands."""

    async def secret(self, name: str) -> bytes:
        """32 random bytes under this name, made once for all replicas."""

    async def audit(self, rows: Sequence[model.AuditRow]) -> None:
        """Append."""

    async def list_audit(self, page: model.Page) -> Sequence[model.AuditRow]:
        """Newest first, at most page.size + 1; `page.after` is the last id."""

    async def now(self) -> datetime:
        """The database's clock; also the check that it answers."""


class Store(
    CrewStore,
    SkillStore,
    PoolStore,
    NetworkStore,
    EventStore,
    BroadcastStore,
    TaskStore,
    ToolStore,
    ProfileStore,
    ContextStore,
    VectorStore,
    Protocol,
):
    """Everything kept."""


class Bus(Protocol):
    """The crews' shared bus. Raises Unavailable where it does not answer."""

    socket_path: str
    """The bus socket on the host, to be wired into sandboxes as `bus.sock`."""

    async def grant(self, crew: str, agent: str, generation: int) -> agent_service_pb2.BusAccess:
        """Make the ACL user of this generation (idempotent; the password is derived from a factory secret)."""

    async def revoke(self, crew: str, agent: str, generation: int) -> None:
        """Delete the ACL user and cut its connections. Idempotent."""

    async def drop_crew(self, crew: str) -> None:
        """Delete every user and key of the crew. Idempotent."""

    async def list_users(self) -> Sequence[tuple[str, str, int]]:
        """(crew, agent, generation) of every ACL user of ours, for sweeping."""

    async def list_crews(self) -> Sequence[str]:
        """Crews that have any key, for sweeping."""

    async def put_context(
        self, crew: str, key: str, value: str | None, actor: str, if_version: int | None
    ) -> int:
        """Set (or with None remove) a key; its new version. Refused (VERSION_MISMATCH)."""

    async def get_context(self, crew: str, key: str) -> model.ContextRow:
        """NotFound."""

    async def list_context(self, crew: str, prefix: str) -> Sequence[model.ContextRow]:
        """By key."""

    async def restore_context(self, crew: str, rows: Sequence[model.ContextRow]) -> None:
        """After a wipe: put back rows (with their versions) that are missing or older."""

    async def read_context_log(
        self, crew: str, cursor: str, *, block_s: float
    ) -> tuple[Sequence[model.ContextRow], str]:
        """Changes after the cursor ('' = from the start), waiting up to block_s for the first; next cursor."""

    async def tail_contexts(
        self, cursors: Mapping[str, str], *, block_s: float
    ) -> Sequence[tuple[str, Sequence[model.ContextRow], str]]:
        """`read_context_log` for many crews in one call: (crew, changes, next cursor) where there are any."""

    async def incarnation(self) -> str:
        """Changes when the server restarted (its run id), so that users are granted anew."""

    async def ring(self, topic: str) -> None:
        """Ring a doorbell for other replicas; a hint, never a fact."""

    def doorbells(self) -> AsyncIterator[str]:
        """Topics as they are rung (by anyone, this process included); reconnects by itself."""


class Egress(Protocol):
    """Crews' ways out: a CONNECT proxy on one unix socket for each crew that may have one."""

    async def open(self, crew: str, network: crew_service_pb2.CrewNetwork) -> str:
        """Be open for the crew with these rules (idempotent; new rules hold from then on); the socket's path on
        the host, to be wired into sandboxes as `egress.sock`. Raises Unavailable."""

    async def close(self, crew: str) -> None:
        """Nothing is open for the crew any more, and no socket is left. Idempotent."""

    async def list_crews(self) -> Sequence[str]:
        """Crews that have a socket, for sweeping."""


class Identities(Protocol):
    """Certificates and tokens of agents."""

    def identify(self, agent: model.AgentRow) -> agent_service_pb2.Identity:
        """Certificate, key and token for this generation."""

    def token_ttl_s(self) -> float:
        """How long a token lives; identities are renewed at half of it."""
