"""How a process that is not our child ended, asked of the kernel by its pidfd (Linux 6.15 and newer)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from typing import Final

from factory_server.core.sandbox import Exit

_GET_INFO: Final = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
_INFO: Final = struct.Struct("=Q52si")
_INFO_EXIT: Final = 1 << 3
_SIGNALLED: Final = 128  # an init that passes a signal on ends with 128 plus its number


def wait_status(pidfd: int) -> int | None:
    """The status its parent was given; None while it is not reaped, and on older kernels."""
    request = bytearray(_INFO.pack(_INFO_EXIT, b"", 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, request)
    except OSError:
        return None
    mask, _, status = _INFO.unpack(request)
    return status if mask & _INFO_EXIT else None


def from_wait_status(instance: str, status: int) -> Exit:
    """The exit behind what `wait` would say."""
    code = os.waitstatus_to_exitcode(status)
    return Exit(instance, signal=-code) if code < 0 else from_code(instance, code)


def from_code(instance: str, code: int) -> Exit:
    """The exit behind an engine's code."""
    with contextlib.suppress(ValueError):
        return Exit(instance, signal=signal.Signals(code - _SIGNALLED))
    return Exit(instance, code=code)
