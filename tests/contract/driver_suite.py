"""What every sandbox driver must do: one body of tests, run on each implementation.

A subclass gives a `rig` fixture. Agents are `small_agent`, over real sockets.
"""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from factory_server.core.errors import Invalid, NotFound, Unavailable
from factory_server.core.sandbox import Driver, Enforcement, Exit, Sandbox, SandboxSpec, http_socket
from tests.contract.packs_suite import PacksSuite
from tests.contract.small_agent import ask

DEADLINE_S = 10.0


class TestDriver(Driver, Protocol):
    """A driver as tests need it: one that can also end all it made."""

    __test__ = False

    async def terminate(self) -> None:
        """Destroy everything."""


class Rig(Protocol):
    """One driver under test with its machine."""

    driver: TestDriver

    def reopen(self) -> TestDriver:
        """Another driver object for the same state, not started, as a restarted factory has it."""

    async def kill(self, sandbox: Sandbox) -> None:
        """Kill the instance from outside with SIGKILL, behind the driver's back."""

    def leftovers(self) -> list[str]:
        """Every process, socket, file, mount and cgroup that instances left on the machine."""


async def until(condition: Callable[[], Awaitable[bool]], *, what: str) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S:g} s: {what}")


@asynccontextmanager
async def exits_of(driver: Driver) -> AsyncIterator[Callable[[str], Awaitable[Exit]]]:
    """Listen from here on; the function given waits for an instance's exit."""
    stream = driver.exits()

    async def wait(instance: str) -> Exit:
        async with asyncio.timeout(DEADLINE_S):
            async for item in stream:
                if item.instance == instance:
                    return item
        raise AssertionError("the stream ended")

    yield wait
    await stream.aclose()  # type: ignore[attr-defined]


def path_of(target: str) -> Path:
    """The socket behind a gRPC target."""
    assert target.startswith("unix://")
    return Path(target.removeprefix("unix://"))


class DriverSuite(PacksSuite):
    """The contract."""

    async def make(self, rig: Rig, name: str = "a-g1", **labels: str) -> Sandbox:
        return await rig.driver.create(SandboxSpec(name, labels=labels), deadline_s=DEADLINE_S)

    async def test_control_answers_when_create_returns(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        assert "pid" in await ask(sandbox.control, {"do": "ping"})

    async def test_create_again_finds_the_same_instance(self, rig: Rig) -> None:
        first = await self.make(rig)
        pid = await ask(first.control, {"do": "ping"})
        assert await self.make(rig) == first
        assert await ask(first.control, {"do": "ping"}) == pid

    async def test_creates_of_one_name_at_once_make_one_instance(self, rig: Rig) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.make(rig)) for _ in range(4)]
        assert len({task.result().control for task in tasks}) == 1
        assert len(await rig.driver.list()) == 1

    async def test_a_name_that_ended_can_be_made_anew(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        async with exits_of(rig.driver) as exit_of:
            await rig.kill(sandbox)
            await exit_of("a-g1")
        again = await self.make(rig)
        assert "pid" in await ask(again.control, {"do": "ping"})

    async def test_bad_names_are_invalid(self, rig: Rig) -> None:
        for name in ("", "../a", "a/b"):
            with pytest.raises(Invalid):
                await self.make(rig, name)

    async def test_long_names_still_have_a_control_socket(self, rig: Rig) -> None:
        sandbox = await self.make(rig, "a" * 100 + "-g1")
        assert len(str(path_of(sandbox.control))) < 100
        assert "pid" in await ask(sandbox.control, {"do": "ping"})

    async def test_list_tells_instances_and_their_labels(self, rig: Rig) -> None:
        assert list(await rig.driver.list()) == []
        await self.make(rig, "a-g1", crew="red")
        await self.make(rig, "b-g1", crew="blue")
        assert {s.instance: s.labels["crew"] for s in await rig.driver.list()} == {
            "a-g1": "red",
            "b-g1": "blue",
        }

    async def test_list_forgets_the_dead(self, rig: Rig) -> None:
        await rig.kill(await self.make(rig))

        async def gone() -> bool:
            return not await rig.driver.list()

        await until(gone, what="a killed instance leaves the list")

    async def test_publish_gives_a_socket_on_the_host(self, rig: Rig) -> None:
        await self.make(rig)
        target = await rig.driver.publish("a-g1")
        assert stat.S_ISSOCK(path_of(target).lstat().st_mode)
        assert "pid" in await ask(target, {"do": "ping"})
        assert await rig.driver.publish("a-g1") == target

    async def test_publish_takes_the_http_socket_for_the_factory_alone(self, rig: Rig) -> None:
        before = rig.leftovers()
        sandbox = await self.make(rig)
        await ask(sandbox.control, {"do": "http"})
        target = await rig.driver.publish("a-g1")
        http = Path(http_socket(target))
        assert stat.S_ISSOCK(http.lstat().st_mode)
        assert stat.S_IMODE(http.stat().st_mode) == 0o600
        assert not (await ask(sandbox.control, {"do": "own", "name": "http.sock"}))["there"]
        assert await rig.driver.publish("a-g1") == target
        reader, writer = await asyncio.open_unix_connection(str(http))
        assert await reader.read() == b"hello"
        writer.close()
        await rig.driver.destroy("a-g1")
        assert rig.leftovers() == before

    async def test_publish_does_without_an_http_socket(self, rig: Rig) -> None:
        await self.make(rig)
        assert not Path(http_socket(await rig.driver.publish("a-g1"))).exists()

    async def test_publish_and_wire_need_a_living_instance(self, rig: Rig) -> None:
        with pytest.raises(NotFound):
            await rig.driver.publish("nobody-g1")
        with pytest.raises(NotFound):
            await rig.driver.wire("nobody-g1", {})

    async def test_wired_peers_answer_and_unwired_ones_are_refused(self, rig: Rig) -> None:
        alice = await self.make(rig, "alice-g1")
        await self.make(rig, "bob-g1")
        bob = str(path_of(await rig.driver.publish("bob-g1")))
        assert (await ask(alice.control, {"do": "peers"}))["names"] == []
        await rig.driver.wire("alice-g1", {"bob.sock": bob, "bus.sock": bob})
        assert (await ask(alice.control, {"do": "peers"}))["names"] == ["bob.sock", "bus.sock"]
        assert (await ask(alice.control, {"do": "connect", "name": "bob.sock"}))["error"] == ""
        await rig.driver.wire("alice-g1", {"bus.sock": bob})
        assert (await ask(alice.control, {"do": "peers"}))["names"] == ["bus.sock"]
        error = (await ask(alice.control, {"do": "connect", "name": "bob.sock"}))["error"]
        assert error == "FileNotFoundError"

    async def test_wire_renews_a_link_whose_socket_was_made_again(self, rig: Rig) -> None:
        alice = await self.make(rig, "alice-g1")
        await self.make(rig, "bob-g1")
        bob = str(path_of(await rig.driver.publish("bob-g1")))
        await rig.driver.wire("alice-g1", {"bob.sock": bob})
        await rig.driver.destroy("bob-g1")
        assert (await ask(alice.control, {"do": "connect", "name": "bob.sock"}))["error"] != ""
        await self.make(rig, "bob-g1")
        assert str(path_of(await rig.driver.publish("bob-g1"))) == bob
        await rig.driver.wire("alice-g1", {"bob.sock": bob})
        assert (await ask(alice.control, {"do": "connect", "name": "bob.sock"}))["error"] == ""

    async def test_wire_refuses_what_is_no_socket_and_does_the_rest(self, rig: Rig, tmp_path: Path) -> None:
        alice = await self.make(rig, "alice-g1")
        own = str(path_of(await rig.driver.publish("alice-g1")))
        secret = tmp_path / "secret"
        secret.write_text("x")
        link = tmp_path / "link.sock"
        link.symlink_to(own)
        wish = {"a.sock": own, "b.sock": str(secret), "c.sock": str(link), "d.sock": str(tmp_path / "none")}
        with pytest.raises(NotFound, match=r"b\.sock, c\.sock, d\.sock"):
            await rig.driver.wire("alice-g1", wish)
        assert (await ask(alice.control, {"do": "peers"}))["names"] == ["a.sock"]
        with pytest.raises(Invalid):
            await rig.driver.wire("alice-g1", {"../x.sock": own})

    async def test_exits_tell_the_code(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        async with exits_of(rig.driver) as exit_of:
            await ask(sandbox.control, {"do": "exit", "code": 3})
            assert await exit_of("a-g1") == Exit("a-g1", code=3)

    async def test_exits_tell_the_signal(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        async with exits_of(rig.driver) as exit_of:
            await rig.kill(sandbox)
            assert await exit_of("a-g1") == Exit("a-g1", signal=9)

    async def test_every_consumer_sees_an_exit_once(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        await self.make(rig, "b-g1")
        async with exits_of(rig.driver) as one, exits_of(rig.driver) as two:
            await rig.kill(sandbox)
            assert (await one("a-g1")).signal == (await two("a-g1")).signal == 9
            await rig.driver.destroy("b-g1")
            assert (await one("b-g1")).instance == (await two("b-g1")).instance == "b-g1"

    async def test_destroy_leaves_nothing_and_can_be_repeated(self, rig: Rig) -> None:
        before = rig.leftovers()
        sandbox = await self.make(rig)
        await rig.driver.publish("a-g1")
        await rig.driver.destroy("a-g1")
        assert list(await rig.driver.list()) == []
        assert rig.leftovers() == before
        with (
            socket.socket(socket.AF_UNIX) as dialler,
            pytest.raises((ConnectionRefusedError, FileNotFoundError)),
        ):
            dialler.connect(str(path_of(sandbox.control)))
        await rig.driver.destroy("a-g1")
        await rig.driver.destroy("never-g1")

    async def test_destroy_works_after_death_and_while_being_made(self, rig: Rig) -> None:
        before = rig.leftovers()
        sandbox = await self.make(rig)
        async with exits_of(rig.driver) as exit_of:
            await rig.kill(sandbox)
            await exit_of("a-g1")
        await rig.driver.destroy("a-g1")
        async with asyncio.TaskGroup() as group:
            making = group.create_task(self.try_make(rig, "b-g1"))
            group.create_task(rig.driver.destroy("b-g1"))
        await making
        await rig.driver.destroy("b-g1")
        assert rig.leftovers() == before

    async def try_make(self, rig: Rig, name: str) -> None:
        try:
            await self.make(rig, name)
        except Unavailable:
            return  # effect unknown, as the contract says

    async def test_freeze_and_thaw(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        await rig.driver.freeze("a-g1")
        await rig.driver.freeze("a-g1")
        await rig.driver.thaw("a-g1")
        await rig.driver.thaw("a-g1")
        assert "pid" in await ask(sandbox.control, {"do": "ping"})

    async def test_a_frozen_instance_can_be_destroyed(self, rig: Rig) -> None:
        before = rig.leftovers()
        await self.make(rig)
        await rig.driver.freeze("a-g1")
        await rig.driver.destroy("a-g1")
        assert rig.leftovers() == before

    async def test_stats_need_a_living_instance(self, rig: Rig) -> None:
        await self.make(rig)
        assert (await rig.driver.stats("a-g1")).memory_bytes >= 0
        with pytest.raises(NotFound):
            await rig.driver.stats("nobody-g1")

    async def test_logs_give_the_tail_and_follow_until_the_end(self, rig: Rig) -> None:
        sandbox = await self.make(rig)
        for number in range(3):
            await ask(sandbox.control, {"do": "print", "text": f"line {number}"})
        whole = b"line 0\nline 1\nline 2\n"

        async def written() -> bool:
            return [c.data async for c in rig.driver.logs("a-g1", tail_bytes=1000, follow=False)] == [whole]

        await until(written, what="the output is readable")
        tail = [c async for c in rig.driver.logs("a-g1", tail_bytes=7, follow=False)]
        assert [(c.data, c.offset) for c in tail] == [(b"line 2\n", 14)]
        text = b""
        async with asyncio.timeout(DEADLINE_S):
            async for chunk in rig.driver.logs("a-g1", tail_bytes=7, follow=True):
                if not text:
                    await ask(sandbox.control, {"do": "print", "text": "last words"})
                    await ask(sandbox.control, {"do": "exit", "code": 0})
                text += chunk.data
        assert text == b"line 2\nlast words\n"

    async def test_a_restarted_factory_finds_its_instances(self, rig: Rig) -> None:
        sandbox = await self.make(rig, "a-g1", crew="red")
        pid = await ask(sandbox.control, {"do": "ping"})
        await rig.driver.close()
        rig.driver = rig.reopen()
        await rig.driver.start()
        assert list(await rig.driver.list()) == [sandbox]
        assert await ask(sandbox.control, {"do": "ping"}) == pid
        async with exits_of(rig.driver) as exit_of:
            await rig.kill(sandbox)
            assert (await exit_of("a-g1")).signal == 9

    async def test_many_at_once(self, rig: Rig) -> None:
        before = rig.leftovers()
        names = [f"n{number}-g1" for number in range(20)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.make(rig, name)) for name in names]
        assert {task.result().instance for task in tasks} == set(names)
        assert {s.instance for s in await rig.driver.list()} == set(names)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(rig.driver.destroy(name))
        assert rig.leftovers() == before

    async def test_probe_names_every_property(self, rig: Rig) -> None:
        info = await rig.driver.probe()
        assert info.name == rig.driver.name
        assert info.properties
        assert all(p.reason for p in info.properties if p.enforcement is not Enforcement.ENFORCED)
