"""The drivers' suite on a real Docker engine, and what only containers can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from support import engines

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Enforcement, Exit, Limits, Sandbox, SandboxSpec
from factory_server.drivers.docker import exitinfo, findings, hardening, roster
from factory_server.drivers.docker.driver import DockerDriver
from tests.contract.driver_suite import DriverSuite, exits_of, until
from tests.contract.packs_suite import SealedPacksSuite
from tests.contract.small_agent import ask
from tests.contract.test_drivers import ENTRY, PATHS, REPOSITORY, NamespacesSuite, files_below, user_lines

MAKE_MAX_S = 60.0


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        yield Path(path)


@dataclass
class DockerRig:
    """The driver on a real engine."""

    state: Path
    url: str
    driver: DockerDriver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = self.reopen()
        self.client = docker.APIClient(base_url=self.url, version="auto", timeout=30)

    def reopen(self) -> DockerDriver:
        return DockerDriver(
            self.state, factory=self.state.name, engine=self.url, entry=ENTRY, packages=("tests",)
        )

    async def kill(self, sandbox: Sandbox) -> None:
        os.kill(sandbox.host_pid, signal.SIGKILL)

    def containers(self) -> list[dict[str, Any]]:
        label = f"{hardening.LABEL_FACTORY}={self.driver._host.factory}"
        found: list[dict[str, Any]] = self.client.containers(all=True, filters={"label": label})
        return found

    def daemon(self) -> int:
        return int(Path(self.url.removeprefix("unix://")).with_name("docker.pid").read_text())

    def leftovers(self) -> list[str]:
        return files_below(self.state) + [item["Names"][0] for item in self.containers()] + self.mounts()

    def mounts(self) -> list[str]:
        """Mounts that mention this factory, as this process and as the engine see them."""
        tables = (Path(f"/proc/{pid}/mountinfo").read_text() for pid in ("self", self.daemon()))
        return [line for table in tables for line in table.splitlines() if str(self.state) in line]

    async def close(self) -> None:
        await self.driver.terminate()
        self.client.close()


@pytest.mark.timeout(180)
class DockerSuite(DriverSuite, SealedPacksSuite):
    """The contract, and what containers must do beyond it."""

    test_freezing_stops_it = NamespacesSuite.test_freezing_stops_it
    test_the_runtimes_own_end_is_told = NamespacesSuite.test_the_runtimes_own_end_is_told_apart_from_a_kill
    test_stats_are_of_this_instance = NamespacesSuite.test_stats_are_of_this_instance
    test_orphans_are_reaped = NamespacesSuite.test_orphans_are_reaped
    test_publish_takes_nothing_but_a_socket = NamespacesSuite.test_publish_takes_nothing_but_a_socket

    async def make(self, rig: Any, name: str = "a-g1", **labels: str) -> Sandbox:
        return await rig.driver.create(SandboxSpec(name, labels=labels), deadline_s=MAKE_MAX_S)

    @pytest.mark.parametrize("moment_s", [0.05, 0.3, 0.6])
    async def test_a_killed_factory_leaves_instances_alive(self, rig: DockerRig, moment_s: float) -> None:
        """A whole other process makes one instance and half of another, and is killed; we adopt and sweep."""
        await rig.driver.terminate()
        source = f"""
import asyncio, os, pathlib, signal
from factory_server.core.sandbox import SandboxSpec
from factory_server.drivers.docker.driver import DockerDriver

async def main():
    driver = DockerDriver(pathlib.Path({str(rig.state)!r}), factory={rig.state.name!r}, engine={rig.url!r},
                          entry={ENTRY!r}, packages=("tests",))
    await driver.start()
    await driver.create(SandboxSpec("a-g1"), deadline_s={MAKE_MAX_S})
    asyncio.get_running_loop().call_later({moment_s}, os.kill, os.getpid(), signal.SIGKILL)
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(driver.create(SandboxSpec(f"half{{number}}-g1"), deadline_s={MAKE_MAX_S}))

asyncio.run(main())
"""
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", source], cwd=REPOSITORY, env=os.environ | PATHS, timeout=60
        )
        assert done.returncode == -signal.SIGKILL
        rig.driver = rig.reopen()
        loop = asyncio.get_running_loop()
        started = loop.time()
        await rig.driver.start()
        assert loop.time() - started < 5
        for _ in range(2):  # at once, and after the engine has done what was asked of it before
            names = {sandbox.instance for sandbox in await rig.driver.list()}
            assert "a-g1" in names

            async def agrees() -> bool:
                there = {item["Labels"][hardening.LABEL_INSTANCE] for item in rig.containers()}
                return there == {sandbox.instance for sandbox in await rig.driver.list()}

            await until(agrees, what="every container is adopted or gone")
            assert loop.time() - started < 5
            await asyncio.sleep(0.5)
        found = next(s for s in await rig.driver.list() if s.instance == "a-g1")
        assert "pid" in await ask(found.control, {"do": "ping"})
        async with exits_of(rig.driver) as exit_of:
            await ask(found.control, {"do": "exit", "code": 4})
            assert await exit_of("a-g1") == Exit("a-g1", code=4)

    async def test_a_broken_image_gives_its_reason(self, rig: DockerRig) -> None:
        for options, reason in (
            ({"images": "hyperfactory-nothing"}, "make agent-image"),
            ({"entry": "tests.nothing:run"}, "No module named 'tests.nothing'"),
        ):
            settings = {"entry": ENTRY, "packages": ("tests",), **options}
            broken = DockerDriver(rig.state / "b", factory="b", engine=rig.url, **settings)
            await broken.start()
            with pytest.raises(Unavailable, match=reason):
                await broken.create(SandboxSpec("a-g1"), deadline_s=MAKE_MAX_S)
            await broken.terminate()

    async def test_a_second_process_of_a_home_disturbs_nobody(self, rig: DockerRig) -> None:
        """Two control planes on one directory: the second adopts, and leaves what the first still makes."""
        kept = await self.make(rig, "kept-g1")
        other = rig.reopen()
        async with asyncio.TaskGroup() as group:
            making = [group.create_task(self.make(rig, f"n{number}-g1")) for number in range(3)]
            await other.start()
        made = {kept.instance, *(task.result().instance for task in making)}
        assert {sandbox.instance for sandbox in await other.list()} == made
        assert {sandbox.instance for sandbox in await rig.driver.list()} == made
        late = await self.make(rig, "late-g1")
        service = await other.publish("late-g1")
        await other.wire("kept-g1", {"late.sock": service.removeprefix("unix://")})
        assert (await ask(kept.control, {"do": "connect", "name": "late.sock"}))["error"] == ""
        assert late in await other.list()
        async with exits_of(other) as one, exits_of(rig.driver) as two:
            await other.destroy("kept-g1")
            assert (await one("kept-g1")).instance == (await two("kept-g1")).instance == "kept-g1"
        await other.close()

    async def test_out_of_memory_is_told(self, rig: DockerRig) -> None:
        spec = SandboxSpec("a-g1", limits=Limits(memory_bytes=64 * 1024 * 1024))
        sandbox = await rig.driver.create(spec, deadline_s=MAKE_MAX_S)
        async with exits_of(rig.driver) as exit_of:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(sandbox.control, {"do": "hog"})
            assert await exit_of("a-g1") == Exit("a-g1", signal=9, oom=True)

    async def test_a_flood_of_output_is_bounded_on_disk(self, rig: DockerRig) -> None:
        sandbox = await self.make(rig)
        await ask(sandbox.control, {"do": "print", "text": "x" * 1_500_000 + "end"}, deadline_s=20)

        async def read() -> bool:
            chunks = [c.data async for c in rig.driver.logs("a-g1", tail_bytes=4, follow=False)]
            return b"".join(chunks) == b"end\n"

        await until(read, what="all output was taken")
        log = Path(rig.client.inspect_container(sandbox.container_id)["LogPath"])
        sizes = [path.stat().st_size for path in log.parent.glob(f"{log.name}*")]
        assert sum(sizes) <= (hardening.LOG_FILES + 1) * hardening.LOG_FILE_BYTES

    async def test_users_differ_on_the_host(self, rig: DockerRig) -> None:
        one, two = await self.make(rig, "a-g1"), await self.make(rig, "b-g1")
        users = [user_lines(sandbox.host_pid) for sandbox in (one, two)]
        assert users[0] != users[1]
        assert all("\t0\t" not in line for line in users)

    async def test_what_runs_is_what_was_meant(self, rig: DockerRig) -> None:
        """Read back from the engine, and from the process itself."""
        limits = Limits(
            memory_bytes=96 * 1024 * 1024, pids_max=33, cpu_millis=250, workspace_bytes=1024 * 1024
        )
        spec = SandboxSpec("a-g1", limits=limits, labels={"crew": "red", "agent": "a", "generation": "1"})
        sandbox = await rig.driver.create(spec, deadline_s=MAKE_MAX_S)
        told = rig.client.inspect_container(sandbox.container_id)
        host, config = told["HostConfig"], told["Config"]
        assert host["UsernsMode"] == "", "an API client could switch user namespaces off"
        assert (host["NetworkMode"], host["IpcMode"], host["Privileged"]) == ("none", "none", False)
        assert (host["ReadonlyRootfs"], host["Init"], host["CapDrop"], host["CapAdd"]) == (
            True,
            True,
            ["ALL"],
            None,
        )
        assert host["SecurityOpt"][0] == "no-new-privileges"
        assert '"io_uring_setup"' in host["SecurityOpt"][1]
        assert (host["Memory"], host["MemorySwap"]) == (limits.memory_bytes, limits.memory_bytes)
        assert (host["PidsLimit"], host["NanoCpus"]) == (33, 250_000_000)
        assert host["Dns"] == ["127.0.0.1"]
        assert host["RestartPolicy"]["Name"] == "no"
        assert (
            not host["Binds"] and not host["Devices"] and not host["PortBindings"] and not host["VolumesFrom"]
        )
        for place in ("/workspace", "/tmp"):
            assert {"nosuid", "nodev", "size=1048576"} <= set(host["Tmpfs"][place].split(","))
        writable = [mount["Target"] for mount in host["Mounts"] if not mount.get("ReadOnly")]
        assert writable == [hardening.OWN]
        assert "docker.sock" not in str(told["Mounts"])
        assert config["Labels"]["hyperfactory.crew"] == "red"
        assert config["User"].split(":")[0] not in ("", "0", "root")
        status = proc(sandbox.host_pid, "status")
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
        assert all(int(line.split()[1], 16) == 0 for line in status.splitlines() if line.startswith("Cap"))

    async def test_the_late_look_leaves_alone_what_is_being_made(
        self, rig: DockerRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fifty looks instead of two, while instances are made, probed and destroyed."""
        await rig.driver.close()
        monkeypatch.setattr("factory_server.drivers.docker.driver.LATE_LOOKS_S", (0.02,) * 50)
        rig.driver = rig.reopen()
        await rig.driver.start()
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(rig.driver.probe())
            for number in range(3):
                group.create_task(self.make(rig, f"n{number}-g1"))
        assert probing.result().properties
        assert len(await rig.driver.list()) == 3

    async def test_probe_finds_it_closed(self, rig: DockerRig) -> None:
        info = await rig.driver.probe()
        strong = {p.name for p in info.properties if p.enforcement is Enforcement.ENFORCED}
        assert {
            "no_capabilities", "no_new_privileges", "seccomp", "read_only_root", "own_processes_only",
            "no_network", "workspace_quota", "process_limit", "memory_limit", "cpu_limit", "freeze",
            "sealed_socket_directory", "skill_packs",
        } <= strong  # fmt: skip
        assert ("user_namespace" in strong) == self.remapped
        assert rig.containers() == []

    remapped = False


class TestDocker(DockerSuite):
    """On a plain engine."""

    @pytest.fixture
    async def rig(self, state: Path, plain_engine: str) -> AsyncIterator[DockerRig]:
        rig = DockerRig(state, plain_engine)
        await rig.driver.start()
        yield rig
        await rig.close()

    async def test_a_hung_engine_kills_nobody(self, rig: DockerRig) -> None:
        """Looks end by their deadlines, claims go on, ends are told by the kernel, and all is well afterwards."""
        before = rig.leftovers()
        kept, lost = await self.make(rig, "kept-g1"), await self.make(rig, "lost-g1")
        loop = asyncio.get_running_loop()
        async with exits_of(rig.driver) as exit_of:
            os.kill(rig.daemon(), signal.SIGSTOP)
            try:
                for longest_s in (1.5, 0.5, 0.5):
                    started = loop.time()
                    with pytest.raises(Unavailable):
                        await rig.driver.list()
                    assert loop.time() - started < longest_s
                await self.claim(rig, kept)
                os.kill(lost.host_pid, signal.SIGKILL)
                assert (await exit_of("lost-g1")).instance == "lost-g1"
                with pytest.raises(Unavailable):
                    await rig.driver.create(SandboxSpec("new-g1"), deadline_s=0.5)
            finally:
                os.kill(rig.daemon(), signal.SIGCONT)

            async def answers() -> bool:
                try:
                    return list(await rig.driver.list()) == [kept]
                except Unavailable:
                    return False

            await until(answers, what="the engine answers again, and one is alive")
            await ask(kept.control, {"do": "exit", "code": 5})
            assert await exit_of("kept-g1") == Exit("kept-g1", code=5)
        for name in ("kept-g1", "lost-g1", "new-g1"):
            await rig.driver.destroy(name)
        assert rig.leftovers() == before

    async def claim(self, rig: DockerRig, sandbox: Sandbox) -> None:
        """What a claim asks of a driver and of a warm instance."""
        assert "pid" in await ask(sandbox.control, {"do": "ping"})
        service = await rig.driver.publish(sandbox.instance)
        await rig.driver.wire(sandbox.instance, {"mate.sock": service.removeprefix("unix://")})
        assert (await ask(sandbox.control, {"do": "connect", "name": "mate.sock"}))["error"] == ""
        assert (await rig.driver.stats(sandbox.instance)).memory_bytes > 0

    @pytest.mark.parametrize("how", ["exit", "kill", "hog"])
    async def test_older_kernels_learn_of_ends_from_the_engine(
        self, rig: DockerRig, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        monkeypatch.setattr(exitinfo, "wait_status", lambda pidfd: None)
        monkeypatch.setattr(roster, "VERDICT_MAX_S", 60.0)
        spec = SandboxSpec("a-g1", limits=Limits(memory_bytes=64 * 1024 * 1024))
        sandbox = await rig.driver.create(spec, deadline_s=MAKE_MAX_S)
        async with exits_of(rig.driver) as exit_of:
            if how == "kill":
                await rig.kill(sandbox)
            else:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await ask(sandbox.control, {"do": how, "code": 3})
            expected = {"exit": Exit("a-g1", code=3), "kill": Exit("a-g1", signal=9)}
            assert await exit_of("a-g1") == expected.get(how, Exit("a-g1", signal=9, oom=True))

    @pytest.mark.timeout(1800)
    async def test_many_cycles_leave_nothing(self, rig: DockerRig) -> None:
        """One in ten is killed, cancelled or destroyed at a random point of its making."""
        before, threads = rig.leftovers(), threading.active_count()
        chance = random.Random(11)
        cycles, lanes = int(os.environ.get("HYPERFACTORY_DOCKER_CYCLES", "40")), 3
        spoiled = 0

        async def cycle(number: int) -> None:
            nonlocal spoiled
            name = f"n{number}-g1"
            if chance.random() >= 0.1:
                await self.make(rig, name)
                await rig.driver.destroy(name)
                return
            spoiled += 1
            making = loop.create_task(self.try_make(rig, name))
            await asyncio.sleep(chance.random() * 1.2)
            match chance.choice(["cancel", "kill", "destroy", "restart"]):
                case "cancel":
                    making.cancel()
                case "kill":
                    for pid in pids_of(rig, name):
                        os.kill(pid, signal.SIGKILL)
                case "destroy":
                    await rig.driver.destroy(name)
                case _:
                    rig.client.restart(rig.driver._host.container(name), timeout=0) if pids_of(
                        rig, name
                    ) else None
            await asyncio.wait([making])
            await rig.driver.destroy(name)

        async def lane(first: int) -> None:
            for number in range(first, cycles, lanes):
                await cycle(number)

        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for first in range(lanes):
                group.create_task(lane(first))
        assert spoiled
        assert rig.leftovers() == before
        assert list(await rig.driver.list()) == []
        assert threading.active_count() <= threads + 8, "lanes are bounded"


def proc(pid: int, name: str) -> str:
    """What the host sees of a process."""
    return Path(f"/proc/{pid}/{name}").read_text()


def pids_of(rig: DockerRig, instance: str) -> list[int]:
    """The first process of an instance, if it has one by now."""
    try:
        pid = rig.client.inspect_container(rig.driver._host.container(instance))["State"]["Pid"]
    except docker.errors.NotFound:
        return []
    return [pid] if pid else []


class TestRestartedEngine:
    """An engine of its own, because it is killed."""

    WHERE = ("--at", "/tmp/hf-dockerd-mortal")

    @pytest.fixture
    async def rig(self, state: Path) -> AsyncIterator[DockerRig]:
        engines.demand()
        rig = DockerRig(state, await asyncio.to_thread(engines.start, *self.WHERE))
        await rig.driver.start()
        yield rig
        await rig.close()
        await asyncio.to_thread(engines.stop, *self.WHERE)

    # The SDK leaves a socket that could not connect to the garbage collector.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.timeout(120)
    async def test_a_killed_engine_comes_back(self, rig: DockerRig) -> None:
        """Its containers outlive it, and end when it starts again: told then, not before; and all goes on."""
        before = rig.leftovers()
        sandbox = await rig.driver.create(SandboxSpec("a-g1"), deadline_s=MAKE_MAX_S)
        async with exits_of(rig.driver) as exit_of:
            os.kill(rig.daemon(), signal.SIGKILL)
            with pytest.raises(Unavailable):
                await rig.driver.list()
            assert "pid" in await ask(sandbox.control, {"do": "ping"}), "nobody died yet"
            await asyncio.to_thread(engines.start, *self.WHERE)
            assert (await exit_of("a-g1")).instance == "a-g1"

        async def empty() -> bool:
            try:
                return not await rig.driver.list()
            except Unavailable:
                return False

        await until(empty, what="the engine answers again")
        await rig.driver.create(SandboxSpec("b-g1"), deadline_s=MAKE_MAX_S)
        async with exits_of(rig.driver) as exit_of:
            await rig.driver.destroy("b-g1")
            assert (await exit_of("b-g1")).instance == "b-g1"
        await rig.driver.destroy("a-g1")
        assert rig.leftovers() == before


class TestRemapped(DockerSuite):
    """On an engine with user namespaces."""

    remapped = True

    # Crashes, haste and a shared home meet the same code on every engine: TestDocker has them.
    test_a_killed_factory_leaves_instances_alive = None
    test_a_second_process_of_a_home_disturbs_nobody = None
    test_the_late_look_leaves_alone_what_is_being_made = None
    test_many_at_once = None

    @pytest.fixture
    async def rig(self, state: Path, remapped_engine: str) -> AsyncIterator[DockerRig]:
        rig = DockerRig(state, remapped_engine)
        await rig.driver.start()
        yield rig
        await rig.close()

    async def test_root_inside_is_nobody_outside(self, rig: DockerRig) -> None:
        sandbox = await self.make(rig)
        inside, outside, count = proc(sandbox.host_pid, "uid_map").split()
        base = findings.remapped_base(rig.driver._host.info)
        assert (int(inside), int(outside), int(count)) == (0, base, 65536)
        assert base > 100_000
        user = int(user_lines(sandbox.host_pid).split()[1])
        assert user > base, "the agent itself is not even that root"

    async def test_even_as_root_it_owns_nothing_of_the_host(self, rig: DockerRig, tmp_path: Path) -> None:
        """Root in a container of the same image, with a file of host's root bound into it."""
        secret = tmp_path / "secret"
        secret.write_text("x")
        secret.chmod(0o600)
        host = rig.client.create_host_config(
            network_mode="none", binds={str(secret): {"bind": "/s", "mode": "rw"}}
        )
        made = rig.client.create_container(
            "hyperfactory-agent:python", "sleep 60", user="0", host_config=host
        )
        try:
            rig.client.start(made)
            pid = rig.client.inspect_container(made)["State"]["Pid"]
            assert int(user_lines(pid).split()[1]) == findings.remapped_base(rig.driver._host.info)
            reading = rig.client.exec_create(made, "cat /s", user="0")
            answer = rig.client.exec_start(reading)
            assert b"Permission denied" in answer
        finally:
            rig.client.remove_container(made, force=True)
