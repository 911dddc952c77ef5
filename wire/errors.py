"""Few errors in native words; `wire.status` maps them to gRPC statuses in one table.

Reasons are names of the contract's `ErrorReason` enum without their prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path in the request, and what is wrong with it."""

    field: str
    description: str
    reason: str = ""


@dataclass(eq=False)
class FactoryError(Exception):
    """What every error of ours carries: a sentence that names the thing, and a stable reason."""

    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


@dataclass(eq=False)
class Invalid(FactoryError):
    """The request cannot be carried out as it is written; `violations` name the fields."""

    reason: str = "FIELD_INVALID"
    violations: Sequence[FieldViolation] = ()


@dataclass(eq=False)
class SkillRefused(Invalid):
    """The archive of a skill pack is not one that we take; the metadata names the `rule`."""

    reason: str = "SKILL_REFUSED"


@dataclass(eq=False)
class NotFound(FactoryError):
    """No such thing; `resource_type` and `resource_name` tell which."""

    reason: str = "RESOURCE_NOT_FOUND"
    resource_type: str = ""
    resource_name: str = ""


@dataclass(eq=False)
class AlreadyExists(FactoryError):
    """The name, or the request id with another request, is taken."""

    reason: str = "RESOURCE_EXISTS"


@dataclass(eq=False)
class Refused(FactoryError):
    """The thing's state does not allow it (FAILED_PRECONDITION)."""

    reason: str = "WRONG_STATE"


@dataclass(eq=False)
class DigestMismatch(Refused):
    """What is stored or pinned has another digest (metadata: `skill`, `digest`); nothing of it is used."""

    reason: str = "DIGEST_MISMATCH"


@dataclass(eq=False)
class Stale(FactoryError):
    """Another writer was first; look again (ABORTED)."""

    reason: str = "LOST_RACE"


@dataclass(eq=False)
class Exhausted(FactoryError):
    """A limit is reached; `retry_after_s` says when to come back."""

    reason: str = "LIMIT_REACHED"
    retry_after_s: float = 1.0
    quota: str = ""


@dataclass(eq=False)
class Unavailable(FactoryError):
    """A part did not answer; says nothing about the effect."""

    reason: str = "DEPENDENCY_UNAVAILABLE"
    retry_after_s: float = 0.5


@dataclass(eq=False)
class Unauthenticated(FactoryError):
    """Who calls is not proven."""

    reason: str = "CREDENTIALS_INVALID"


@dataclass(eq=False)
class Denied(FactoryError):
    """Who calls is known and may not."""

    reason: str = "POLICY_DENIED"


@dataclass(eq=False)
class OutOfRange(FactoryError):
    """A cursor older than what is kept."""

    reason: str = "CURSOR_COMPACTED"


@dataclass(eq=False)
class Unimplemented(FactoryError):
    """Declared in the contract, not served by this release."""

    reason: str = "NOT_SERVED_YET"


@dataclass(eq=False)
class DeadlineExceeded(FactoryError):
    """Time ran out; the work may go on, as the method says."""

    reason: str = "DEADLINE_EXCEEDED"


@dataclass(eq=False)
class AgentCodeFailed(FactoryError):
    """The agent's own code raised an error."""

    reason: str = "AGENT_CODE_FAILED"


@dataclass(eq=False)
class Internal(FactoryError):
    """A defect of ours; the text says nothing, the log line with the `incident` tells more."""

    reason: str = "INTERNAL"
