"""Bounded files of an agent's output, in a directory of its own: two of 256 KiB, named by their first offset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

FILE_MAX_BYTES: Final = 256 * 1024
FILES_KEPT: Final = 2


def _files(directory: Path) -> list[tuple[int, Path]]:
    """An instance's files, oldest first, each with the offset of its first byte."""
    try:
        return sorted((int(path.stem), path) for path in directory.iterdir())
    except FileNotFoundError:
        return []


@dataclass(slots=True)
class LogWriter:
    """Appends, and drops the oldest file when the newest is full."""

    directory: Path
    _fd: int = field(default=-1)
    _base: int = 0
    _size: int = 0

    def append(self, data: bytes) -> None:
        """Write all of `data`, which is smaller than a file."""
        if self._fd < 0:
            self._resume()
        elif self._size + len(data) > FILE_MAX_BYTES:
            self._roll()
        os.write(self._fd, data)
        self._size += len(data)

    def _resume(self) -> None:
        """Go on where a fork server before us stopped."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        files = _files(self.directory)
        if files:
            self._base = files[-1][0] + files[-1][1].stat().st_size
        self._roll()

    def _roll(self) -> None:
        self.close()
        self._base += self._size
        self._size = 0
        path = self.directory / f"{self._base}.log"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for _, old in _files(self.directory)[:-FILES_KEPT]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def tail(directory: Path, tail_bytes: int) -> tuple[int, bytes]:
    """The newest output, at most `tail_bytes`, and the offset at which it starts."""
    start, data = 0, b""
    for offset, chunk in _chunks(directory):
        if not data:
            start = offset
        data += chunk
    cut = max(0, len(data) - tail_bytes)
    return start + cut, data[cut:]


def since(directory: Path, position: int) -> tuple[int, bytes]:
    """Output from `position` on, or from the oldest byte still kept if that is later."""
    start, data = tail(directory, FILE_MAX_BYTES * FILES_KEPT)
    skip = max(0, position - start)
    return start + min(skip, len(data)), data[skip:]


def _chunks(directory: Path) -> Iterator[tuple[int, bytes]]:
    for offset, path in _files(directory):
        with contextlib.suppress(FileNotFoundError):  # dropped by the writer meanwhile
            yield offset, path.read_bytes()


def remove(directory: Path) -> None:
    """Drop all output of an instance."""
    for _, path in _files(directory):
        path.unlink(missing_ok=True)
    if directory.is_dir():
        directory.rmdir()
