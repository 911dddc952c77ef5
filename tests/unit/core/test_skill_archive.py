"""Hostile archives are refused, each by the rule that names it; sound ones are read whole."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import tarfile
import time
import zlib
from pathlib import Path

import pytest
from support.packs import END, archive, member, pax, pax_global, skill_md, with_tools

from factory_server.core import skill_archive
from factory_server.core.errors import SkillRefused
from factory_server.core.skill_archive import Entry, Intake, read_entries
from factory_server.core.skills import make_pack

SKILL = member(b"SKILL.md", skill_md())
MUTATIONS = int(os.environ.get("HYPERFACTORY_MUTATIONS", "4000"))
MUTATION_MAX_S = 1.0
BOMB_BYTES = 600 * 1024 * 1024
BOMB_MAX_S = 2.0


def read(data: bytes, *, piece: int = 1 << 20) -> list[Entry]:
    intake = Intake()
    for at in range(0, len(data), piece):
        intake.feed(data[at : at + piece])
    return read_entries(intake.finish())


def sparse_pax() -> bytes:
    return pax(GNU__sparse__major="1", GNU__sparse__minor="0") + member(b"sparse", b"x")


def many(count: int) -> bytes:
    return b"".join(member(b"f%d" % n) for n in range(count))


def swapped(data: bytes, at: int, to: bytes) -> bytes:
    return data[:at] + to + data[at + len(to) :]


def gzip_bad_crc() -> bytes:
    packed = gzip.compress(SKILL + END)
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


EIGHT_MIB = bytes(skill_archive.FILE_BYTES_MAX)
HOSTILE = {
    "absolute path": ("absolute-path", member(b"/etc/cron.d/x", b"x")),
    "parent path": ("parent-path", member(b"../x", b"x")),
    "parent path within": ("parent-path", member(b"scripts/../../x", b"x")),
    "parent path by prefix": ("parent-path", member(b"x", b"x", prefix=b"..")),
    "absolute path by prefix": ("absolute-path", member(b"x", b"x", prefix=b"/tmp")),
    "symbolic link": ("symbolic-link", member(b"link", kind=b"2", link=b"/etc/passwd")),
    "hard link": ("hard-link", member(b"link", kind=b"1", link=b"SKILL.md")),
    "file that names a target": ("symbolic-link", member(b"f", b"x", link=b"/etc/passwd")),
    "character device": ("device", member(b"null", kind=b"3")),
    "block device": ("device", member(b"sda", kind=b"4")),
    "fifo": ("fifo", member(b"pipe", kind=b"6")),
    "contiguous file": ("contiguous-file", member(b"f", b"x", kind=b"7")),
    "sparse file of gnu": ("sparse-file", member(b"f", b"x", kind=b"S")),
    "sparse file of pax": ("pax-record", sparse_pax()),
    "unknown kind": ("kind", member(b"f", b"x", kind=b"Z")),
    "pax path leads out": ("parent-path", pax(path="../../x") + member(b"good", b"x")),
    "pax path is absolute": ("absolute-path", pax(path="/x") + member(b"good", b"x")),
    "pax path hides a zero": ("name-characters", pax(path="x\x00/../y") + member(b"good", b"x")),
    "pax lies about the size": ("pax-record", pax(size="1") + member(b"f", b"xx")),
    "pax link": ("pax-record", pax(linkpath="/etc/passwd") + member(b"f", b"x")),
    "pax for all": ("pax-record", pax_global(path="x") + SKILL),
    "pax record broken": ("pax-record", member(b"p", b"99 path=x\n", kind=b"x") + SKILL),
    "pax record with a length of zero": ("pax-record", member(b"p", b"0 path=x\n", kind=b"x") + SKILL),
    "pax says a thing twice": ("pax-record", member(b"p", b"9 path=a\n9 path=b\n", kind=b"x") + SKILL),
    "two extensions": ("extension", pax(path="a") + pax(path="b") + member(b"c", b"x")),
    "extension alone": ("extension", SKILL + pax(path="a")),
    "huge extension": ("extension", member(b"p", bytes(5000), kind=b"x") + SKILL),
    "long name of gnu leads out": ("parent-path", member(b"L", b"../x\x00", kind=b"L") + member(b"f")),
    "long link of gnu": ("symbolic-link", member(b"K", b"/etc\x00", kind=b"K") + member(b"f")),
    "duplicate": ("duplicate", SKILL + SKILL),
    "duplicate in another case": ("duplicate", SKILL + member(b"skill.MD")),
    "directories in another case": ("duplicate", member(b"a/x") + member(b"A/y")),
    "file and directory": ("file-and-directory", member(b"a", b"x") + member(b"a/b", b"x")),
    "file, then the directory": ("duplicate", member(b"a", b"x") + member(b"a/", kind=b"5")),
    "not ascii": ("name-ascii", member("ﬁle".encode(), b"x")),
    "control characters": ("name-characters", member(b"a\nb", b"x")),
    "backslash": ("name-characters", member(b"..\\x", b"x")),
    "drive": ("name-characters", member(b"C:x", b"x")),
    "empty part": ("name-characters", member(b"a//b", b"x")),
    "part of one dot": ("name-characters", member(b"a/./b", b"x")),
    "leading hyphen": ("name-characters", member(b"a/-rf", b"x")),
    "trailing dot": ("name-characters", member(b"a.", b"x")),
    "no name": ("name-characters", member(b"", b"x")),
    "name of a directory for a file": ("name-characters", member(b"a/", b"x")),
    "hidden behind a zero": ("name-padding", member(b"a\x00/../../x", b"x")),
    "long path": ("path-length", member(b"b" * 90, prefix=b"/".join([b"a" * 70, b"c" * 70]))),
    "long part": ("path-length", pax(path="a" * 150) + member(b"f")),
    "deep path": ("path-depth", member(b"/".join([b"d"] * 9))),
    "too many files": ("files", many(513)),
    "too many entries": ("entries", b"".join(member(b"d%d/" % n, kind=b"5") for n in range(1025))),
    "large file": ("file-size", member(b"f", EIGHT_MIB + b"x")),
    "large pack": ("pack-size", member(b"a", EIGHT_MIB) + member(b"b", EIGHT_MIB) + member(b"c", b"x")),
    "setuid": ("special-bits", member(b"f", b"x", mode=b"0004755\x00")),
    "sticky directory": ("special-bits", member(b"d/", kind=b"5", mode=b"0001777\x00")),
    "directory with content": ("directory-size", member(b"d/", b"x", kind=b"5")),
    "binary size": ("number", member(b"f", size=b"\x80" + bytes(10) + b"\x01")),
    "negative size": ("number", member(b"f", size=b"\xff" * 12)),
    "size with a sign": ("number", member(b"f", size=b"-0000000001\x00")),
    "size beyond the end": ("truncated", member(b"f", size=b"00000100000\x00")),
    "wrong checksum": ("checksum", member(b"f", b"x", checksum=1)),
    "format of old": ("format", member(b"f", b"x", magic=bytes(8))),
    "no end": ("truncated", SKILL),
    "empty": ("truncated", b""),
    "half a header": ("truncated", SKILL[:300]),
    "something after the end": ("trailer", SKILL + END + member(b"f", b"x")),
    "gzip cut short": ("truncated", gzip.compress(SKILL + END)[:-10]),
    "gzip with a wrong sum": ("gzip", gzip_bad_crc()),
    "gzip after gzip": ("gzip-trailer", gzip.compress(SKILL + END) * 2),
    "no archive at all": ("format", b"PK\x03\x04" + bytes(2000)),
}
UNENDED = {"no end", "empty", "half a header", "something after the end", "size beyond the end"}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_by_its_rule(case: str) -> None:
    rule, data = HOSTILE[case]
    whole = data if case in UNENDED or data.startswith(b"\x1f\x8b") else data + END
    with pytest.raises(SkillRefused) as caught:
        read(whole)
    assert (caught.value.reason, caught.value.metadata["rule"]) == ("SKILL_REFUSED", rule)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)) + packer.flush()
    assert len(bomb) < 1 << 20
    started = time.monotonic()
    with pytest.raises(SkillRefused) as caught:
        read(bomb)
    assert caught.value.metadata["rule"] == "unpacked-size"
    assert time.monotonic() - started < BOMB_MAX_S


def test_an_endless_archive_is_refused_as_it_comes() -> None:
    intake = Intake()
    with pytest.raises(SkillRefused) as caught:
        for _ in range(20):
            intake.feed(bytes(1 << 20))
    assert caught.value.metadata["rule"] == "archive-size"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 512, 1 << 20])
def test_a_sound_archive_is_read_whole(compressed: bool, piece: int) -> None:
    files = with_tools() | {"bin/run": b"#!/bin/sh\n", "references/a/b.md": b"x" * 1000}
    entries = read(archive(files, compressed=compressed), piece=piece)
    assert {entry.path: entry.data for entry in entries} == files
    assert [entry.path for entry in entries if entry.executable] == ["bin/run"]
    assert [entry.path for entry in entries] == sorted(files)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_what_other_programs_write_is_read(form: str, tmp_path: Path) -> None:
    pack = tmp_path / "counting"
    long = pack / "references" / ("n" * 90) / ("m" * 60 + ".md")
    long.parent.mkdir(parents=True)
    long.write_text("x")
    (pack / "SKILL.md").write_bytes(skill_md())
    command = ["tar", f"--format={form}", "-C", str(pack), "-czf", str(tmp_path / "a.tgz"), "."]
    subprocess.run(command, check=True, timeout=10)
    paths = [entry.path for entry in read((tmp_path / "a.tgz").read_bytes())]
    assert paths == ["SKILL.md", str(long.relative_to(pack))]


def test_the_standard_librarys_own_writer_is_read() -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("SKILL.md")
        info.size, info.mtime = 1, 1.5  # a fraction is written as an extension
        tar.addfile(info, io.BytesIO(b"x"))
    assert [entry.path for entry in read(made.getvalue())] == ["SKILL.md"]


def mutated(dice: random.Random, data: bytes) -> bytes:
    piece = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(piece))
        match dice.randrange(6):
            case 0:
                piece[at] = dice.randrange(256)
            case 1:
                del piece[at : at + dice.choice((1, 100, 512))]
            case 2:
                piece[at:at] = piece[: dice.choice((1, 512, 1024))]
            case 3:
                block = at // 512 * 512
                field = dice.choice((0, 100, 124, 156, 157, 257, 345))
                noise = dice.choice((b"../", b"/", b"2", b"5", b"x", b"L", b"\xff" * 12, b"77777777777\x00"))
                piece[block + field : block + field + len(noise)] = noise
            case 4:
                piece[at : at + 1] = bytes(dice.randrange(64))
            case _:
                del piece[at:]
        if not piece:
            return b""
    for block in range(0, len(piece) - 511, 512):  # a wrong checksum would hide what lies behind it
        if piece[block + 257 : block + 262] == b"ustar" and dice.random() < 0.8:
            head = piece[block : block + 148] + b" " * 8 + piece[block + 156 : block + 512]
            piece[block + 148 : block + 156] = b"%06o\x00 " % sum(head)
    return bytes(piece)


def test_no_mutation_escapes_hangs_or_crashes() -> None:
    """Whatever comes, it is refused by a rule, or is a pack whose every path stays within it."""
    dice = random.Random(20261122)
    files = with_tools() | {f"references/{n}.md": b"x" * n * 50 for n in range(12)}
    seeds = [archive(files), archive(files, folder="counting"), archive(files, compressed=True)]
    seeds += [data + END for _, data in HOSTILE.values() if 0 < len(data) < 20_000]
    taken = 0
    for _ in range(MUTATIONS):
        data = mutated(dice, dice.choice(seeds[:3] * 20 + seeds))
        started = time.monotonic()
        try:
            entries = read(data)
            make_pack(entries)
        except SkillRefused as error:
            assert error.metadata["rule"]
        else:
            taken += 1
            for entry in entries:
                parts = entry.path.split("/")
                assert not entry.path.startswith("/")
                assert not {"", ".", ".."} & set(parts)
                assert entry.path.isascii() and entry.path.isprintable()
        assert time.monotonic() - started < MUTATION_MAX_S
    assert taken, "no mutation was harmless: the fuzz tries nothing"
