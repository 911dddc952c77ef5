"""Every method of every service has a row, and each row lets in exactly whom it names."""

from __future__ import annotations

import itertools

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hyperfactory.v1 import (
    agent_service_pb2,
    crew_service_pb2,
    factory_service_pb2,
    options_pb2,
    profile_service_pb2,
)
from wire.errors import Denied, Unauthenticated
from wire.policy import (
    TOKEN_PRINCIPALS,
    Caller,
    PolicyTable,
    Principal,
    Resource,
    Row,
    authorize,
    current_caller,
    method_path,
    needs_token,
)
from wire.tokens import SCOPES

FILES = (agent_service_pb2, crew_service_pb2, factory_service_pb2, profile_service_pb2)
SERVICES = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]
TABLE = PolicyTable.from_services(*SERVICES)
BUILTIN = [
    *health_pb2.DESCRIPTOR.services_by_name.values(),
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
    *channelz_pb2.DESCRIPTOR.services_by_name.values(),
]
SCOPE_SETS = [frozenset(some) for size in range(3) for some in itertools.combinations(sorted(SCOPES), size)]


@pytest.mark.parametrize("method", METHODS, ids=method_path)
def test_each_method_has_a_row_that_somebody_may_use(method: object) -> None:
    row = TABLE.row(method_path(method))  # type: ignore[arg-type]
    assert row is not None
    assert row.principals, "a row without principals serves nobody"
    assert row.scopes <= SCOPES, "no token can carry such a scope"
    if row.principals & TOKEN_PRINCIPALS and row.mutates:
        assert row.scopes, "a method that changes something asks holders of tokens for a scope"


@pytest.mark.parametrize("method", METHODS, ids=method_path)
def test_each_row_lets_in_exactly_whom_it_names(method: object) -> None:
    row = TABLE.row(method_path(method))  # type: ignore[arg-type]
    assert row is not None
    for principal, scopes in itertools.product(Principal, SCOPE_SETS):
        caller = Caller(principal, "spiffe://x", scopes=scopes)
        named = principal in row.principals
        reaches = principal not in TOKEN_PRINCIPALS or not row.scopes or bool(row.scopes & scopes)
        if named and reaches:
            authorize(row, caller)
            continue
        with pytest.raises(Denied) as caught:
            authorize(row, caller)
        assert caught.value.reason == ("SCOPE_MISSING" if named else "POLICY_DENIED")
        assert caught.value.metadata["method"] == row.method


@pytest.mark.parametrize("method", METHODS, ids=method_path)
def test_unary_methods_end_at_some_time(method: object) -> None:
    row = TABLE.row(method_path(method))  # type: ignore[arg-type]
    assert row is not None
    streams = method.server_streaming or method.client_streaming  # type: ignore[attr-defined]
    assert streams or row.default_deadline_s > 0


def test_agents_are_always_held_to_a_crew_where_they_may_call_an_agent() -> None:
    for row in TABLE.rows.values():
        if row.method.startswith("/hyperfactory.v1.AgentService/") and Principal.AGENT in row.principals:
            assert row.resource in (Resource.OWN_CREW, Resource.SELF), row.method


def test_builtin_services_have_rows_and_channelz_is_for_admins() -> None:
    methods = [method_path(method) for service in BUILTIN for method in service.methods]
    TABLE.check_services(methods)
    for method in methods:
        row = TABLE.row(method)
        assert row is not None
        assert ("channelz" in method) == (row.scopes == {"admin"})


def test_a_served_method_without_a_row_stops_the_start() -> None:
    with pytest.raises(ValueError, match=r"/a\.B/C"):
        TABLE.check_services(["/a.B/C", method_path(METHODS[0])])


def test_a_declared_method_without_a_row_stops_the_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="bare.proto", package="bare")
    file.message_type.add(name="M")
    file.service.add(name="S").method.add(name="Do", input_type=".bare.M", output_type=".bare.M")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(ValueError, match=r"/bare\.S/Do"):
        PolicyTable.from_services(pool.FindServiceByName("bare.S"))


def test_principals_are_those_of_the_contract() -> None:
    declared = dict(options_pb2.Principal.items())
    assert {f"PRINCIPAL_{entry.name}": entry.value for entry in Principal} == {
        name: number for name, number in declared.items() if number
    }


def test_a_token_is_asked_of_operators_and_agents_only() -> None:
    ours, builtin = Row("/x/Y", frozenset(Principal)), Row("/x/Z", frozenset(Principal), ours=False)
    assert {who for who in Principal if needs_token(ours, who)} == TOKEN_PRINCIPALS
    assert not any(needs_token(builtin, who) for who in Principal)


def test_outside_of_a_call_there_is_no_caller() -> None:
    with pytest.raises(Unauthenticated):
        current_caller()
