"""Secrets as files, one each, for their owner alone: the operator writes them, the factory reads them."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from factory_server.core.errors import FieldViolation, Invalid, NotFound
from factory_server.identity.keyfiles import FILE_MODE, private_directory, sync

DIRECTORY: Final = "secrets"
VALUE_MAX_BYTES: Final = 64 * 1024
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class SecretFiles:
    """The secrets of one home. A value ends before the line break that editors add."""

    def __init__(self, home: Path) -> None:
        self._directory = home / DIRECTORY

    async def read(self, names: Iterable[str]) -> Mapping[str, str]:
        """See `core.secrets.Secrets`."""
        return await asyncio.to_thread(self._read, list(names))

    def names(self) -> Sequence[str]:
        """All that exist; none before the first was written."""
        if not self._directory.is_dir():
            return []
        return sorted(file.name for file in self._directory.iterdir() if _NAME.fullmatch(file.name))

    def write(self, name: str, value: bytes) -> None:
        """Make or replace one, whole or not at all. Invalid for a name or a value that none can have."""
        value = value.removesuffix(b"\n").removesuffix(b"\r")
        _check(name, value)
        _passable(self._directory.parent)
        directory = private_directory(self._directory)
        fresh = directory / f".new-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(directory / name)
        finally:
            fresh.unlink(missing_ok=True)
        sync(directory)

    def remove(self, name: str) -> None:
        """Forget one. NotFound."""
        if name not in self.names():
            raise NotFound(f"no secret '{name[:64]}'", resource_type="secret", resource_name=name[:64])
        (self._directory / name).unlink(missing_ok=True)

    def _read(self, names: Sequence[str]) -> dict[str, str]:
        found = {}
        for name in names:
            if not _NAME.fullmatch(name):
                continue
            # What cannot be read or is no text does not exist, as far as an agent is concerned.
            with suppress(OSError, UnicodeDecodeError):
                found[name] = _text(self._directory / name)
        return found


def _passable(home: Path) -> None:
    """Make a home that is not there yet as the stack does: it runs parts of itself under other uids."""
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o711)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(VALUE_MAX_BYTES).removesuffix(b"\n").removesuffix(b"\r").decode()


def _check(name: str, value: bytes) -> None:
    """No message says the value, whatever is wrong with it."""
    if not _NAME.fullmatch(name):
        wrong = FieldViolation("name", "is no name for a secret: lower case, digits, '.', '_', '-'")
    elif not value or len(value) > VALUE_MAX_BYTES or b"\0" in value or not _is_text(value):
        wrong = FieldViolation("value", f"must be 1 to {VALUE_MAX_BYTES} bytes of text")
    else:
        return
    raise Invalid(f"cannot keep secret '{name[:64]}': {wrong.field} {wrong.description}", violations=[wrong])


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
