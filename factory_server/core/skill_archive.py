"""Read the archive of a skill pack, or refuse it: our own reader of tar, for it decides what we trust.

It holds everything in memory within bounds and writes nothing. What is not plainly a file or a directory of a
pack is refused with the name of the rule, never mended; the standard library's filter for tar files of this
Python is no defence, and what two readers take differently is what attacks are made of.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from factory_server.core.errors import FieldViolation, SkillRefused

FILES_MAX: Final = 512
ENTRIES_MAX: Final = 2 * FILES_MAX  # directories come on top of files
PACK_BYTES_MAX: Final = 16 * 1024 * 1024
FILE_BYTES_MAX: Final = 8 * 1024 * 1024
ARCHIVE_BYTES_MAX: Final = (
    PACK_BYTES_MAX + ENTRIES_MAX * 2048
)  # two headers of a block each, padding, a long name
PATH_CHARS_MAX: Final = 200
PART_CHARS_MAX: Final = 100
DEPTH_MAX: Final = 8
EXTENSION_BYTES_MAX: Final = 4096

_BLOCK: Final = 512
_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = 31
_MAGICS: Final = (b"ustar\x0000", b"ustar  \x00")
_FILE, _DIRECTORY, _PAX, _PAX_GLOBAL, _LONG_NAME = b"0", b"5", b"x", b"g", b"L"
_OTHER_KINDS: Final = {
    b"1": "hard-link",
    b"2": "symbolic-link",
    b"3": "device",
    b"4": "device",
    b"6": "fifo",
    b"7": "contiguous-file",
    b"S": "sparse-file",
    b"K": "symbolic-link",
}
_PAX_HARMLESS: Final = frozenset(
    {"path", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}
)
_PAX_RECORD: Final = re.compile(rb"([1-9]\d{0,4}) ([A-Za-z0-9._]{1,64})=")
_PART: Final = re.compile(r"[A-Za-z0-9_.@+=,~][A-Za-z0-9_.@+=,~ -]*")
_OCTAL: Final = re.compile(rb"[ 0]*([0-7]*)[ \x00]*")
_SPECIAL_BITS: Final = 0o7000


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive, its path as the pack's own."""

    path: str
    executable: bool
    data: bytes


def refused(rule: str, text: str) -> SkillRefused:
    """Why an archive is not taken; `rule` is stable, for programs."""
    violation = FieldViolation("archive", text, rule)
    return SkillRefused(
        f"cannot take the skill pack: {text}", metadata={"rule": rule}, violations=[violation]
    )


class Intake:
    """Takes an archive piece by piece and keeps its tar, unpacked, within bounds."""

    def __init__(self) -> None:
        self._tar = bytearray()
        self._head = b""
        self._gzip: zlib._Decompress | None = None
        self._arrived = 0

    def feed(self, piece: bytes) -> None:
        """The next piece. SkillRefused as soon as it is too much."""
        self._arrived += len(piece)
        if self._arrived > ARCHIVE_BYTES_MAX:
            raise refused("archive-size", f"the archive has more than {ARCHIVE_BYTES_MAX} bytes")
        if not self._tar and self._gzip is None:
            piece = self._head + piece
            if len(piece) < len(_GZIP):
                self._head = piece
                return
            self._head = b""
            if piece.startswith(_GZIP):
                self._gzip = zlib.decompressobj(_GZIP_WINDOW)
        if self._gzip is None:
            self._tar += piece
        else:
            self._inflate(self._gzip, piece)

    def _inflate(self, gzip: zlib._Decompress, piece: bytes) -> None:
        if gzip.eof and piece:
            raise refused("gzip-trailer", "something follows the compressed data")
        try:
            self._tar += gzip.decompress(piece, ARCHIVE_BYTES_MAX + 1 - len(self._tar))
        except zlib.error as error:
            raise refused("gzip", f"its compression is broken: {error}") from error
        if len(self._tar) > ARCHIVE_BYTES_MAX:
            raise refused("unpacked-size", f"it unpacks to more than {ARCHIVE_BYTES_MAX} bytes")
        if gzip.unused_data:
            raise refused("gzip-trailer", "something follows the compressed data")

    def finish(self) -> bytes:
        """The whole tar."""
        if self._gzip is not None and not self._gzip.eof:
            raise refused("truncated", "its compressed data ends too early")
        return bytes(self._tar) + self._head


def read_entries(tar: bytes) -> list[Entry]:
    """The files of an archive, by path. SkillRefused for anything else than files and directories."""
    files: dict[str, Entry] = {}
    seen: dict[str, str] = {}
    folders: set[str] = set()
    total = 0
    for count, (header, path, data) in enumerate(_members(tar)):
        if count >= ENTRIES_MAX:
            raise refused("entries", f"it has more than {ENTRIES_MAX} entries")
        if header.kind == _DIRECTORY:
            if path:
                _note(seen, path, again=path in folders)
                folders.add(path)
            continue
        _note(seen, path, again=False)
        total += len(data)
        if total > PACK_BYTES_MAX:
            raise refused("pack-size", f"its files have more than {PACK_BYTES_MAX} bytes")
        files[path] = Entry(path, bool(header.mode & 0o100), data)
        if len(files) > FILES_MAX:
            raise refused("files", f"it has more than {FILES_MAX} files")
    _check_folders(files, folders)
    return [files[path] for path in sorted(files)]


def _note(seen: dict[str, str], path: str, *, again: bool) -> None:
    """Names that a file system without case takes for one are one."""
    folded = path.lower()
    if folded in seen and not again:
        raise refused("duplicate", f"'{path}' comes twice")
    seen[folded] = path


def _check_folders(files: dict[str, Entry], folders: set[str]) -> None:
    """A file is no directory, and directories that differ in case alone are one on some hosts."""
    parents = {path[:at] for path in (*files, *folders) for at in _slashes(path)} | folders
    lowered = {path.lower() for path in files}
    for parent in sorted(parents):
        if parent.lower() in lowered:
            raise refused("file-and-directory", f"'{parent}' is a file and a directory")
    if len({parent.lower() for parent in parents}) < len(parents):
        raise refused("duplicate", "two directories differ in case alone")


def _slashes(path: str) -> Iterator[int]:
    return (at for at, letter in enumerate(path) if letter == "/")


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    mode: int
    size: int
    kind: bytes
    ustar: bool


def _members(tar: bytes) -> Iterator[tuple[_Header, str, bytes]]:
    """Files and directories with their effective names, up to the end marker."""
    position, renamed, extended = 0, b"", False
    while True:
        block = tar[position : position + _BLOCK]
        if len(block) < _BLOCK:
            raise refused("truncated", "it ends without an end marker")
        if not any(block):
            break
        header = _header(block)
        position += _BLOCK
        data = tar[position : position + header.size]
        padded = -(-header.size // _BLOCK) * _BLOCK
        if len(tar) < position + padded:
            raise refused("truncated", "it ends within a file")
        position += padded
        if header.kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
            if renamed or extended:
                raise refused("extension", "two extensions stand before one entry")
            renamed, extended = _renamed(header, data), header.kind != _PAX_GLOBAL
            continue
        if header.kind == _DIRECTORY and header.size:
            raise refused("directory-size", "a directory has content")
        yield header, _path(renamed or header.name, directory=header.kind == _DIRECTORY), data
        renamed, extended = b"", False
    if renamed or extended:
        raise refused("extension", "an extension stands before no entry")
    if tar.count(0, position) != len(tar) - position:
        raise refused("trailer", "something follows the end marker")


def _header(block: bytes) -> _Header:
    if block[257:265] not in _MAGICS:
        raise refused("format", "an entry is neither ustar, pax nor gnu")
    spaced = block[:148] + b" " * 8 + block[156:]
    if _number(block[148:156], "checksum") != sum(spaced):
        raise refused("checksum", "an entry's checksum is wrong")
    kind = block[156:157] if block[156] else _FILE
    if kind in _OTHER_KINDS:
        raise refused(_OTHER_KINDS[kind], f"it holds a {_OTHER_KINDS[kind].replace('-', ' ')}")
    if kind not in (_FILE, _DIRECTORY, _PAX, _PAX_GLOBAL, _LONG_NAME):
        raise refused("kind", f"it holds an entry of the unknown kind {kind!r}")
    if any(block[157:257]):
        raise refused("symbolic-link", "an entry that is no link names a target")
    mode, size = _number(block[100:108], "mode"), _number(block[124:136], "size")
    if mode & _SPECIAL_BITS and kind in (_FILE, _DIRECTORY):
        raise refused("special-bits", "an entry has setuid, setgid or sticky bits")
    if size > FILE_BYTES_MAX:
        raise refused("file-size", f"an entry has more than {FILE_BYTES_MAX} bytes")
    name = _text(block[:100])
    if block[257:265] == _MAGICS[0] and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    return _Header(name, mode, size, kind, block[257:265] == _MAGICS[0])


def _number(field: bytes, what: str) -> int:
    """Octal digits; the binary numbers of gnu, negative ones among them, are not needed for what we take."""
    found = _OCTAL.fullmatch(field)
    if found is None:
        raise refused("number", f"an entry's {what} is no octal number")
    return int(found[1] or b"0", 8)


def _text(field: bytes) -> bytes:
    text, _, rest = field.partition(b"\x00")
    if any(rest):
        raise refused("name-padding", "something is hidden behind the end of a name")
    return text


def _renamed(header: _Header, data: bytes) -> bytes:
    """The name that an extension gives the next entry; b"" for none."""
    if len(data) > EXTENSION_BYTES_MAX:
        raise refused("extension", f"an extension has more than {EXTENSION_BYTES_MAX} bytes")
    if header.kind == _LONG_NAME:
        return _text(data)
    records = dict(_records(data))
    if header.kind == _PAX_GLOBAL and records.keys() - {"comment"}:
        raise refused("pax-record", "a global extension says more than a comment")
    return records.get("path", b"")


def _records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The records of a pax extension: those that change what an entry is are refused, its size among them."""
    position, seen = 0, set()
    while position < len(data):
        found = _PAX_RECORD.match(data, position)
        end = position + int(found[1]) if found else 0
        if found is None or end > len(data) or data[end - 1 : end] != b"\n" or end <= found.end():
            raise refused("pax-record", "an extension is broken")
        key = found[2].decode()
        if key not in _PAX_HARMLESS or key in seen:
            raise refused("pax-record", f"an extension says '{key}'")
        seen.add(key)
        yield key, data[found.end() : end - 1]
        position = end


def _path(raw: bytes, *, directory: bool) -> str:
    """The path as the pack's own; b"./" and the like are "" for a directory."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise refused("name-ascii", "a name has characters beyond ASCII") from None
    if text.startswith("/"):
        raise refused("absolute-path", f"'{_shown(text)}' is an absolute path")
    text = text.removeprefix("./")
    if directory:
        text = text.removesuffix("/")
        if text in ("", "."):
            return ""
    if len(text) > PATH_CHARS_MAX:
        raise refused("path-length", f"a path has more than {PATH_CHARS_MAX} characters")
    parts = text.split("/")
    if len(parts) > DEPTH_MAX:
        raise refused("path-depth", f"a path is deeper than {DEPTH_MAX} directories")
    for part in parts:
        _check_part(part, text)
    return text


def _check_part(part: str, text: str) -> None:
    if part == "..":
        raise refused("parent-path", f"'{_shown(text)}' leads out of the pack")
    if len(part) > PART_CHARS_MAX:
        raise refused("path-length", f"a name has more than {PART_CHARS_MAX} characters")
    if part in ("", ".") or not _PART.fullmatch(part) or part.endswith((" ", ".")):
        raise refused("name-characters", f"'{_shown(text)}' is no name that we take")


def _shown(text: str) -> str:
    return text[:60].encode("unicode_escape").decode()
