"""What every driver with networks must do: one body of tests, inherited once for each."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from typing import Protocol

import pytest

from factory_server.core import networks
from factory_server.core.errors import Exhausted, NotFound
from factory_server.core.networks import NetworkSpec
from factory_server.core.sandbox import Sandbox, SandboxSpec
from tests.contract.driver_suite import Rig, exits_of, until

MAKE_MAX_S = 60.0
JOIN_MAX_S = 30.0


class NetworkRig(Rig, Protocol):
    """A driver with networks, and a look from inside."""

    async def resolve(self, sandbox: Sandbox, name: str) -> str:
        """The address that a member finds behind a name; '' for none."""


class NetworksSuite:
    """The contract."""

    async def make(self, rig: NetworkRig, name: str) -> Sandbox:
        return await rig.driver.create(SandboxSpec(name), deadline_s=MAKE_MAX_S)

    async def open(self, rig: NetworkRig, name: str = "n1", prefix: int = 28) -> ipaddress.IPv4Network:
        made = await rig.driver.networks.create(NetworkSpec(name, prefix), deadline_s=MAKE_MAX_S)
        assert made.network == name
        return ipaddress.IPv4Network(made.subnet)

    async def join(self, rig: NetworkRig, instance: str, *names: str, network: str = "n1") -> str:
        return await rig.driver.networks.join(instance, network, names, deadline_s=JOIN_MAX_S)

    async def test_networks_are_made_once_listed_and_removed(self, rig: NetworkRig) -> None:
        before = rig.leftovers()
        limits = await rig.driver.networks.limits()
        assert limits.networks_max > 30, "more than an engine gives by default"
        one, two = await self.open(rig), await self.open(rig, "n2", 26)
        assert (one.prefixlen, two.prefixlen) == (28, 26)
        assert not one.overlaps(two)
        assert await self.open(rig) == one
        assert {n.network for n in await rig.driver.networks.list()} == {"n1", "n2"}
        for _ in range(2):
            await rig.driver.networks.destroy("n1")
            await rig.driver.networks.destroy("n2")
        assert list(await rig.driver.networks.list()) == []
        assert rig.leftovers() == before

    async def test_members_have_addresses_and_names(self, rig: NetworkRig) -> None:
        subnet = await self.open(rig)
        alice, bob = await self.make(rig, "alice-g1"), await self.make(rig, "bob-g1")
        first = await self.join(rig, "alice-g1", *networks.names_of("alice", "c1"))
        second = await self.join(rig, "bob-g1", *networks.names_of("bob", "c1"))
        assert first != second
        assert {ipaddress.IPv4Address(first), ipaddress.IPv4Address(second)} <= set(subnet.hosts())
        assert await self.join(rig, "alice-g1", *networks.names_of("alice", "c1")) == first
        for name in ("bob", "bob.crew-c1.svc"):
            assert await rig.resolve(alice, name) == second
        assert await rig.resolve(bob, "alice") == first
        assert await rig.resolve(alice, "carol") == ""

    async def test_names_that_are_told_lead_where_it_was_said(self, rig: NetworkRig) -> None:
        """Members that joined without names have those that each is told, and no others any more."""
        await self.open(rig)
        alice, bob = await self.make(rig, "alice-g1"), await self.make(rig, "bob-g1")
        await self.join(rig, "alice-g1")
        second = await self.join(rig, "bob-g1")
        assert await rig.resolve(alice, "bob") == ""
        tell = rig.driver.networks.tell
        await tell("alice-g1", {"bob": second, "bob.crew-c1.svc": second, "carol": "10.213.0.250"})
        for name in ("bob", "bob.crew-c1.svc"):
            assert await rig.resolve(alice, name) == second
        assert await rig.resolve(alice, "localhost") == "127.0.0.1"
        assert await rig.resolve(bob, "bob") == "", "each has its own"
        await tell("alice-g1", {"bob": "10.213.0.251"})
        assert await rig.resolve(alice, "bob") == "10.213.0.251"
        assert await rig.resolve(alice, "carol") == ""
        with pytest.raises(NotFound):
            await tell("nobody-g1", {})

    async def test_a_name_leads_to_its_newest_holder(self, rig: NetworkRig) -> None:
        """A successor joins while its predecessor still runs, and after another one died."""
        await self.open(rig)
        mate, _old = await self.make(rig, "mate-g1"), await self.make(rig, "bob-g1")
        await self.join(rig, "mate-g1", "mate")
        await self.join(rig, "bob-g1", "bob")
        await self.make(rig, "bob-g2")
        newer = await self.join(rig, "bob-g2", "bob")
        assert await rig.resolve(mate, "bob") == newer
        await rig.driver.destroy("bob-g1")
        assert await rig.resolve(mate, "bob") == newer
        async with exits_of(rig.driver) as exit_of:
            await rig.kill(next(s for s in await rig.driver.list() if s.instance == "bob-g2"))
            await exit_of("bob-g2")

        async def gone() -> bool:
            return await rig.resolve(mate, "bob") == ""

        await until(gone, what="the name of the dead leads nowhere")
        await self.make(rig, "bob-g3")
        newest = await self.join(rig, "bob-g3", "bob")
        assert await rig.resolve(mate, "bob") == newest

    async def test_who_is_not_there_cannot_join(self, rig: NetworkRig) -> None:
        await self.make(rig, "a-g1")
        with pytest.raises(NotFound):
            await self.join(rig, "a-g1", "a", network="nothing")
        await self.open(rig)
        with pytest.raises(NotFound):
            await self.join(rig, "nobody-g1", "a")

    async def test_many_at_once(self, rig: NetworkRig) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.open(rig, f"n{number}")) for number in range(8)]
        subnets = sorted(task.result() for task in tasks)
        assert not any(one.overlaps(two) for one, two in itertools.pairwise(subnets))
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(rig.driver.networks.destroy(f"n{number}"))
        assert list(await rig.driver.networks.list()) == []

    async def test_a_network_with_members_can_be_destroyed(self, rig: NetworkRig) -> None:
        sandbox = await self.make(rig, "a-g1")
        await self.open(rig)
        await self.join(rig, "a-g1", "a")
        await rig.driver.networks.destroy("n1")
        assert list(await rig.driver.networks.list()) == []
        assert await rig.resolve(sandbox, "a") == ""
        await self.open(rig)
        assert await self.join(rig, "a-g1", "a")

    async def test_a_restarted_factory_finds_networks_and_members(self, rig: NetworkRig) -> None:
        sandbox, subnet = await self.make(rig, "a-g1"), await self.open(rig)
        address = await self.join(rig, "a-g1", "a")
        await rig.driver.close()
        rig.driver = rig.reopen()
        await rig.driver.start()
        assert [n.subnet for n in await rig.driver.networks.list()] == [str(subnet)]
        assert await self.join(rig, "a-g1", "a") == address
        await self.make(rig, "a-g2")
        await self.join(rig, "a-g2", "a")
        assert await rig.resolve(sandbox, "a") == "", (
            "what was a member before the restart gives the name away"
        )


async def fill(suite: NetworksSuite, rig: NetworkRig) -> None:
    """Join until no address is left; the one too many is told so."""
    room = networks.addresses(28) - networks.RESERVED_ADDRESSES
    await suite.open(rig)
    for number in range(room + 1):
        await suite.make(rig, f"a{number}-g1")
    for number in range(room):
        await suite.join(rig, f"a{number}-g1", f"a{number}")
    with pytest.raises(Exhausted):
        await suite.join(rig, f"a{room}-g1", f"a{room}")
