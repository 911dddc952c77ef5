"""Split agents among several watchdogs by rendezvous hashing, so that one that goes moves only its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b


def owner(agent: str, watchdogs: Iterable[str]) -> str:
    """The watchdog that probes `agent`; the same answer wherever it is asked with the same list."""
    return max(watchdogs, key=lambda name: (_score(agent, name), name))


def phase(agent: str) -> float:
    """Where in the interval the agent's beat falls, 0 to 1, so that thousands do not beat together."""
    return int.from_bytes(blake2b(agent.encode(), digest_size=8).digest()) / 2**64


def shard(text: str) -> Callable[[str], bool]:
    """`i/n` as a predicate on agent ids: this watchdog is the i-th (from 0) of n."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"cannot read shard {text!r}: it must be i/n with i from 0 to n - 1")
    names = [str(number) for number in range(int(count))]
    return lambda agent: owner(agent, names) == str(int(index))


def _score(agent: str, watchdog: str) -> bytes:
    return blake2b(f"{watchdog}\0{agent}".encode(), digest_size=8).digest()
