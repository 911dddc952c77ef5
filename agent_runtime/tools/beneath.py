"""Open files below a directory and nowhere else: no absolute path, no `..`, no symbolic link on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent_runtime.limits import FILE_MAX_BYTES, FILES_LISTED_MAX, PATH_MAX_CHARS
from wire.errors import Exhausted, Invalid

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK: opening a pipe that an agent left here must not hang.
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def parts_of(path: str) -> list[str]:
    """The names of a relative path; `Invalid` for one that could lead elsewhere."""
    if not path or len(path) > PATH_MAX_CHARS or "\0" in path or path.startswith("/"):
        raise Invalid(f"path '{path[:80]}' must be relative to the workspace")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Invalid(f"path '{path[:80]}' leaves the workspace")
    return parts


@contextmanager
def _directory(root: Path, parts: list[str], *, make: bool = False) -> Iterator[int]:
    """Walk name by name from the root, so that a link planted on the way is refused, not followed."""
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if make:
                _make(part, current)
            inner = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = inner
        yield current
    finally:
        os.close(current)


def _make(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return


def read(root: Path, path: str) -> bytes:
    """The content of a regular file of bounded size."""
    parts = _file_parts(path)
    with _directory(root, parts[:-1]) as parent:
        descriptor = os.open(parts[-1], os.O_RDONLY | _FILE, dir_fd=parent)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Invalid(f"'{path}' is no regular file")
            if found.st_size > FILE_MAX_BYTES:
                raise Invalid(f"'{path}' has {found.st_size} bytes, more than {FILE_MAX_BYTES}")
            return file.read(FILE_MAX_BYTES)


def write(root: Path, path: str, data: bytes) -> None:
    """Create or replace a regular file, and the directories above it."""
    if len(data) > FILE_MAX_BYTES:
        raise Exhausted(f"cannot write {len(data)} bytes, more than {FILE_MAX_BYTES}", quota="file bytes")
    parts = _file_parts(path)
    with _directory(root, parts[:-1], make=True) as parent:
        descriptor = os.open(parts[-1], os.O_WRONLY | os.O_CREAT | _FILE, 0o644, dir_fd=parent)
        with os.fdopen(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Invalid(f"'{path}' is no regular file")
            file.truncate(0)
            file.write(data)


def listing(root: Path, path: str, *, recursive: bool) -> tuple[list[tuple[str, int]], bool]:
    """Regular files with their sizes, and directories with a trailing slash; True when there are more."""
    found: list[tuple[str, int]] = []
    with _directory(root, parts_of(path)) as top:
        for base, directories, files, descriptor in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            prefix = "" if base == "." else base.removeprefix("./") + "/"
            directories.sort()
            found += [(f"{prefix}{name}/", 0) for name in directories]
            for name in sorted(files):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append((prefix + name, status.st_size))
            if len(found) > FILES_LISTED_MAX or not recursive:
                break
    return sorted(found)[:FILES_LISTED_MAX], len(found) > FILES_LISTED_MAX


def require_file(root: Path, path: str) -> Path:
    """The path of a regular file that exists below the root, reached without a link."""
    parts = _file_parts(path)
    with _directory(root, parts[:-1]) as parent:
        status = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"'{path}' is no regular file")
    return root.joinpath(*parts)


def _file_parts(path: str) -> list[str]:
    parts = parts_of(path)
    if not parts:
        raise Invalid("path names no file")
    return parts
