"""Who may call which method: rows read from the contract's `policy` option, default deny."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from hyperfactory.v1 import options_pb2
from wire.errors import Denied, Unauthenticated


class Principal(IntEnum):
    """Who calls, as the SPIFFE id says; numbers are those of the contract's `Principal`."""

    OPERATOR = options_pb2.PRINCIPAL_OPERATOR
    AGENT = options_pb2.PRINCIPAL_AGENT
    WATCHDOG = options_pb2.PRINCIPAL_WATCHDOG
    GATEWAY = options_pb2.PRINCIPAL_GATEWAY
    FACTORY = options_pb2.PRINCIPAL_FACTORY


class Resource(IntEnum):
    """On whose resources an agent may act; numbers are those of the contract's `ResourceRule`."""

    ANY = options_pb2.RESOURCE_RULE_ANY
    OWN_CREW = options_pb2.RESOURCE_RULE_OWN_CREW
    SELF = options_pb2.RESOURCE_RULE_SELF


# The factory's own parts are known by their certificates; the others also show a token.
TOKEN_PRINCIPALS: Final = frozenset({Principal.OPERATOR, Principal.AGENT})
ADMIN: Final = "admin"

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
REFLECTION_SERVICES: Final = (
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
)
CHANNELZ_SERVICE: Final = "grpc.channelz.v1.Channelz"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as proven. `name` is the user, the agent, or the part; `agent` is set for agents only."""

    principal: Principal
    spiffe: str
    name: str = ""
    crew: str = ""
    agent: str = ""
    generation: int = 0
    scopes: frozenset[str] = frozenset()
    peer: str = ""
    thumbprint: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The policy of one method."""

    method: str
    principals: frozenset[Principal]
    scopes: frozenset[str] = frozenset()
    resource: Resource = Resource.ANY
    mutates: bool = False
    default_deadline_s: float = 0.0
    audited: bool = False
    planned: str = ""
    # False for builtin services: a client certificate is enough, and their messages are not ours to judge.
    ours: bool = True


_caller: ContextVar[Caller] = ContextVar("wire.caller")


def current_caller() -> Caller:
    """Who makes the call that is being served."""
    try:
        return _caller.get()
    except LookupError:
        raise Unauthenticated("no call is being served here") from None


def set_caller(caller: Caller) -> None:
    """Say who calls, for the rest of this task: the interceptor's business, and that of tests."""
    _caller.set(caller)


class PolicyTable:
    """Method (`/package.Service/Method`) to row."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = dict(rows)

    @classmethod
    def from_services(
        cls, *services: ServiceDescriptor, foreign: Mapping[ServiceDescriptor, Iterable[Row]] | None = None
    ) -> PolicyTable:
        """The table of these services and of the builtin ones; a method without a row is an error.

        `foreign` are services of others' contracts, whose methods carry no option, with their rows.
        """
        rows = {row.method: row for service in services for row in _rows(service)}
        for service, given in (foreign or {}).items():
            own = {row.method: row for row in given}
            missing = [method_path(m) for m in service.methods if method_path(m) not in own]
            if missing:
                raise ValueError(f"cannot serve methods without a policy row: {', '.join(sorted(missing))}")
            rows |= own
        return cls(rows | builtin_rows())

    @property
    def rows(self) -> Mapping[str, Row]:
        return self._rows

    def row(self, method: str) -> Row | None:
        return self._rows.get(method)

    def check_services(self, methods: Iterable[str]) -> None:
        """Refuse to start with a method (`/package.Service/Method`) that has no row."""
        missing = sorted(set(methods) - self._rows.keys())
        if missing:
            raise ValueError(f"cannot serve methods without a policy row: {', '.join(missing)}")


def method_path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _rows(service: ServiceDescriptor) -> Iterable[Row]:
    for method in service.methods:
        options = method.GetOptions()
        if not options.HasExtension(options_pb2.policy):
            raise ValueError(f"cannot serve {method_path(method)}: it has no policy row")
        yield _row(method_path(method), options.Extensions[options_pb2.policy])


def _row(path: str, policy: options_pb2.MethodPolicy) -> Row:
    return Row(
        method=path,
        principals=frozenset(Principal(number) for number in policy.principals if number),
        scopes=frozenset(policy.scopes),
        resource=Resource(policy.resource or Resource.ANY),
        mutates=policy.mutates,
        default_deadline_s=policy.default_deadline_ms / 1000,
        audited=policy.audited,
        planned=policy.planned,
    )


def builtin_rows() -> dict[str, Row]:
    """Health and reflection for whoever has a certificate, channelz for operators who are admins."""
    anyone = frozenset(Principal)
    operator = frozenset({Principal.OPERATOR})
    rows = [
        Row(f"/{HEALTH_SERVICE}/Check", anyone, default_deadline_s=5.0, ours=False),
        Row(f"/{HEALTH_SERVICE}/List", anyone, default_deadline_s=5.0, ours=False),
        Row(f"/{HEALTH_SERVICE}/Watch", anyone, ours=False),
    ]
    rows += [Row(f"/{name}/ServerReflectionInfo", anyone, ours=False) for name in REFLECTION_SERVICES]
    rows += [
        Row(
            f"/{CHANNELZ_SERVICE}/{name}",
            operator,
            frozenset({ADMIN}),
            default_deadline_s=5.0,
            audited=True,
            ours=False,
        )
        for name in (
            "GetTopChannels",
            "GetServers",
            "GetServer",
            "GetServerSockets",
            "GetChannel",
            "GetSubchannel",
            "GetSocket",
        )
    ]
    return {row.method: row for row in rows}


def needs_token(row: Row, principal: Principal) -> bool:
    return principal in TOKEN_PRINCIPALS and (row.ours or bool(row.scopes))


def authorize(row: Row, caller: Caller) -> None:
    """Raise Denied unless the row lets this caller in; whose resources it may touch is asked by the guard."""
    if caller.principal not in row.principals:
        raise Denied(
            f"{caller.principal.name.lower()} may not call {row.method}", metadata={"method": row.method}
        )
    if row.scopes and caller.principal in TOKEN_PRINCIPALS and row.scopes.isdisjoint(caller.scopes):
        raise Denied(
            f"the token's scope does not reach {row.method}",
            reason="SCOPE_MISSING",
            metadata={"method": row.method, "scope": " ".join(sorted(row.scopes))},
        )
