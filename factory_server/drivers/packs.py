"""Show skill packs in a sandbox: directories of hard links, in a tree that the sandbox sees read-only.

The sandbox has the tree itself mounted from its first moment, sealed; so nothing is mounted later, no privilege
is needed for it, and there is no moment at which anything of it could be written. A pack appears and goes by a
rename. All functions block: call in a thread.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from factory_server.core.errors import Invalid, Unavailable

SHOWN: Final = "skills"
MAKING: Final = "making"
INSIDE: Final = "/skills"
STRAY_AGE_S: Final = 600.0
FILES_MAX: Final = 2048
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def tree(state: Path, stem: str) -> Path:
    """What one instance sees at /skills."""
    return state / SHOWN / stem


def make_tree(state: Path, stem: str) -> Path:
    """Make it, if it is not there."""
    made = tree(state, stem)
    made.mkdir(mode=0o755, exist_ok=True)
    made.chmod(0o755)
    return made


def mount(state: Path, stem: str, name: str, source: str) -> None:
    """Show the directory under this name, in the place of what was there. Invalid, Unavailable."""
    _check(name)
    shown = tree(state, stem) / name
    try:
        files = sorted(_files(Path(source), Path()))
        if _is_same(shown, Path(source), files):
            return
        made = state / MAKING / secrets.token_hex(8)
        _build(made, Path(source), files)
        _take_away(state, shown)
        made.rename(shown)
    except OSError as error:
        raise Unavailable(f"cannot mount skill pack '{name}': {error}") from error


def unmount(state: Path, stem: str, name: str) -> None:
    """Show nothing under this name; it may not be there."""
    _check(name)
    try:
        _take_away(state, tree(state, stem) / name)
    except OSError as error:
        raise Unavailable(f"cannot unmount skill pack '{name}': {error}") from error


def mounted(state: Path, stem: str) -> Sequence[str]:
    """The names of what is shown."""
    try:
        return sorted(os.listdir(tree(state, stem)))  # noqa: PTH208
    except FileNotFoundError:
        return ()


def remove(state: Path, stem: str) -> None:
    """Remove the tree of an instance that is gone."""
    shutil.rmtree(tree(state, stem), ignore_errors=True)


def sweep_making(state: Path) -> None:
    """Remove what a process that was killed left half-made; another one may be making something right now."""
    oldest = datetime.now(UTC).timestamp() - STRAY_AGE_S
    for path in (state / MAKING).iterdir():
        if path.lstat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(f"cannot mount '{name}': it is no name of a skill pack")


def _files(source: Path, below: Path) -> Iterator[Path]:
    """Regular files and nothing else, relative to the source."""
    with os.scandir(source / below) as found:
        for item in found:
            path = below / item.name
            if item.is_dir(follow_symlinks=False):
                yield from _files(source, path)
            elif item.is_file(follow_symlinks=False):
                yield path
            else:
                raise Invalid(f"cannot mount '{source}': '{path}' is no regular file")


def _is_same(shown: Path, source: Path, files: Sequence[Path]) -> bool:
    """Whether what is shown already is these very files; copies on another filesystem are made anew."""
    try:
        if sorted(_files(shown, Path())) != list(files):
            return False
        return all(_identity(shown / file) == _identity(source / file) for file in files)
    except FileNotFoundError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _build(made: Path, source: Path, files: Sequence[Path]) -> None:
    if len(files) > FILES_MAX:
        raise Invalid(f"cannot mount '{source}': it has more than {FILES_MAX} files")
    made.mkdir(mode=0o755)
    for directory in sorted({parent for file in files for parent in file.parents}):
        (made / directory).mkdir(exist_ok=True)
        (made / directory).chmod(0o755)
    for file in files:
        _place(source / file, made / file)


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        target.chmod(0o555 if source.stat().st_mode & stat.S_IXUSR else 0o444)


def _take_away(state: Path, shown: Path) -> None:
    """At once for who looks, whatever its size."""
    gone = state / MAKING / secrets.token_hex(8)
    try:
        shown.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone)
