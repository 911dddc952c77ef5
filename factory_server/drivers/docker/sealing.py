"""Give a container's mount of skill packs the flags that the engine's interface cannot: nosuid and nodev.

A thread of its own enters the container's mounts and ends there. It has to be root on the engine's host and to
see the container's process; where it is not, the mount is read-only all the same, and the probe says so.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from factory_server.drivers import packs
from factory_server.drivers.namespaces import syscalls as sys_

log = logging.getLogger("factory.docker")

CLONE_FS: Final = 0x00000200
SEALED: Final = sys_.ATTR_RDONLY | sys_.ATTR_NOSUID | sys_.ATTR_NODEV


def seal(pid: int) -> bool:
    """Seal the packs' mount of the container with this process; whether that could be done. Blocking."""
    failures: list[OSError] = []
    thread = threading.Thread(target=_enter, args=(pid, failures), name=f"seal-{pid}")
    thread.start()
    thread.join()
    if failures:
        log.info("cannot seal", extra={"action": "docker.seal", "error": str(failures[0])})
    return not failures


def _enter(pid: int, failures: list[OSError]) -> None:
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A thread that shares its root directory with others may not change it.
            sys_.unshare(CLONE_FS)
            sys_.setns(namespace, sys_.CLONE_NEWNS)
            sys_.mount_setattr(packs.INSIDE, attr_set=SEALED)
        finally:
            os.close(namespace)
    except OSError as error:
        failures.append(error)
