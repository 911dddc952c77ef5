"""Hostile input: each gets its proper status with field or reason, and nothing is left behind."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from running import CALL_WITHIN_S, MANIFEST, Client, Running, connected, manifest, request_id

from factory_cli import leaks
from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from hyperfactory.v1 import crew_service_pb2 as cp
from wire.identity import operator_spiffe, thumbprint

pytestmark = pytest.mark.timeout(120)

ASSEMBLE = "/hyperfactory.v1.CrewService/AssembleCrew"
LIST = "/hyperfactory.v1.CrewService/ListCrews"


def details(error: grpc.aio.AioRpcError) -> tuple[str, set[str]]:
    """The reason and the fields that a refusal names."""
    status = rpc_status.from_call(error)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, {v.field for v in bad.field_violations}


async def refused(client: Client, request: cp.AssembleCrewRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.crews.AssembleCrew(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    return error.value


def member(**changes):
    return {"name": "worker", "profile": "generic"} | changes


BAD_MANIFESTS = {
    "no members": ({"members": []}, "manifest.members"),
    "duplicate names": ({"members": [member(), member()]}, "manifest.members[1].name"),
    "duplicate after numbering": (
        {"members": [member(name="a", replicas=2), member(name="a-1")]},
        "manifest.members[1].name",
    ),
    "star": ({"members": [member(name="*")]}, "manifest.members[0].name"),
    "traversal": ({"members": [member(name="../x")]}, "manifest.members[0].name"),
    "spaces": ({"members": [member(name="a b")]}, "manifest.members[0].name"),
    "64 characters": ({"members": [member(name="a" * 64)]}, "manifest.members[0].name"),
    "newline": ({"members": [member(name="a\n")]}, "manifest.members[0].name"),
    "upper case": ({"name": "Trio"}, "manifest.name"),
    "empty name": ({"name": ""}, "manifest.name"),
    "unknown profile": ({"members": [member(profile="nobody")]}, "manifest.members[0].profile"),
    "no profile": ({"members": [{"name": "x"}]}, "manifest.members[0].profile"),
    "negative replicas": ({"members": [member(replicas=-1)]}, "manifest.members[0].replicas"),
    "zero replicas": ({"members": [member(replicas=0)]}, "manifest.members[0].replicas"),
    "absurd replicas": ({"members": [member(replicas=2**31 - 1)]}, "manifest.members[0].replicas"),
    "too many agents": (
        {"members": [member(name="a", replicas=300), member(name="b", replicas=300)]},
        "manifest.members",
    ),
    "negative ttl": ({"ttl": "-1s"}, "manifest.ttl"),
    "absurd ttl": ({"ttl": "315576000000s"}, "manifest.ttl"),
    "wider scope": ({"members": [member(scope="admin")]}, "manifest.members[0].scope"),
    "unknown scope": ({"members": [member(scope="root")]}, "manifest.members[0].scope"),
    "bad env name": ({"members": [member(env={"A=B": "x"})]}, "manifest.members[0].env"),
    "bad context key": ({"context": {"../x": 1}}, "manifest.context"),
    "hosts without egress": ({"network": {"egressHosts": ["a.b"]}}, "manifest.network.egress_hosts"),
    "min ready above size": ({"policy": {"minReady": 400}}, "manifest.policy.min_ready"),
    "label key of ours": ({"labels": {"hyperfactory/x": "y"}}, "manifest.labels"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
async def test_a_bad_manifest_names_its_field(client, case):
    changes, field = BAD_MANIFESTS[case]
    request = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest(**changes))
    error = await refused(client, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    reason, fields = details(error)
    assert reason == "FIELD_INVALID"
    assert any(f.startswith(field) for f in fields), fields


async def test_each_bad_field_is_named_at_once(client):
    bad = manifest(name="*", members=[member(name="ok"), member(name="?", replicas=-5)])
    error = await refused(client, cp.AssembleCrewRequest(request_id="not a uuid", manifest=bad))
    _, fields = details(error)
    assert {
        "request_id",
        "manifest.name",
        "manifest.members[1].name",
        "manifest.members[1].replicas",
    } <= fields


async def test_a_manifest_of_257_kib_is_too_large(client):
    notes = {f"note-{i}": "x" * 8000 for i in range(33)}
    request = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest(annotations=notes))
    assert request.manifest.ByteSize() > 257 * 1024
    error = await refused(client, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error) == ("FIELD_INVALID", {"manifest"})


async def test_unknown_fields_are_refused(client):
    known = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest()).SerializeToString()
    # Field 1000 of the request, and field 1000 within a nested manifest.
    tag = bytes([0xC2, 0x3E, 1]) + b"x"
    for body in (
        known + tag,
        cp.AssembleCrewRequest(request_id=request_id()).SerializeToString() + _nested(tag),
    ):
        method = client.channel.unary_unary(ASSEMBLE)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method(body, timeout=CALL_WITHIN_S, metadata=client.metadata)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details(error.value)[0] == "FIELD_INVALID"


def _nested(tail: bytes) -> bytes:
    body = manifest().SerializeToString() + tail
    return b"\x12" + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x05\x0a\x10abc"])
async def test_malformed_protobuf_is_an_invalid_argument(client, body):
    method = client.channel.unary_unary(ASSEMBLE)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await method(body, timeout=CALL_WITHIN_S, metadata=client.metadata)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error.value)[0] == "MALFORMED_MESSAGE"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (cp.ListCrewsRequest(page_size=-1), "page_size"),
        (cp.ListCrewsRequest(page_size=501), "page_size"),
        (cp.ListCrewsRequest(filter="state=NOWHERE"), "filter"),
        (cp.ListCrewsRequest(filter="colour=blue"), "filter"),
        (cp.ListCrewsRequest(page_token="forged"), "page_token"),
    ],
)
async def test_a_bad_list_names_its_field(client, request_, field):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.crews.ListCrews(request_, timeout=CALL_WITHIN_S, metadata=client.metadata)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in details(error.value)[1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"signal": "lower"}, "signal"),
        ({"signal": "A" * 65}, "signal"),
        ({"payload": {"x": "y" * 70_000}}, "payload"),
        ({"ttl": "0.001s"}, "ttl"),
        ({"requestId": ""}, "request_id"),
    ],
)
async def test_a_bad_broadcast_names_its_field(client, crew, changes, field):
    told = {"requestId": request_id(), "crew": crew.id, "signal": "PING"} | changes
    stream = client.crews.Broadcast(
        ParseDict(told, cp.BroadcastRequest()), timeout=CALL_WITHIN_S, metadata=client.metadata
    )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.read()
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in details(error.value)[1]


async def test_what_does_not_exist_is_not_found(client):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await client.crews.GetCrew(
            cp.GetCrewRequest(crew="c000"), timeout=CALL_WITHIN_S, metadata=client.metadata
        )
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert details(error.value)[0] == "RESOURCE_NOT_FOUND"


# Credentials


async def listed_with(running: Running, metadata) -> grpc.aio.AioRpcError:
    async with connected(running) as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.crews.ListCrews(cp.ListCrewsRequest(), timeout=CALL_WITHIN_S, metadata=metadata)
        return error.value


def operator(running: Running) -> str:
    """The thumbprint of the operator's certificate."""
    return thumbprint(Path(running.client["cert"]).read_bytes())


def bearer(token: str):
    return [("authorization", f"Bearer {token}")]


def forged(running: Running, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Tokens that must not be taken: name → (token, reason)."""
    own = TokenMint.open(running.home / "pki" / "tokens")
    foreign = TokenMint.open(tmp_path / "mint")
    long_ago = TokenMint.open(running.home / "pki" / "tokens", now=lambda: 1_600_000_000.0)
    who = operator_spiffe("local")
    bound = {"thumbprint": operator(running), "scopes": {"admin"}, "ttl_s": 600.0}
    good = own.mint(who, **{**bound, "scopes": {"reviewer"}})
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    wide = base64.urlsafe_b64encode(json.dumps(claims | {"scope": "admin"}).encode()).decode().rstrip("=")
    none = (
        base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "at+jwt"}).encode()).decode().rstrip("=")
    )
    return {
        "expired": (long_ago.mint(who, **bound), "TOKEN_EXPIRED"),
        "foreign": (foreign.mint(who, **bound), "TOKEN_INVALID"),
        "widened": (f"{head}.{wide}.{signature}", "TOKEN_INVALID"),
        "unsigned": (f"{none}.{wide}.", "TOKEN_INVALID"),
        "another's certificate": (own.mint(who, **{**bound, "thumbprint": "x" * 43}), "TOKEN_INVALID"),
        "another's name": (own.mint(operator_spiffe("mallory"), **bound), "TOKEN_INVALID"),
        "garbage": ("a.b.c", "TOKEN_INVALID"),
    }


async def test_a_bad_token_is_unauthenticated(running, tmp_path):
    for name, (token, reason) in forged(running, tmp_path).items():
        error = await listed_with(running, bearer(token))
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED, name
        assert details(error)[0] == reason, name


async def test_no_token_is_unauthenticated(running):
    error = await listed_with(running, ())
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    assert details(error)[0] == "TOKEN_MISSING"


async def test_a_narrow_token_cannot_assemble(running):
    mint = TokenMint.open(running.home / "pki" / "tokens")
    token = mint.mint(
        operator_spiffe("local"), thumbprint=operator(running), scopes={"reviewer"}, ttl_s=600.0
    )
    async with connected(running, token=token) as client:
        error = await refused(client, cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest()))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert details(error)[0] == "SCOPE_MISSING"


async def test_a_wrong_or_missing_certificate_gets_no_connection(running, tmp_path):
    told = running.client
    ca = await asyncio.to_thread(Path(told["ca"]).read_bytes)
    foreign = CertificateAuthority.open(tmp_path / "ca").issue(operator_spiffe("local"), [], ttl_s=600.0)
    own = CertificateAuthority.open(running.home / "pki" / "ca")
    expired = own.issue(operator_spiffe("local"), [], ttl_s=-30.0)
    shown = {
        "none": grpc.ssl_channel_credentials(ca),
        "foreign": grpc.ssl_channel_credentials(ca, foreign.key_pem, foreign.certificate_pem),
        "expired": grpc.ssl_channel_credentials(ca, expired.key_pem, expired.certificate_pem),
    }
    options = [("grpc.ssl_target_name_override", told["authority"])]
    for name, credentials in shown.items():
        async with grpc.aio.secure_channel(told["endpoint"], credentials, options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await channel.unary_unary(LIST)(b"", timeout=10)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE, name


async def test_nothing_is_left_behind(running, client):
    """Last in this file: after all of the above, nothing leaks."""
    found = await leaks.settle(running.home)
    assert leaks.total(found) == 0, [leak for leak in found if leak.value]


async def test_the_manifest_of_these_tests_is_good(client):
    crew = await client.assemble()
    assert len(crew.agents) == sum(m.get("replicas", 1) for m in MANIFEST["members"])
    await client.disband(crew.id)
