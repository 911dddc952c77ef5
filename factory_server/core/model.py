"""What the factory knows, as rows: crews, agents, instances, profiles, broadcasts, tasks.

Rows are facts read from the store at one moment. Times are aware UTC datetimes of the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from factory_server.core.lifecycle import SERVING, AgentEvent, AgentState, CrewState
from factory_server.core.networks import NetworkWish
from hyperfactory.v1 import crew_service_pb2, events_pb2, types_pb2


class InstanceState(StrEnum):
    """Where an instance is: intent first, then effect."""

    STARTING = "STARTING"
    WARM = "WARM"
    OWNED = "OWNED"
    DYING = "DYING"


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """One sandbox, wished or existing. `agent` is empty while it waits in the pool."""

    id: str
    base: str
    state: InstanceState
    agent: str = ""
    generation: int = 0
    driver: str = ""
    control: str = ""
    direct: str = ""
    host_pid: int = 0
    container_id: str = ""
    address: str = ""
    """On its crew's network, once it is a member."""
    network: str = ""
    """That of the cell that it was made for; '' for any other."""


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One member of a crew. `instance` is what carries it now, or None."""

    id: str
    uid: str
    crew: str
    name: str
    group: str
    replicas: int
    profile: str
    profile_digest: str
    spec: types_pb2.ProfileSpec
    scope: str
    labels: Mapping[str, str]
    state: AgentState
    generation: int
    warm: bool
    reason: str
    message: str
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None = None
    heartbeat_at: datetime | None = None
    misses: int = 0
    lease_holder: str = ""
    lease_until: datetime | None = None
    not_before: datetime | None = None
    drain_until: datetime | None = None
    replacements: int = 0
    replaced_since: datetime | None = None
    frozen_at: datetime | None = None
    """Since when its instance is frozen in place: READY, and yet it serves nobody until it is thawed."""
    thaw_wanted: bool = False
    """Somebody wants to use it."""
    instance: InstanceRow | None = None

    @property
    def serves(self) -> bool:
        """Whether it takes calls as it is, without being woken."""
        return self.state in SERVING and self.frozen_at is None

    @property
    def sleeps(self) -> bool:
        """Whether it must be woken to be used: stored away, or frozen in place."""
        return self.state is AgentState.HIBERNATING or (self.state in SERVING and self.frozen_at is not None)


@dataclass(frozen=True, slots=True)
class CrewRow:
    """One crew, with its members by name."""

    id: str
    uid: str
    name: str
    manifest: crew_service_pb2.CrewManifest
    state: CrewState
    wish_gone: bool
    failed: bool
    solo: bool
    last_sequence: int
    reason: str
    message: str
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    drain_until: datetime | None = None
    context_cursor: str = ""
    agents: Sequence[AgentRow] = ()


def in_order(agents: Iterable[AgentRow]) -> tuple[AgentRow, ...]:
    """As crews show their members: by name, `coder-10` after `coder-9`; who bore a name first comes first."""
    return tuple(sorted(agents, key=lambda agent: (_natural(agent.name), agent.id)))


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("-")
    return (head, int(tail)) if head and tail.isascii() and tail.isdigit() else (name, 0)


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """A profile at its newest version."""

    name: str
    version: int
    digest: str
    spec: types_pb2.ProfileSpec
    stage: str
    description: str
    created_at: datetime
    updated_at: datetime
    image_digest: str = ""
    """Of its base when this version was written; '' where the driver has no images."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a mutation idempotent: the same key with another hash is refused (REQUEST_ID_REUSED)."""

    actor: str
    method: str
    request_id: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """An agent to be made."""

    id: str
    uid: str
    name: str
    group: str
    replicas: int
    profile: str
    profile_digest: str
    spec: types_pb2.ProfileSpec
    scope: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CrewPlan:
    """A crew to be made."""

    id: str
    uid: str
    manifest: crew_service_pb2.CrewManifest
    agents: Sequence[AgentPlan]
    solo: bool = False
    network: NetworkWish | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One move of one agent, by compare-and-swap on (state, generation).

    `sources` are the states it may leave from; the target follows from the table. Fields that are None stay
    as they are.
    """

    agent: str
    generation: int
    sources: tuple[AgentState, ...]
    event: AgentEvent
    actor: str
    reason: str = ""
    message: str = ""
    sandbox: SandboxFact | None = None
    """With `instance_started`: where the instance answers."""
    direct: str | None = None
    """With `health_ok`: the service endpoint's target."""
    lease_holder: str | None = None
    lease_s: float | None = None
    drain_s: float | None = None
    """With `shutdown`: how long tasks may go on."""
    not_before_s: float | None = None
    """The reconciler leaves the agent alone for so long (backoff)."""


@dataclass(frozen=True, slots=True)
class SandboxFact:
    """Where an instance that started answers."""

    instance: str
    driver: str
    control: str
    host_pid: int
    container_id: str


@dataclass(frozen=True, slots=True)
class StateRow:
    """What hibernation kept of an agent: the state of that generation's instance, in the runtime's encoding."""

    generation: int
    data: bytes
    sha256: str
    """In hex, as the instance gave it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step: the row after it, or None where another writer was first."""

    step: Step
    agent: AgentRow | None


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one transaction did to one crew."""

    results: Sequence[StepResult]
    crew_state: CrewState
    last_sequence: int
    head: CrewHead | None = None


@dataclass(frozen=True, slots=True)
class CrewHead:
    """What a crew's row says of itself after a transaction, and who its members are."""

    reason: str
    message: str
    ready_at: datetime | None
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class PoolRow:
    """The warm pool of one base."""

    base: str
    target: int
    ready: int
    starting: int
    claimed: int
    missed: int
    degraded_reason: str = ""
    degraded_message: str = ""
    degraded_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class HealthFact:
    """A heartbeat as the watchdog saw it; no state moves by it."""

    agent: str
    generation: int
    misses: int
    seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class BroadcastRow:
    """A durable broadcast."""

    id: str
    crew: str
    signal: str
    payload: bytes
    """A serialised google.protobuf.Struct."""
    actor: str
    targets: int
    created_at: datetime
    expires_at: datetime
    done_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """One target of a broadcast; `stage` is PENDING until its final receipt. `ordinal` is the order in which
    receipts became final (from 1), 0 while pending."""

    broadcast: str
    agent: str
    name: str
    generation: int
    stage: str
    ordinal: int
    latency_s: float
    error: bytes = b""
    """A serialised google.rpc.Status."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task given to an agent."""

    id: str
    crew: str
    agent: str
    generation: int
    phase: str
    """ASSIGNED, COMPLETED or FAILED."""
    input: bytes
    result: bytes
    """A serialised TaskResult; empty until it ended."""
    actor: str
    created_at: datetime
    deadline_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One key of a crew's context as mirrored from the bus. `value` is JSON; None where it was removed."""

    key: str
    value: str | None
    version: int
    actor: str


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Somebody did something, or was refused."""

    actor: str
    method: str
    resource: str
    peer: str
    outcome: str
    reason: str
    id: int = 0
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event as stored: its place and its bytes (a whole serialised Event)."""

    crew: str
    sequence: int
    type: int
    agent: str
    data: bytes

    def decode(self) -> events_pb2.Event:
        """The message."""
        return events_pb2.Event.FromString(self.data)


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list: up to `size` items after the opaque-to-callers key `after`."""

    size: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Terms of a list filter; empty means any. Without `states`, STOPPED agents are left out."""

    states: frozenset[AgentState] = frozenset()
    crew: str = ""
    profile: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CrewFilter:
    """Terms of a list filter; empty means any. Without `states`, DISBANDED and FAILED are left out."""

    states: frozenset[CrewState] = frozenset()
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
