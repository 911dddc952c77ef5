"""Learn when a file appears in a directory, from the kernel (inotify)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

_IN_CREATE, _IN_MOVED_TO, _IN_IGNORED = 0x100, 0x80, 0x8000
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 64 * 1024


class Arrivals:
    """One watcher for all directories of a driver; `watch` and what it calls run on the event loop."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "cannot watch directories")
        self._watched: dict[int, Callable[[str], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def watch(self, directory: Path, arrived: Callable[[str], None]) -> int:
        """Tell `arrived` each name that appears from now on; the answer is for `forget`."""
        mask = _IN_CREATE | _IN_MOVED_TO
        number: int = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)
        if number < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {directory}")
        self._watched[number] = arrived
        return number

    def forget(self, number: int) -> None:
        """Look no more; harmless when the directory is gone."""
        if self._watched.pop(number, None) is not None:
            self._libc.inotify_rm_watch(self._fd, number)

    def close(self) -> None:
        """Look at nothing any more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._watched.clear()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, position = os.read(self._fd, _READ_BYTES), 0
            while position < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                name = data[position : position + length].rstrip(b"\0")
                position += length
                arrived = self._watched.get(number)
                if arrived is not None and not mask & _IN_IGNORED:
                    arrived(os.fsdecode(name))
