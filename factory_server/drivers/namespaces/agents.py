"""The fork server's children: fork them, wait for their readiness, notice their end, keep their output."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from factory_server.drivers.namespaces import child, logs, mounts, probe, reaper, records, seccomp, wiring
from factory_server.drivers.namespaces import syscalls as sys_
from factory_server.drivers.namespaces.cgroups import Bounds, Cgroups
from factory_server.drivers.namespaces.records import Record

UID_BASE: Final = 200_000
SLOTS_MAX: Final = 10_000
READY_MAX_BYTES: Final = 4096
LOG_READ_BYTES: Final = 64 * 1024
_HOSTNAME_MAX: Final = 32

STATE: Final = Path(mounts.HOST_STATE)
SOCKETS: Final = Path(mounts.HOST_SOCKETS)


class NoSlotError(Exception):
    """Every user id of ours is in use."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a create asks for."""

    instance: str
    labels: dict[str, str]
    memory_bytes: int
    pids_max: int
    cpu_millis: int
    workspace_bytes: int
    base: str = ""
    probe: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """How an instance ended; all zero where nobody could tell."""

    code: int = 0
    signal: int = 0
    oom: bool = False


@dataclass(eq=False, slots=True)
class Agent:
    """One child, from fork to wiping."""

    record: Record
    log: logs.LogWriter
    pidfd: int = -1
    ready_fd: int = -1
    log_fd: int = -1
    status_fd: int = -1
    probe: bool = False
    missing: dict[str, str] = field(default_factory=dict)
    report: str = ""
    end: End | None = None
    log_spent_bytes: int = 0

    @property
    def instance(self) -> str:
        """Its name."""
        return self.record.instance

    def close(self) -> None:
        """Close every descriptor that is still open."""
        for name in ("pidfd", "ready_fd", "log_fd", "status_fd"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)
        self.log.close()


@dataclass(slots=True)
class Nursery:
    """Makes agents; holds what they have in common."""

    entry: child.Entry
    rootless: bool
    cgroups: Cgroups
    shelf: records.Records
    uid_base: int = UID_BASE
    _filter: bytes = field(default_factory=seccomp.program)
    _pid_namespace: int = field(
        default_factory=lambda: os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    )

    def spawn(self, wish: Wish, slot: int) -> Agent:
        """Fork one agent and give it leave to run; it reports readiness on `ready_fd`."""
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
        if threads != 1:
            raise RuntimeError(f"the fork server has {threads} threads: a fork would copy their locks")
        stem = records.stem(wish.instance)
        agent = Agent(
            Record(wish.instance, slot, wish.labels), logs.LogWriter(STATE / "logs" / stem), probe=wish.probe
        )
        try:
            agent.record = self.shelf.write(agent.record)
            self._give_birth(agent, self._prepare(agent, wish))
        except BaseException:
            self.wipe(agent)
            raise
        return agent

    def _prepare(self, agent: Agent, wish: Wish) -> child.Birth:
        stem = records.stem(wish.instance)
        uid = 0 if self.rootless else self.uid_base + agent.record.slot
        bounds = Bounds(wish.memory_bytes, wish.pids_max, wish.cpu_millis)
        groups, agent.missing = self.cgroups.create(stem, bounds)
        agent.record = replace(agent.record, groups=tuple(groups))
        own, peers = _directories(stem, uid)
        skills = STATE / "skills" / stem
        skills.mkdir(mode=0o755, exist_ok=True)
        skills.chmod(0o755)
        return child.Birth(
            hostname=stem[:_HOSTNAME_MAX],
            uid=uid,
            rootless=self.rootless,
            view=mounts.View(
                str(own),
                str(peers),
                wish.workspace_bytes,
                uid,
                self.rootless,
                wish.base,
                skills=f"{mounts.HOST_SKILLS}/{stem}",
            ),
            cgroups=self.cgroups,
            groups=agent.record.groups,
            pids_max=wish.pids_max if "pids" in agent.missing else 0,
            data_bytes=wish.memory_bytes if "memory" in agent.missing else 0,
            file_bytes=wish.workspace_bytes,
            filter=self._filter,
            entry=probe.inside if wish.probe else self.entry,
        )

    def _give_birth(self, agent: Agent, birth: child.Birth) -> None:
        pairs = [os.pipe() for _ in range(4)]
        (agent.ready_fd, ready), (agent.status_fd, status), (agent.log_fd, log), (go, leave) = pairs
        for fd in (agent.ready_fd, agent.status_fd, agent.log_fd):
            os.set_blocking(fd, False)
        try:
            pid = self._fork(birth, child.Pipes(ready, status, go, log))
            agent.pidfd = os.pidfd_open(pid)
            started = records.start_time(pid)
            agent.record = self.shelf.write(replace(agent.record, pid=pid, started=started))
            os.write(leave, b"g")
        except BaseException:
            agent.close()
            raise
        finally:
            for fd in (ready, status, log, go, leave):
                os.close(fd)

    def _fork(self, birth: child.Birth, pipes: child.Pipes) -> int:
        if self.rootless:
            return _fork_through_middleman(birth, pipes)
        sys_.unshare(sys_.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                child.live(birth, pipes)
        finally:
            # Only the next fork was to begin a pid namespace; until here no thread could be made either.
            sys_.setns(self._pid_namespace, sys_.CLONE_NEWPID)
        return pid

    def adopt(self, record: Record) -> Agent:
        """Take over an agent that an earlier fork server left behind, or what is left of it."""
        stem = records.stem(record.instance)
        groups = record.groups or tuple(self.cgroups.existing(stem))
        agent = Agent(replace(record, groups=groups), logs.LogWriter(STATE / "logs" / stem))
        if not (record.ready and record.alive()):
            for pid in self.cgroups.pids(groups):  # half-made: nobody knows whether it would ever be ready
                os.kill(pid, signal.SIGKILL)
            if record.alive():
                os.kill(record.pid, signal.SIGKILL)
            agent.end = End()
            return agent
        agent.pidfd = os.pidfd_open(record.pid)
        try:
            agent.log_fd = os.open(f"/proc/{record.pid}/fd/1", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            agent.log_fd = -1  # rootless: the agent's descriptors are closed to us; its output is lost
        return agent

    def read_ready(self, agent: Agent) -> str:
        """Take the readiness report: empty when the agent serves, else why it does not."""
        data = os.read(agent.ready_fd, READY_MAX_BYTES)
        os.close(agent.ready_fd)
        agent.ready_fd = -1
        if not data:
            return "it ended before it was ready"
        if data.startswith(child.FAILED) and len(data) > 1:
            return data[1:].decode(errors="replace")
        if agent.probe:
            agent.report = data.decode()
            return ""
        stem = records.stem(agent.instance)
        try:
            control = SOCKETS / "own" / stem / "ctl.sock"
            wiring.adopt(control, SOCKETS / "ctl" / f"{stem}.sock", mode=0o600)
            # From here on, only the factory has a path to it; the agent's tools do not.
            wiring.close_door(control)
        except OSError as error:
            return f"control socket: {error}"
        agent.record = self.shelf.write(replace(agent.record, ready=True))
        return ""

    def kill(self, agent: Agent) -> None:
        """Kill pid 1, and with it every process of the sandbox."""
        signal.pidfd_send_signal(agent.pidfd, signal.SIGKILL)
        self.cgroups.freeze(agent.record.groups, frozen=False)  # a frozen v1 group would not even die

    def read_end(self, agent: Agent) -> End:
        """How it ended; its pidfd has just become readable."""
        oom_kills = self.cgroups.oom_kills(agent.record.groups)
        try:
            result = os.waitid(os.P_PIDFD, agent.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return End(oom=oom_kills > 0)  # adopted: init has its status
        code, number = 0, 0
        if result is not None and result.si_code == os.CLD_EXITED:
            code = result.si_status
        elif result is not None:
            number = result.si_status
        runtime = _read_status(agent.status_fd)
        if runtime is not None:
            code, number = max(runtime, 0), max(-runtime, 0)
        return End(code, number, oom=oom_kills > 0 and number == signal.SIGKILL)

    def wipe(self, agent: Agent) -> bool:
        """Remove groups, output and record; False while a group is still busy."""
        if not self.cgroups.remove(agent.record.groups):
            return False
        agent.close()
        logs.remove(agent.log.directory)
        self.shelf.remove(agent.instance)
        return True


def _directories(stem: str, uid: int) -> tuple[Path, Path]:
    own, peers = SOCKETS / "own" / stem, SOCKETS / "peers" / stem
    own.mkdir(mode=0o700, exist_ok=True)
    own.chmod(0o700)
    if uid:
        os.chown(own, uid, uid)
    peers.mkdir(mode=0o755, exist_ok=True)
    peers.chmod(0o755)
    return own, peers


def _fork_through_middleman(birth: child.Birth, pipes: child.Pipes) -> int:
    """Fork where we may not return from a new pid namespace: a middleman makes it, forks and ends.

    The fork server is a subreaper, so that the child becomes its own, and a death of the server does not take
    the agents along, as it would if it were pid 1 of a namespace around them.
    """
    read_end, write_end = os.pipe()
    middleman = os.fork()
    if middleman == 0:
        try:
            sys_.unshare(sys_.CLONE_NEWPID)
            pid = os.fork()
            if pid == 0:
                child.live(birth, pipes)
            os.write(write_end, str(pid).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        os.waitpid(middleman, 0)
        return int(os.read(read_end, 32))
    except ValueError:
        raise OSError("unshare: no new pid namespace") from None
    finally:
        os.close(read_end)


def _read_status(fd: int) -> int | None:
    if fd < 0:
        return None
    try:
        return reaper.exit_code(os.read(fd, reaper.STATUS_BYTES))
    except BlockingIOError:
        return None
