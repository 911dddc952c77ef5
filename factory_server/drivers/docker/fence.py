"""Close crews' bridges with rules of our own: what comes from one reaches its members, and nothing else.

An `internal` network is not closed: its members reach every service of the host that listens on all addresses,
through any gateway's address. And whether the engine writes rules at all is its own affair. So these stand alone,
in chains of our own that are entered by the names of our bridges, and are looked at again and again.
"""

from __future__ import annotations

import logging
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger("factory.docker")

PREFIX: Final = "HFC"
TOOLS: Final = ("iptables", "ip6tables")
_SIX: Final = Path("/proc/net/if_inet6")
_RUN_MAX_S: Final = 10.0
_LOCK_MAX_S: Final = 5
_BEFORE_US: Final = (PREFIX, "DOCKER-")
"""What may stand before our rules: other factories', and what the engine puts first each time."""


class FenceError(Exception):
    """The rules cannot be read or written, so nothing may be handed out."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The rules of one factory; `bridges` is the beginning of the names of all its bridges. Methods block."""

    bridges: str

    @property
    def _inward(self) -> str:
        return f"{self.bridges.upper()}-IN"

    @property
    def _across(self) -> str:
        return f"{self.bridges.upper()}-FW"

    def jumps(self) -> list[tuple[str, str]]:
        """Chains of the kernel's, and the rule that each needs."""
        ours = f"{self.bridges}+"
        return [
            ("INPUT", f"-i {ours} -j {self._inward}"),
            ("FORWARD", f"-i {ours} -j {self._across}"),
            ("FORWARD", f"-o {ours} -j {self._across}"),
        ]

    def chains(self, bridges: Iterable[str]) -> dict[str, list[str]]:
        """Our chains. Members of one bridge meet, also where bridged frames are filtered; nobody else does."""
        meet = [f"-i {bridge} -o {bridge} -j ACCEPT" for bridge in sorted(bridges)]
        answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
        return {self._inward: [answers, "-j DROP"], self._across: [*meet, "-j DROP"]}

    def assure(self, bridges: Sequence[str]) -> bool:
        """Have the rules stand; True where they had to be written. FenceError where they do not stand then."""
        written = False
        for tool in _tools():
            repair = self.repair(_saved(tool), bridges)
            if repair:
                _restore(tool, repair)
                written = True
                if rest := self.repair(_saved(tool), bridges):
                    raise FenceError(f"{tool} does not keep rules: {rest[0]}")
        return written

    def stands(self, bridges: Sequence[str]) -> bool:
        """Whether the rules stand. FenceError where that cannot be told."""
        return not any(self.repair(_saved(tool), bridges) for tool in _tools())

    def lift(self) -> None:
        """Leave no rule and no chain."""
        for tool in _tools():
            table = _saved(tool)
            chains = [name for name in (self._inward, self._across) if f":{name} " in table]
            gone = [
                f"-D {chain} {rule}"
                for chain, rule in self.jumps()
                for _ in range(_count(table, chain, rule))
            ]
            gone += [f"-F {name}" for name in chains] + [f"-X {name}" for name in chains]
            if gone:
                _restore(tool, gone)

    def repair(self, table: str, bridges: Sequence[str]) -> list[str]:
        """What must be said to have the rules stand in this table, as it was saved; nothing where they do."""
        lines = table.splitlines()
        said: list[str] = []
        for name, rules in self.chains(bridges).items():
            present = [line.removeprefix(f"-A {name} ") for line in lines if line.startswith(f"-A {name} ")]
            if present != rules or not any(line.startswith(f":{name} ") for line in lines):
                said += [f":{name} - [0:0]", *(f"-A {name} {rule}" for rule in rules)]
        for chain, rule in self.jumps():
            if not self._stands(lines, chain, rule):
                said += [f"-D {chain} {rule}"] * _count(table, chain, rule) + [f"-I {chain} 1 {rule}"]
        return said

    def _stands(self, lines: Sequence[str], chain: str, rule: str) -> bool:
        """Once, and before whatever could let something pass."""
        rules = [line.removeprefix(f"-A {chain} ") for line in lines if line.startswith(f"-A {chain} ")]
        if Counter(rules)[rule] != 1:
            return False
        return all(_target(before).startswith(_BEFORE_US) for before in rules[: rules.index(rule)])


def _target(rule: str) -> str:
    return rule.partition("-j ")[2].split(" ")[0]


def _count(table: str, chain: str, rule: str) -> int:
    return table.splitlines().count(f"-A {chain} {rule}")


def _tools() -> Sequence[str]:
    return TOOLS if _SIX.exists() else TOOLS[:1]


def _saved(tool: str) -> str:
    return _run([f"{tool}-save", "-t", "filter"])


def _restore(tool: str, said: Sequence[str]) -> None:
    text = "\n".join(["*filter", *said, "COMMIT", ""])
    _run([f"{tool}-restore", "--noflush", "-w", str(_LOCK_MAX_S)], text)


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_RUN_MAX_S, check=True
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"code {error.returncode}"])[0]
        raise FenceError(f"{command[0]}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FenceError(f"{command[0]}: {error}") from error
    return done.stdout
