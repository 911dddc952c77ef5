"""Whatever the bytes, reading a request or a token ends in a request, or in an error of the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory_server.identity.mint import TokenMint
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2, factory_service_pb2
from wire.errors import Invalid, Unauthenticated
from wire.forwarded import read_forwarded
from wire.requests import RequestReader
from wire.tokens import TokenVerifier
from wire.validation import RequestValidator

KINDS: list[Any] = [
    crew_service_pb2.AssembleCrewRequest,
    crew_service_pb2.BroadcastRequest,
    factory_service_pb2.SpawnAgentRequest,
    agent_service_pb2.AssumeRequest,
]
VALIDATE = RequestValidator()


@given(st.sampled_from(KINDS), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes(kind: Any, body: bytes) -> None:
    try:
        request = RequestReader("/a.B/C", kind.FromString, VALIDATE, strict=True)(body)
    except Invalid as error:
        assert error.reason in ("MALFORMED_MESSAGE", "FIELD_INVALID")
    else:
        assert isinstance(request, kind)


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    mint = TokenMint.open(tmp_path_factory.mktemp("mint"))
    verifier = TokenVerifier(mint.jwks)
    return lambda token: verifier.verify(token, thumbprint="t" * 43)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,20}")))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_as_a_token(verify: Callable[[str], Any], text: str) -> None:
    with pytest.raises(Unauthenticated):
        verify(text)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_as_a_forwarded_certificate(text: str) -> None:
    with pytest.raises(Unauthenticated):
        read_forwarded(text)
