"""The drivers' suite on the fake and on namespaces, and what only real sandboxes can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Enforcement, Exit, Limits, Sandbox, SandboxSpec, Tier
from factory_server.drivers.fake import FakeDriver, FakeHost, FakeInstance
from factory_server.drivers.namespaces.driver import NamespacesDriver
from tests.contract import small_agent
from tests.contract.driver_suite import DEADLINE_S, DriverSuite, Rig, exits_of, until
from tests.contract.packs_suite import SealedPacksSuite
from tests.contract.small_agent import ask

REPOSITORY = Path(__file__).parents[2]
PATHS = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/gen"}
ENTRY = "tests.contract.small_agent:run"


@pytest.fixture
def state() -> Iterator[Path]:
    """A short directory: unix socket paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        yield Path(path)


async def in_process(instance: FakeInstance) -> int:
    """The small agent as a coroutine."""
    return await small_agent.serve(
        instance.own_dir, instance.peers_dir, instance.ready, instance.say, instance.skills_dir
    )


def files_below(directory: Path) -> list[str]:
    """What instances leave: not the server's own files."""
    own = {"zygote.log", "zygote.lock", "zygote.sock", "users"}
    return sorted(
        str(path) for path in directory.rglob("*") if path.name not in own and not is_frame(path, directory)
    )


def is_frame(path: Path, state: Path) -> bool:
    """Whether a directory is part of the layout, with or without instances."""
    return path.is_dir() and path.parent in (state, state / "s")


@dataclass
class FakeRig:
    """The fake with its host."""

    state: Path
    host: FakeHost = field(default_factory=lambda: FakeHost(agent=in_process))
    driver: FakeDriver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = self.reopen()

    def reopen(self) -> FakeDriver:
        return FakeDriver(self.state, host=self.host)

    async def kill(self, sandbox: Sandbox) -> None:
        self.host.kill(sandbox.instance)

    def leftovers(self) -> list[str]:
        return files_below(self.state) + list(self.host.instances)


class TestFake(DriverSuite):
    """The verified fake."""

    @pytest.fixture
    async def rig(self, state: Path) -> AsyncIterator[Rig]:
        rig = FakeRig(state)
        await rig.driver.start()
        yield rig
        await rig.driver.terminate()

    async def test_weather_reaches_the_caller(self, state: Path) -> None:
        async def storm(verb: str, instance: str) -> None:
            raise Unavailable(f"{verb} {instance}")

        driver = FakeDriver(state, weather=storm)
        await driver.start()
        with pytest.raises(Unavailable, match="create a-g1"):
            await driver.create(SandboxSpec("a-g1"), deadline_s=1)
        await driver.terminate()

    async def test_the_default_agent_accepts(self, state: Path) -> None:
        driver = FakeDriver(state)
        await driver.start()
        sandbox = await driver.create(SandboxSpec("a-g1"), deadline_s=1)
        _, writer = await asyncio.open_unix_connection(sandbox.control.removeprefix("unix://"))
        writer.close()
        await driver.terminate()


@dataclass
class NamespacesRig:
    """The real driver on this machine."""

    state: Path
    rootless: bool | None = None
    driver: NamespacesDriver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = self.reopen()

    @property
    def factory(self) -> str:
        return self.state.name

    def reopen(self) -> NamespacesDriver:
        return NamespacesDriver(
            self.state, factory=self.factory, entry=ENTRY, packages=("tests",), rootless=self.rootless
        )

    async def kill(self, sandbox: Sandbox) -> None:
        os.kill(sandbox.host_pid, signal.SIGKILL)

    def fork_server(self) -> int:
        assert self.driver._link._client is not None
        return int(self.driver._link._client.greeting["pid"])

    def leftovers(self) -> list[str]:
        root = Path("/sys/fs/cgroup")
        groups: list[str] | None = None
        while groups is None:
            with contextlib.suppress(FileNotFoundError):  # others' groups come and go during the walk
                groups = [str(path) for path in root.rglob(f"hf-{self.factory}/*") if path.is_dir()]
        return files_below(self.state) + groups + self.processes() + self.descriptors() + self.mounts()

    def processes(self) -> list[str]:
        """Descendants of the fork server."""
        children = Path(f"/proc/{self.fork_server()}/task/{self.fork_server()}/children").read_text()
        return [f"process {pid}" for pid in children.split()]

    def mounts(self) -> list[str]:
        """Mounts that mention this factory, as this process and as the fork server see them."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        seen = [line for line in lines if str(self.state) in line]
        theirs = Path(f"/proc/{self.fork_server()}/mountinfo").read_text().splitlines()
        return [*seen, f"{len(theirs)} mounts of the fork server"]

    def descriptors(self) -> list[str]:
        count = len(list(Path(f"/proc/{self.fork_server()}/fd").iterdir()))
        return [f"{count} descriptors of the fork server"]


def user_lines(pid: int) -> str:
    """The user ids of a process; empty when there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return next(line for line in lines if line.startswith("Uid:"))


class NamespacesSuite(DriverSuite, SealedPacksSuite):
    """What every tier of real sandboxes must do beyond the contract."""

    async def test_freezing_stops_it(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        await rig.driver.freeze("a-g1")
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
            await ask(sandbox.control, {"do": "ping"}, deadline_s=0.3)
        await rig.driver.thaw("a-g1")
        assert "pid" in await ask(sandbox.control, {"do": "ping"})

    async def test_the_runtimes_own_end_is_told_apart_from_a_kill(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        async with exits_of(rig.driver) as exit_of:
            await ask(sandbox.control, {"do": "signal", "signal": int(signal.SIGSEGV)})
            assert await exit_of("a-g1") == Exit("a-g1", signal=signal.SIGSEGV)

    async def test_stats_are_of_this_instance(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        await ask(sandbox.control, {"do": "run", "source": "sum(range(3_000_000))"})
        usage = await rig.driver.stats("a-g1")
        assert 1_000_000 < usage.memory_bytes < 200_000_000
        assert 2 <= usage.pids <= 40
        assert usage.cpu_seconds > 0

    async def test_a_program_in_the_workspace_runs_with_the_same_python(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        source = "import json, ssl, grpc, google.protobuf, sys; print(sys.prefix, grpc.__version__)"
        answer = await ask(sandbox.control, {"do": "run", "source": source})
        assert answer == {"code": 0, "out": f"/app/venv {grpc.__version__}\n", "err": ""}
        call = "subprocess.run([sys.executable, '-c', 'import ssl'], env={})"
        bare = f"import subprocess, sys; print({call}.returncode)"
        assert (await ask(sandbox.control, {"do": "run", "source": bare}))["out"] == "0\n"

    async def test_orphans_are_reaped(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        source = "import os, subprocess\nfor _ in range(50):\n    subprocess.run(['sh', '-c', 'sleep 0 &'])"
        assert (await ask(sandbox.control, {"do": "run", "source": source}))["code"] == 0
        count = "import os; print(sum(n.isdigit() for n in os.listdir('/proc')))"

        async def reaped() -> bool:
            return int((await ask(sandbox.control, {"do": "run", "source": count}))["out"]) <= 3

        await until(reaped, what="no orphan is left as a zombie")

    async def test_a_killed_factory_leaves_instances_alive(self, rig: NamespacesRig) -> None:
        """A whole other process makes an instance and is killed; we find it."""
        source = f"""
import asyncio, os, pathlib, signal
from factory_server.core.sandbox import SandboxSpec
from factory_server.drivers.namespaces.driver import NamespacesDriver

async def main():
    driver = NamespacesDriver(pathlib.Path({str(rig.state)!r}), factory={rig.factory!r}, entry={ENTRY!r},
                              packages=("tests",), rootless={rig.rootless!r})
    await driver.start()
    await driver.create(SandboxSpec("a-g1"), deadline_s=10)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
        await rig.driver.terminate()
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", source], cwd=REPOSITORY, env=os.environ | PATHS, timeout=30
        )
        assert done.returncode == -signal.SIGKILL
        rig.driver = rig.reopen()
        await rig.driver.start()
        (found,) = await rig.driver.list()
        assert "pid" in await ask(found.control, {"do": "ping"})
        async with exits_of(rig.driver) as exit_of:
            await ask(found.control, {"do": "exit", "code": 4})
            assert await exit_of("a-g1") == Exit("a-g1", code=4)

    async def test_a_crash_of_the_fork_server_leaves_instances_alive(self, rig: NamespacesRig) -> None:
        kept = await self.make(rig, "kept-g1", crew="red")
        lost = await self.make(rig, "lost-g1")
        pid = await ask(kept.control, {"do": "ping"})
        async with exits_of(rig.driver) as exit_of:
            os.kill(rig.fork_server(), signal.SIGKILL)
            os.kill(lost.host_pid, signal.SIGKILL)
            assert (await exit_of("lost-g1")).instance == "lost-g1"
            assert list(await rig.driver.list()) == [kept]
            assert await ask(kept.control, {"do": "ping"}) == pid
            await rig.kill(kept)
            assert (await exit_of("kept-g1")).instance == "kept-g1"
        for name in ("kept-g1", "lost-g1"):
            await rig.driver.destroy(name)
        assert files_below(rig.state) == []
        await self.make(rig, "next-g1")

    @pytest.mark.parametrize(
        "planted", ["os.symlink('/etc/passwd', p)", "open(p, 'w')", "os.mkdir(p)", "None"]
    )
    async def test_publish_takes_nothing_but_a_socket(self, rig: NamespacesRig, planted: str) -> None:
        """What an agent plants in the place of its socket, the host neither follows nor keeps."""
        sandbox = await self.make(rig)
        source = f"import os\np = '/run/hf/own/svc.sock'\nos.unlink(p)\n{planted}"
        assert (await ask(sandbox.control, {"do": "run", "source": source}))["code"] == 0
        with pytest.raises(Unavailable, match="cannot publish 'a-g1'"):
            await rig.driver.publish("a-g1")
        assert list((rig.state / "s" / "svc").iterdir()) == []

    async def test_a_flood_of_output_is_bounded_on_disk(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        await ask(sandbox.control, {"do": "print", "text": "x" * 1_500_000 + "end"}, deadline_s=20)

        async def read() -> bool:
            return (
                b"".join([c.data async for c in rig.driver.logs("a-g1", tail_bytes=4, follow=False)])
                == b"end\n"
            )

        await until(read, what="all output was taken")
        assert sum(path.stat().st_size for path in (rig.state / "logs/a-g1").iterdir()) <= 2 * 256 * 1024

    async def test_a_long_state_directory_still_works(self, rig: NamespacesRig) -> None:
        state = rig.state / ("long" * 30)
        other = NamespacesRig(state)
        other.driver = NamespacesDriver(state, factory="long", entry=ENTRY, packages=("tests",))
        await other.driver.start()
        sandbox = await other.driver.create(SandboxSpec("a-g1"), deadline_s=DEADLINE_S)
        assert "pid" in await ask(sandbox.control, {"do": "ping"})
        service = await other.driver.publish("a-g1")
        await other.driver.wire("a-g1", {"own.sock": service.removeprefix("unix://")})
        sockets = other.driver._files.where.sockets
        await other.driver.terminate()
        assert not sockets.exists()
        assert files_below(state) == []

    async def test_creates_overlap(self, rig: NamespacesRig) -> None:
        """Ten slow starters take about as long as one: the fork server waits for none of them."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                spec = SandboxSpec(f"n{number}-g1", labels={})
                group.create_task(rig.driver.create(spec, deadline_s=DEADLINE_S))
        assert loop.time() - started < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="the full tier needs root")
class TestFull(NamespacesSuite):
    """Namespaces as root."""

    @pytest.fixture
    async def rig(self, state: Path) -> AsyncIterator[NamespacesRig]:
        rig = NamespacesRig(state, rootless=False)
        await rig.driver.start()
        yield rig
        await rig.driver.terminate()

    async def test_everything_is_enforced(self, rig: NamespacesRig) -> None:
        info = await rig.driver.probe()
        assert info.tier is Tier.FULL
        weak = {p.name: p.reason for p in info.properties if p.enforcement is not Enforcement.ENFORCED}
        assert "sockets" in weak.pop("crew_networks")
        assert set(weak) <= {"memory_limit", "cpu_limit", "process_limit", "freeze"}, weak
        assert not any("cgroup" not in reason and "SIGSTOP" not in reason for reason in weak.values()), weak

    async def test_output_after_a_crash_of_the_fork_server_is_kept(self, rig: NamespacesRig) -> None:
        sandbox = await self.make(rig)
        await ask(sandbox.control, {"do": "print", "text": "before"})

        async def output() -> bytes:
            return b"".join([c.data async for c in rig.driver.logs("a-g1", tail_bytes=1000, follow=False)])

        async def written() -> bool:
            return b"before" in await output()

        await until(written, what="the first words are kept")
        os.kill(rig.fork_server(), signal.SIGKILL)

        async def answers() -> bool:
            try:
                return len(await rig.driver.list()) == 1
            except Unavailable:
                return False

        await until(answers, what="a new fork server adopts the instance")
        await ask(sandbox.control, {"do": "print", "text": "after"})

        async def continued() -> bool:
            return await output() == b"before\nafter\n"

        await until(continued, what="the new fork server reads on")

    async def test_out_of_memory_is_told(self, rig: NamespacesRig) -> None:
        spec = SandboxSpec("a-g1", limits=Limits(memory_bytes=64 * 1024 * 1024))
        sandbox = await rig.driver.create(spec, deadline_s=DEADLINE_S)
        if "memory_limit" in {p.name for p in (await rig.driver.probe()).properties if p.reason}:
            pytest.skip("no memory cgroup here")
        async with exits_of(rig.driver) as exit_of:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(sandbox.control, {"do": "hog"})
            assert await exit_of("a-g1") == Exit("a-g1", signal=9, oom=True)

    async def test_users_differ_on_the_host(self, rig: NamespacesRig) -> None:
        one, two = await self.make(rig, "a-g1"), await self.make(rig, "b-g1")
        users = [user_lines(sandbox.host_pid) for sandbox in (one, two)]
        assert users[0] != users[1]
        assert all("\t0\t" not in line for line in users)

    async def test_two_factories_share_no_host_user(self, rig: NamespacesRig) -> None:
        mine = await self.make(rig)
        with tempfile.TemporaryDirectory(prefix="hft") as name:
            other = NamespacesRig(Path(name))
            await other.driver.start()
            theirs = await self.make(other)
            assert user_lines(mine.host_pid) != user_lines(theirs.host_pid)
            await other.driver.terminate()

    async def test_a_leash_ends_what_nobody_holds(self, state: Path) -> None:
        driver = NamespacesDriver(state, factory=state.name, entry=ENTRY, packages=("tests",), leash_s=1.5)
        await driver.start()
        sandbox = await driver.create(SandboxSpec("a-g1"), deadline_s=DEADLINE_S)
        await driver.close()

        async def dead() -> bool:
            return not user_lines(sandbox.host_pid)

        await until(dead, what="the leash kills")
        again = NamespacesDriver(state, factory=state.name, entry=ENTRY, packages=("tests",))
        await again.start()
        assert list(await again.list()) == []
        await again.terminate()


if os.geteuid() != 0:  # as root, test_rootless.py runs this file as an ordinary user

    class TestRootless(NamespacesSuite):
        """Namespaces as an ordinary user."""

        @pytest.fixture
        async def rig(self, state: Path) -> AsyncIterator[NamespacesRig]:
            rig = NamespacesRig(state)
            await rig.driver.start()
            yield rig
            await rig.driver.terminate()

        async def test_what_is_weaker_is_said(self, rig: NamespacesRig) -> None:
            info = await rig.driver.probe()
            assert info.tier is Tier.ROOTLESS
            strong = {p.name for p in info.properties if p.enforcement is Enforcement.ENFORCED}
            sealed = {"user_namespace", "no_capabilities", "seccomp", "read_only_root", "no_network"}
            assert sealed | {"skill_packs"} <= strong
            assert {"distinct_host_user", "sealed_socket_directory"}.isdisjoint(strong)
