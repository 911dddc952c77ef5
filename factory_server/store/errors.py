"""Translate what PostgreSQL says into native errors: the one place that knows its codes and constraints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import psycopg
from psycopg import errors as pg

from factory_server.core.errors import AlreadyExists, Exhausted, FactoryError, Invalid, Stale, Unavailable

_KEY_RE = re.compile(r"\)=\((?:.*, )?([^,]*)\) ")


def _taken(kind: str) -> Callable[[psycopg.Error], FactoryError]:
    def translate(error: psycopg.Error) -> FactoryError:
        found = _KEY_RE.search(error.diag.message_detail or "")
        name = found.group(1) if found else ""
        return AlreadyExists(f"cannot create {kind} '{name}': the name is taken", metadata={"name": name})

    return translate


def _raced(what: str) -> Callable[[psycopg.Error], FactoryError]:
    def translate(error: psycopg.Error) -> FactoryError:
        return Stale(f"cannot write: {what}")

    return translate


CONSTRAINTS: Mapping[str, Callable[[psycopg.Error], FactoryError]] = {
    "agent_name_taken": _taken("agent"),
    "agent_pkey": _taken("agent"),
    "agent_uid": _taken("agent"),
    "crew_pkey": _taken("crew"),
    "profile_pkey": _taken("profile"),
    "profile_version_pkey": _raced("another writer made this version of the profile"),
    "agent_transition_known": _raced("the agent's state does not lead there"),
    "agent_generation_rises": _raced("a newer generation of the agent exists"),
    "instance_one_per_generation": _raced("this generation of the agent has an instance"),
    "instance_pkey": _raced("the instance exists"),
    "network_one_per_crew": _raced("the crew has a network"),
    "event_pkey": _raced("another writer appended this event"),
    "skill_pack_pkey": _raced("the skill pack exists"),
    "receipt_ordinal": _raced("another writer recorded this receipt"),
    "agent_state_size": lambda _: Exhausted("cannot keep a state of more than 16 MiB", quota="state bytes"),
}
"""What a violated constraint means to a caller. One that is not named here is a defect of ours and stays as
it is, so that it is logged and never shown."""


def translate(error: psycopg.Error) -> Exception:
    """The native error, or the error itself where it is a defect."""
    match error:
        case pg.SerializationFailure() | pg.DeadlockDetected() | pg.LockNotAvailable():
            return Stale("cannot write: another writer holds the rows")
        case psycopg.OperationalError() | psycopg.InterfaceError() | pg.IdleInTransactionSessionTimeout():
            return Unavailable(f"the database does not answer: {_first_line(error)}")
        case psycopg.DataError():
            return Invalid(f"the database cannot store a value: {_first_line(error)}")
        case psycopg.IntegrityError():
            known = CONSTRAINTS.get(error.diag.constraint_name or "")
            return known(error) if known else error
        case _:
            return error


def is_lost_connection(error: psycopg.Error) -> bool:
    """True where the server or the way to it is gone, as opposed to a statement that failed."""
    if isinstance(error, pg.QueryCanceled | pg.LockNotAvailable):
        return False
    lost = psycopg.OperationalError | psycopg.InterfaceError | pg.IdleInTransactionSessionTimeout
    return isinstance(error, lost)


def is_outdated_plan(error: psycopg.Error) -> bool:
    """True where a newer factory changed a table that this connection has prepared statements about."""
    return isinstance(error, pg.FeatureNotSupported) and "cached plan" in str(error)


def _first_line(error: psycopg.Error) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
