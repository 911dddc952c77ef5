"""Keep skill packs as directories of this host, one for each digest: made whole or not at all, never changed.

What is mounted is read from here again each time before it is mounted; a directory that is not what its name
says is refused, and stays as it is for whoever asks what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from factory_server.core.errors import DigestMismatch, SkillRefused, Unavailable
from factory_server.core.skills import ENTRY, EXECUTABLE, Pack, PackFile, is_itself, read_pack

PLACED_PLAIN: Final = 0o444
PLACED_EXECUTABLE: Final = 0o555
FOLDER: Final = 0o755
MAKING: Final = ".making-"
STRAY_AGE_S: Final = 600.0


class Signer(Protocol):
    """Holds the keys."""

    def sign(self, digest: str) -> tuple[str, bytes]:
        """The key's id and the signature."""

    def verify(self, digest: str, key_id: str, signature: bytes) -> bool:
        """Whether a key of ours has signed it."""


class Shelf:
    """Fits `core.skill_ports.SkillVault`."""

    def __init__(self, directory: Path, signer: Signer) -> None:
        self._directory = directory
        self._signer = signer

    def sign(self, digest: str) -> tuple[str, bytes]:
        """See the port."""
        return self._signer.sign(digest)

    def verify(self, digest: str, key_id: str, signature: bytes) -> bool:
        """See the port."""
        return self._signer.verify(digest, key_id, signature)

    async def place(self, pack: Pack, content: Callable[[], Awaitable[bytes]]) -> str:
        """See the port."""
        place = self._directory / pack.digest.removeprefix("sha256:")
        try:
            if not await asyncio.to_thread(place.is_dir):
                await asyncio.to_thread(self._make, place, pack, await content())
            await asyncio.to_thread(_check, place, pack)
        except OSError as error:
            raise Unavailable(f"cannot lay out skill pack '{pack.ref}': {error}") from error
        return str(place)

    def _make(self, place: Path, pack: Pack, content: bytes) -> None:
        _check_content(pack, content)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self._directory)
        made = self._directory / f"{MAKING}{secrets.token_hex(8)}"
        made.mkdir(mode=FOLDER)
        try:
            _write(made, pack, content)
            try:
                made.rename(place)
            except OSError:
                if not place.is_dir():  # or else another process was first
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _sync(self._directory)


def _sweep(directory: Path) -> None:
    """Remove what a process that was killed left half-made; another one may be making something right now."""
    oldest = datetime.now(UTC).timestamp() - STRAY_AGE_S
    for path in directory.glob(f"{MAKING}*"):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)


def _check_content(pack: Pack, content: bytes) -> None:
    try:
        stored = read_pack(pack.files, content)
    except SkillRefused as error:
        raise _mismatch(pack, error.message) from error
    if stored != pack:
        raise _mismatch(pack, "what is stored is another pack")


def _write(made: Path, pack: Pack, content: bytes) -> None:
    folders, position = {made}, 0
    for file in pack.files:
        path = made / file.path
        path.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
        folders |= {parent for parent in path.parents if parent.is_relative_to(made)}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(content[position : position + file.size])
            target.flush()
            os.fchmod(descriptor, _mode(file))
            os.fsync(descriptor)
        position += file.size
    for folder in folders:
        folder.chmod(FOLDER)
        _sync(folder)


def _check(place: Path, pack: Pack) -> None:
    """Exactly the files of the manifest, each with its content and its mode, nothing else, and told as it is."""
    found = sorted(_files(place, ""))
    if found != [file.path for file in pack.files]:
        raise _mismatch(pack, f"{place} has other files")
    for file in pack.files:
        descriptor = os.open(place / file.path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as source:
            mode, digest = os.fstat(descriptor).st_mode & 0o7777, hashlib.file_digest(source, "sha256")
        if mode != _mode(file) or digest.hexdigest() != file.sha256:
            raise _mismatch(pack, f"{place / file.path} was changed")
    if not is_itself(pack, (place / ENTRY).read_bytes()):
        raise _mismatch(pack, f"it is described otherwise than its {ENTRY} says")


def _files(place: Path, below: str) -> Iterator[str]:
    with os.scandir(place / below) as items:
        for item in items:
            path = f"{below}{item.name}"
            if item.is_dir(follow_symlinks=False):
                yield from _files(place, f"{path}/")
            else:
                yield path if item.is_file(follow_symlinks=False) else f"{path} (no file)"


def _mode(file: PackFile) -> int:
    return PLACED_EXECUTABLE if file.mode == EXECUTABLE else PLACED_PLAIN


def _mismatch(pack: Pack, why: str) -> DigestMismatch:
    return DigestMismatch(
        f"cannot use skill pack '{pack.name}': {why}",
        metadata={"skill": str(pack.ref), "digest": pack.digest},
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
