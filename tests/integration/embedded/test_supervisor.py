"""A supervised service is restarted when it dies, outlives its supervisor, and is adopted by the next."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedded.paths import prepare_home
from embedded.process import LOG_MAX_BYTES, Command, bound_log, find
from embedded.supervisor import CannotStartError, Service, Supervised

DEADLINE_S = 20.0
CHILD = "import sys, signal, pathlib; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + CHILD
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from tests.integration.embedded.test_supervisor import child
from embedded.supervisor import Supervised
async def main():
    supervised = Supervised(child(Path(sys.argv[1])))
    await supervised.start()
    print(supervised.pid, flush=True)
    await supervised.keep()
asyncio.run(main())
"""


def child(home: Path, code: str = CHILD, **limits: float) -> Service:
    mark = prepare_home(home) / "mark"

    async def ready() -> bool:
        return mark.exists()

    async def prepare() -> None:
        mark.unlink(missing_ok=True)

    command = Command("child", (sys.executable, "-I", "-S", "-c", code, str(mark)), home)
    return Service(command, ready, prepare, **limits)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def kept(supervised: Supervised) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        await supervised.start()
        keeper = group.create_task(supervised.keep())
        yield
        keeper.cancel()
    await supervised.stop()


async def test_a_killed_service_is_started_again(home: Path) -> None:
    supervised = Supervised(child(home))
    async with kept(supervised):
        for round_ in (1, 2):
            before = supervised.pid
            assert before is not None
            os.kill(before, signal.SIGKILL)
            await until(lambda count=round_: supervised.restarts == count)  # type: ignore[misc]
            assert supervised.pid not in (None, before)
    assert find(supervised.service.command) is None


async def test_the_service_outlives_a_killed_supervisor_and_is_adopted(home: Path) -> None:
    root = Path(__file__).parents[3]
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, str(home), stdout=subprocess.PIPE, cwd=root, env=_env(root)
    )
    assert supervisor.stdout is not None
    pid = int(await asyncio.wait_for(supervisor.stdout.readline(), DEADLINE_S))
    supervisor.kill()
    await supervisor.wait()
    heir = Supervised(child(home))
    async with kept(heir):
        assert (heir.pid, heir.adopted) == (pid, True)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: heir.restarts == 1)
        assert not heir.adopted


async def test_a_changed_command_line_replaces_the_old_process(home: Path) -> None:
    old = Supervised(child(home))
    await old.start()
    old_pid = old.pid
    new = Supervised(child(home, CHILD + " # newer"))
    await new.start()
    assert new.pid not in (None, old_pid)
    assert not new.adopted
    await new.stop()


async def test_two_starts_at_once_leave_one_process(home: Path) -> None:
    first, second = Supervised(child(home)), Supervised(child(home))
    async with asyncio.TaskGroup() as group:
        group.create_task(first.start())
        group.create_task(second.start())
    assert first.pid == second.pid
    await first.stop()
    await second.stop()


async def test_a_service_deaf_to_sigterm_is_killed_at_the_deadline(home: Path) -> None:
    supervised = Supervised(child(home, STUBBORN, stop_within_s=0.2))
    await supervised.start()
    await asyncio.wait_for(supervised.stop(), DEADLINE_S)
    assert find(supervised.service.command) is None


async def test_a_service_that_cannot_start_says_why(home: Path) -> None:
    supervised = Supervised(child(home, "raise SystemExit('the reason')"))
    with pytest.raises(CannotStartError, match=r"cannot start 'child': [\s\S]*the reason"):
        await supervised.start()


async def test_a_pidfile_of_another_boot_or_process_is_not_adopted(home: Path) -> None:
    service = child(home)
    service.command.pidfile.write_text(
        f'{{"pid": {os.getpid()}, "started": 1, "boot": "x", "digest": "{service.command.digest()}"}}'
    )
    supervised = Supervised(service)
    await supervised.start()
    assert supervised.pid != os.getpid()
    await supervised.stop()


async def test_the_terminals_interrupt_does_not_reach_the_service(home: Path) -> None:
    supervised = Supervised(child(home))
    await supervised.start()
    assert supervised.pid is not None
    assert os.getsid(supervised.pid) == supervised.pid != os.getsid(0)
    await supervised.stop()


def test_a_long_log_is_cut_and_its_newer_half_kept(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"old" + b"-" * LOG_MAX_BYTES + b"new")
    with log.open("ab") as writer:
        bound_log(log)
        writer.write(b"later")
    assert log.read_bytes() == b"later"
    kept_half = (tmp_path / "x.log.1").read_bytes()
    assert kept_half.endswith(b"new")
    assert len(kept_half) == LOG_MAX_BYTES // 2


def _env(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'gen'}"}
