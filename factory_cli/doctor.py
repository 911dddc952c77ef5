"""Check everything the stack needs, and say how to mend what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from factory_cli.failures import Exit
from factory_cli.output import Output

CHECK_WITHIN_S = 40.0


class Health(StrEnum):
    """How a check ended."""

    OK = "ok"
    DEGRADED = "degraded"
    """It works, but less well."""
    MISSING = "missing"
    """It does not work without it, if it is required."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and how to mend it."""

    name: str
    health: Health
    detail: str
    mend: str = ""
    required: bool = True

    @property
    def blocks(self) -> bool:
        """Whether the stack cannot run because of it."""
        return self.required and self.health is Health.MISSING


Check = Callable[[], Awaitable[Sequence[Finding]]]


async def run(home: Path, client_file: Path, out: Output) -> Exit:
    """Run every check, print what was found, and fail if something required is missing."""
    findings = await examine(home, client_file)
    if out.as_json:
        blocking = [finding.name for finding in findings if finding.blocks]
        out.document({"ok": not blocking, "missing": blocking, "checks": [asdict(f) for f in findings]})
    out.table(("CHECK", "STATE", "FOUND"), [(f.name, f.health, f.detail) for f in findings])
    for finding in findings:
        if finding.mend and finding.health is not Health.OK:
            needed = "" if finding.required else " (optional)"
            out.text(f"\n{finding.name}{needed}: {finding.mend}")
    return Exit.FAILED if any(finding.blocks for finding in findings) else Exit.OK


async def examine(home: Path, client_file: Path) -> list[Finding]:
    """Run every check; one that breaks is itself a finding."""
    from factory_cli import checks, checks_live

    host = (
        checks.python,
        checks.packages,
        checks.postgres,
        checks.valkey,
        checks.traefik,
        checks.open_files,
        checks.memory,
        checks.disk,
        checks.home,
        checks.ports,
        checks.docker,
    )
    every: list[tuple[str, Check]] = [
        (check.__name__, partial(asyncio.to_thread, check, home)) for check in host
    ]
    every += [("sandboxes", checks_live.sandboxes), ("stack", partial(checks_live.stack, home, client_file))]
    return [finding for name, check in every for finding in await _examine_one(name, check)]


async def _examine_one(name: str, check: Check) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            return await check()
    except Exception as error:
        # Whatever breaks a check is what the doctor has to tell.
        return [Finding(name, Health.MISSING, f"cannot be checked: {type(error).__name__}: {error}")]
