"""Identities are renewed while calls are in flight: nothing drops, and new connections show the new one."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.directory import IdentityDirectory
from hyperfactory.v1 import factory_service_pb2 as pb
from hyperfactory.v1 import factory_service_pb2_grpc as stubs
from wire.channels import open_control_channel
from wire.identity import FACTORY_AUTHORITY, Identity, IdentityFile, thumbprint

CALL_MAX_S = 10.0
REQUEST = pb.GetAgentRequest(agent="ag-0123456789ab")


class Shown:
    """An identity that a test can change."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def __call__(self) -> Identity:
        return self.identity


def serve_streams(world: Any, factory: Callable[..., Any]) -> tuple[Any, asyncio.Event]:
    """A factory whose WatchAgents stays open until the event is set."""
    finish = asyncio.Event()

    async def wait(_request: Any, _context: Any) -> None:
        await finish.wait()

    return factory(world, wait), finish


async def peer_print(target: str, world: Any) -> str:
    """Thumbprint of the certificate that the server shows to a new connection."""
    path = target.removeprefix("unix:")
    identity = world.operator()
    files = {name: world.home / name for name in ("c.pem", "k.pem", "a.pem")}
    for path_, content in zip(
        files.values(), (identity.certificate_pem, identity.key_pem, identity.ca_pem), strict=True
    ):
        path_.write_bytes(content)
    command = f"openssl s_client -unix {path} -cert {files['c.pem']} -key {files['k.pem']} -alpn h2"
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(CALL_MAX_S):
        shown, _ = await process.communicate()
    return thumbprint(shown)


async def test_a_renewed_server_certificate_reaches_new_connections_and_drops_no_call(
    world: Any, factory: Any
) -> None:
    shown = Shown(world.part("factory"))
    add, finish = serve_streams(world, factory)
    target = await world.serve(add, shown)
    channel = await world.dial(target, world.operator())
    call = stubs.FactoryServiceStub(channel).WatchAgents(pb.WatchAgentsRequest(), timeout=CALL_MAX_S)
    for _ in range(3):
        await call.read()
    assert await peer_print(target, world) == thumbprint(shown.identity.certificate_pem)
    shown.identity = world.part("factory")
    assert await peer_print(target, world) == thumbprint(shown.identity.certificate_pem)
    finish.set()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_renewed_client_moves_on_and_its_streams_end_where_they_began(
    world: Any, factory: Any
) -> None:
    shown = Shown(world.operator())
    add, finish = serve_streams(world, factory)
    target = await world.serve(add)
    stub = stubs.FactoryServiceStub(await world.dial(target, shown))
    call = stub.WatchAgents(pb.WatchAgentsRequest(), timeout=CALL_MAX_S)
    for _ in range(3):
        await call.read()
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    shown.identity = world.operator()
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    gc.collect()  # the old channel object is gone; its call is not
    prints = [caller.thumbprint for caller in world.callers]
    assert prints[0] != prints[1] == thumbprint(shown.identity.certificate_pem)
    finish.set()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_closing_ends_streams_that_began_before_a_renewal(world: Any, factory: Any) -> None:
    shown = Shown(world.operator())
    add, _ = serve_streams(world, factory)
    channel = await world.dial(await world.serve(add), shown)
    stub = stubs.FactoryServiceStub(channel)
    call = stub.WatchAgents(pb.WatchAgentsRequest())
    for _ in range(3):
        await call.read()
    shown.identity = world.operator()
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    await channel.close()
    async with asyncio.timeout(CALL_MAX_S):
        assert await call.code() is grpc.StatusCode.CANCELLED


async def test_a_token_that_comes_later_is_sent(world: Any, factory: Any) -> None:
    operator = world.operator()
    shown = Shown(dataclasses.replace(operator, token=""))
    stub = stubs.FactoryServiceStub(await world.dial(await world.serve(factory(world)), shown))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    shown.identity = operator
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    assert len(world.callers) == 1


async def test_a_fresh_token_is_used_on_the_same_connection(world: Any, factory: Any) -> None:
    first = world.operator("ada", "reviewer")
    shown = Shown(first)
    stub = stubs.FactoryServiceStub(await world.dial(await world.serve(factory(world)), shown))
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    subject = "spiffe://hyperfactory.local/operator/ada"
    shown.identity = world.with_token(first, subject, ("admin",))
    await stub.GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    assert [sorted(caller.scopes) for caller in world.callers] == [["reviewer"], ["admin"]]


async def test_a_rotated_signing_key_is_found_without_a_restart(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, world.operator())
    await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)
    world.mint.rotate()
    renewed = await world.dial(target, world.operator())
    async with asyncio.timeout(CALL_MAX_S):
        while True:  # keys are read again at most once a second
            try:
                await stubs.FactoryServiceStub(renewed).GetAgent(REQUEST, timeout=CALL_MAX_S)
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
    await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)


async def test_both_roots_are_trusted_while_one_replaces_the_other(world: Any, factory: Any) -> None:
    other = CertificateAuthority.open(world.home / "next-ca")
    more = world.home / "ca" / "more-roots"
    more.mkdir()
    (more / "next.pem").write_bytes(other.bundle_pem)
    world.ca = CertificateAuthority.open(world.home / "ca")
    target = await world.serve(factory(world))
    uri = "spiffe://hyperfactory.local/operator/ada"
    newcomer = world.with_token(other.issue(uri, [], ttl_s=60), uri, ("admin",))
    newcomer = dataclasses.replace(newcomer, ca_pem=world.ca.bundle_pem)
    await stubs.FactoryServiceStub(await world.dial(target, newcomer)).GetAgent(REQUEST, timeout=CALL_MAX_S)
    assert world.callers[0].name == "ada"


async def test_identity_directories_are_enough_to_serve_and_to_call(world: Any, factory: Any) -> None:
    home = world.home / "pki"
    IdentityDirectory(home, world.ca, world.mint).renew()
    server = IdentityFile(home / "factory")
    target = await world.serve(factory(world), server.current)
    for who in ("operator", "watchdog", "gateway"):
        channel = await world.dial(target, IdentityFile(home / who).current)
        await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)
    assert [caller.name for caller in world.callers] == ["local", "watchdog", "gateway"]


async def test_a_channel_without_tls_goes_to_unix_sockets_only() -> None:
    with pytest.raises(ValueError, match="only unix sockets"):
        open_control_channel(f"{FACTORY_AUTHORITY}:443")
