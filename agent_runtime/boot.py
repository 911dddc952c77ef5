"""Begin an instance: in a child of the zygote, or as a program of its own.

Importing this module imports all that an agent needs and makes nothing: no thread, loop, channel or server,
so that a process may fork after it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

# Built-in profiles, so that a forked child finds them imported.
import agent_runtime.profiles.coder
import agent_runtime.profiles.generic
import agent_runtime.profiles.planner
import agent_runtime.profiles.reviewer  # noqa: F401
from agent_runtime import logs, validation
from agent_runtime.paths import Paths
from agent_runtime.runtime import SERVICE, Runtime

log = logging.getLogger(__name__)

READY: Final = b"1"
NO_READY_FD: Final = -1


def run(own_dir: str, peers_dir: str, workspace: str, ready_fd: int) -> NoReturn:
    """Serve until SIGTERM; write one byte to `ready_fd` when the control socket answers. Never returns."""
    logs.configure()
    code = 1
    try:
        asyncio.run(serve(Paths(Path(own_dir), Path(peers_dir), Path(workspace)), ready_fd))
        code = 0
    except BaseException:
        log.exception("the runtime failed")
    finally:
        # Leave at once: nothing of an instance needs an orderly farewell, and grpc's threads would delay it.
        logging.shutdown()
        os._exit(code)


def warm() -> None:
    """Import what the first token will need, and read what requests are checked against: for a fork server,
    whose children then share it.

    Not done on import: it is a third of the runtime's memory, and an instance on its own may never need it.
    """
    validation.learn(SERVICE)
    importlib.import_module("jwt.algorithms")
    importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")


async def serve(paths: Paths, ready_fd: int = NO_READY_FD) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    _watch_children_by_descriptor()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    runtime = Runtime(paths, own_process=True)
    await runtime.start()
    if ready_fd != NO_READY_FD:
        os.write(ready_fd, READY)
        os.close(ready_fd)
    await stopping.wait()
    await runtime.stop()


def _watch_children_by_descriptor() -> None:
    """Wait for programs without a thread for each, which Python before 3.12 would start."""
    if sys.version_info >= (3, 12) or not hasattr(os, "pidfd_open"):
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return  # an old kernel, or a sandbox that refuses it
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
