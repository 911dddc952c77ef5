"""Key material on disk: made whole or not at all, by one of any number of processes that start at once."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner enters; an existing one is made so."""
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    path.chmod(DIRECTORY_MODE)
    return path


def publish(target: Path, files: Mapping[str, bytes]) -> bool:
    """Make `target` a directory of these files at once; False where another process was first."""
    if target.exists():
        return False
    staging = write_directory(target.parent / f".new-{secrets.token_hex(8)}", files)
    try:
        # Renaming onto a directory with files in it fails: the first process wins, the others read its files.
        staging.rename(target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():
            raise
        return False
    sync(target.parent)
    return True


def write_directory(path: Path, files: Mapping[str, bytes]) -> Path:
    """A fresh private directory with these files, on disk when this returns."""
    path.mkdir(mode=DIRECTORY_MODE)
    for name, content in files.items():
        descriptor = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync(path)
    return path


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
