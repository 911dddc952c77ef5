"""The small grammar of list filters: `term AND term …`, a term is `name=value`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentFilter, CrewFilter

AGENT_NAMES = ("state", "crew", "profile")
CREW_NAMES = ("state", "name")
S = TypeVar("S", AgentState, CrewState)


def agent_filter(text: str) -> AgentFilter:
    """Parse a filter of ListAgents. Invalid."""
    terms, labels = _terms(text, AGENT_NAMES)
    states = frozenset(_state(s, AgentState) for s in terms.get("state", "").split("|") if s)
    return AgentFilter(
        states=states, crew=terms.get("crew", ""), profile=terms.get("profile", ""), labels=labels
    )


def crew_filter(text: str) -> CrewFilter:
    """Parse a filter of ListCrews. Invalid."""
    terms, labels = _terms(text, CREW_NAMES)
    states = frozenset(_state(s, CrewState) for s in terms.get("state", "").split("|") if s)
    return CrewFilter(states=states, name=terms.get("name", ""), labels=labels)


def _terms(text: str, names: tuple[str, ...]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    terms: dict[str, str] = {}
    labels: dict[str, str] = {}
    for term in text.split(" AND ") if text.strip() else []:
        name, equals, value = (part.strip() for part in term.partition("="))
        if not equals or not value:
            raise _bad(f"'{term.strip()}' is no term; write name=value")
        if name.startswith("label."):
            labels[name.removeprefix("label.")] = value
        elif name not in names:
            raise _bad(f"'{name}' cannot be filtered by; known: {', '.join(names)}, label.<key>")
        elif name in terms or any(map(str.isspace, value)):
            raise _bad(f"'{term.strip()}' is no term; join different terms by ' AND '")
        else:
            terms[name] = value
    return terms, labels


def _state(text: str, kind: type[S]) -> S:
    try:
        return kind(text.strip().upper())
    except ValueError:
        raise _bad(f"'{text}' is no state; known: {', '.join(kind)}") from None


def _bad(description: str) -> Invalid:
    return Invalid(
        f"cannot filter: {description}", violations=[FieldViolation("filter", description, "FILTER_INVALID")]
    )
