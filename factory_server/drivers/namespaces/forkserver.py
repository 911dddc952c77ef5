"""The fork server's loop: one thread, many children, requests from factories that come and go."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from factory_server.drivers.namespaces import agents as agents_
from factory_server.drivers.namespaces import protocol
from factory_server.drivers.namespaces.agents import Agent, End, Nursery, Wish
from factory_server.drivers.namespaces.protocol import Message, Peer

BUSY_RETRY_S: Final = 0.002
BUSY_TRIES: Final = 2000
LOG_BURST_BYTES: Final = 2 * 1024 * 1024
LOG_PAUSE_S: Final = 0.5

Waiter = tuple[Peer, int]


@dataclass(eq=False)
class ForkServer:
    """Answers requests and pushes exits; `run` returns when it was told to stop."""

    nursery: Nursery
    listener: socket.socket
    leash_s: float
    greeting: Message
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _agents: dict[str, Agent] = field(default_factory=dict)
    _peers: list[Peer] = field(default_factory=list)
    _waiting: dict[str, list[Waiter]] = field(default_factory=dict)
    _dooming: dict[str, list[Waiter]] = field(default_factory=dict)
    _timers: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _ticket: itertools.count[int] = field(default_factory=itertools.count)
    _stopping: bool = False

    def run(self) -> None:
        """Adopt what an earlier server left, then serve."""
        for record in self.nursery.shelf:
            self._watch(self.nursery.adopt(record))
        self._selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self._arm_leash()
        while not self._stopping or self._agents:
            for key, _ in self._selector.select(self._next_timer_s()):
                key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            for peer in [peer for peer in self._peers if peer.closed]:
                self._drop(peer)

    def _next_timer_s(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._ticket), action))

    # Connections

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", packed)[1] != os.geteuid():
            connection.close()
            return
        connection.setblocking(False)
        peer = Peer(connection)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, peer))
        peer.send(self.greeting)

    def _hear(self, peer: Peer) -> None:
        peer.flush()
        try:
            packet = peer.connection.recv(protocol.MESSAGE_MAX_BYTES)
            if not packet:
                peer.closed = True
                return
            message = protocol.decode(packet)
            self._dispatch(peer, message)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"dropped a connection: {error!r}", file=sys.stderr)  # noqa: T201
            peer.closed = True

    def _drop(self, peer: Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()
        for waiters in (*self._waiting.values(), *self._dooming.values()):
            waiters[:] = [waiter for waiter in waiters if waiter[0] is not peer]
        self._arm_leash()

    def _arm_leash(self) -> None:
        if self.leash_s > 0 and not self._peers:
            self._later(self.leash_s, self._check_leash)

    def _check_leash(self) -> None:
        if not self._peers:
            self._stop(kill=True)

    def _dispatch(self, peer: Peer, message: Message) -> None:
        number = int(message["id"])
        match message["op"]:
            case "create":
                self._create(peer, number, Wish(**message["wish"]))
            case "destroy":
                self._destroy(peer, number, str(message["instance"]))
            case "list":
                self._list(peer, number)
            case "stop":
                self._stop(kill=bool(message["kill"]))
                peer.send({"id": number, "ok": True})
            case other:
                peer.send({"id": number, "error": f"no such operation '{other}'", "kind": protocol.UNKNOWN})

    # Birth

    def _create(self, peer: Peer, number: int, wish: Wish) -> None:
        agent = self._agents.get(wish.instance)
        if agent is not None and agent.end is not None:
            peer.send({"id": number, "error": "it has ended", "kind": protocol.EXITED})
            return
        if agent is not None and agent.record.ready:
            peer.send({"id": number, "ok": True, **_describe(agent)})
            return
        self._waiting.setdefault(wish.instance, []).append((peer, number))
        if agent is not None:
            return
        try:
            agent = self.nursery.spawn(wish, self._free_slot())
        except agents_.NoSlotError as error:
            self._fail(wish.instance, str(error), protocol.EXHAUSTED)
        except (OSError, RuntimeError) as error:
            self._fail(wish.instance, str(error), protocol.FAILED)
        else:
            self._watch(agent)

    def _free_slot(self) -> int:
        taken = {agent.record.slot for agent in self._agents.values()}
        slot = next(number for number in itertools.count() if number not in taken)
        if slot >= agents_.SLOTS_MAX:
            raise agents_.NoSlotError(f"all {agents_.SLOTS_MAX} slots are taken")
        return slot

    def _watch(self, agent: Agent) -> None:
        self._agents[agent.instance] = agent
        for fd, handler in (
            (agent.pidfd, self._ended),
            (agent.ready_fd, self._ready),
            (agent.log_fd, self._output),
        ):
            if fd >= 0:
                self._selector.register(fd, selectors.EVENT_READ, partial(handler, agent))

    def _ready(self, agent: Agent) -> None:
        self._selector.unregister(agent.ready_fd)
        problem = self.nursery.read_ready(agent)
        if problem:
            self._fail(agent.instance, problem, protocol.FAILED)
            if agent.end is None:
                self.nursery.kill(agent)
            return
        if not agent.probe:
            self._announce(agent)
        for peer, number in self._waiting.pop(agent.instance, []):
            peer.send({"id": number, "ok": True, **_describe(agent)})

    def _announce(self, agent: Agent) -> None:
        """Replicas of a factory share us: each may be given what another made, and must know it by then."""
        for peer in self._peers:
            peer.send({"event": "born", **_describe(agent)})

    def _fail(self, instance: str, problem: str, kind: str) -> None:
        for peer, number in self._waiting.pop(instance, []):
            peer.send({"id": number, "error": problem, "kind": kind})

    # Life

    def _output(self, agent: Agent) -> None:
        try:
            data = os.read(agent.log_fd, agents_.LOG_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._mute(agent)
            os.close(agent.log_fd)
            agent.log_fd = -1
            return
        agent.log.append(data)
        agent.log_spent_bytes += len(data)
        if agent.log_spent_bytes > LOG_BURST_BYTES:
            # A flood must not keep us from forking for others: its writer waits on a full pipe instead.
            self._mute(agent)
            self._later(LOG_PAUSE_S, partial(self._unmute, agent))

    def _mute(self, agent: Agent) -> None:
        if agent.log_fd in self._selector.get_map():
            self._selector.unregister(agent.log_fd)

    def _unmute(self, agent: Agent) -> None:
        agent.log_spent_bytes = 0
        if agent.log_fd >= 0 and agent.log_fd not in self._selector.get_map():
            self._selector.register(agent.log_fd, selectors.EVENT_READ, partial(self._output, agent))

    def _list(self, peer: Peer, number: int) -> None:
        known = [_describe(agent) for agent in self._agents.values()]
        size = protocol.LIST_PAGE
        pages = [known[start : start + size] for start in range(0, len(known), size)]
        for page in pages:
            peer.send({"id": number, "ok": True, "more": True, "items": page})
        peer.send({"id": number, "ok": True, "items": []})

    # Death

    def _ended(self, agent: Agent) -> None:
        agent.end = self.nursery.read_end(agent)
        self._drain(agent)
        for fd in (agent.pidfd, agent.ready_fd, agent.log_fd):
            if fd >= 0 and fd in self._selector.get_map():
                self._selector.unregister(fd)
        agent.close()
        self._fail(agent.instance, "it ended before it was ready", protocol.FAILED)
        if not agent.probe:
            self._tell(agent.instance, agent.end)
        if agent.instance in self._dooming:
            self._wipe(agent, BUSY_TRIES)

    def _drain(self, agent: Agent) -> None:
        """Keep the last words."""
        if agent.log_fd < 0:
            return
        try:
            while data := os.read(agent.log_fd, agents_.LOG_READ_BYTES):
                agent.log.append(data)
        except BlockingIOError:
            return

    def _tell(self, instance: str, end: End) -> None:
        event = {
            "event": "exit",
            "instance": instance,
            "code": end.code,
            "signal": end.signal,
            "oom": end.oom,
        }
        for peer in self._peers:
            peer.send(event)

    def _destroy(self, peer: Peer, number: int, instance: str) -> None:
        agent = self._agents.get(instance)
        if agent is None:
            peer.send({"id": number, "ok": True})
            return
        self._dooming.setdefault(instance, []).append((peer, number))
        if agent.end is not None:
            self._wipe(agent, BUSY_TRIES)
        else:
            self.nursery.kill(agent)

    def _wipe(self, agent: Agent, tries: int) -> None:
        if self._agents.get(agent.instance) is not agent:
            return
        if self.nursery.wipe(agent):
            del self._agents[agent.instance]
            for peer, number in self._dooming.pop(agent.instance, []):
                peer.send({"id": number, "ok": True})
        elif tries:
            self._later(BUSY_RETRY_S, partial(self._wipe, agent, tries - 1))
        else:
            for peer, number in self._dooming.pop(agent.instance, []):
                peer.send({"id": number, "error": "its cgroup stays busy", "kind": protocol.FAILED})

    def _stop(self, *, kill: bool) -> None:
        """End, at once and leaving the agents alone, or after killing and wiping all of them."""
        self._stopping = True
        for agent in list(self._agents.values()) if kill else ():
            self._dooming.setdefault(agent.instance, [])
            if agent.end is None:
                self.nursery.kill(agent)
            else:
                self._wipe(agent, BUSY_TRIES)
        if not kill:
            self._agents.clear()


def _describe(agent: Agent) -> Message:
    record = agent.record
    return {
        "instance": record.instance,
        "pid": record.pid,
        "labels": record.labels,
        "groups": [[group.version, sorted(group.controllers), group.path] for group in record.groups],
        "missing": agent.missing,
        "report": agent.report,
        "ready": record.ready,
        "ended": agent.end is not None,
    }
