"""The shelf of skill packs: whole or not at all, one for everybody who makes it at once, checked each time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.packs import archive, tool, with_tools

from factory_server.core.errors import DigestMismatch
from factory_server.core.skill_archive import read_entries
from factory_server.core.skills import Pack, make_pack
from factory_server.identity.skills import SkillSigner
from factory_server.store import shelf as shelves
from factory_server.store.shelf import Shelf

ROOT = Path(__file__).parents[3]
FILES = with_tools(tool()) | {f"references/{n}.md": b"x" * 5000 for n in range(60)}


def pack_of(files: dict[str, bytes]) -> tuple[Pack, bytes]:
    return make_pack(read_entries(archive(files)))


def shelf_of(home: Path) -> Shelf:
    return Shelf(home / "skills", SkillSigner.open(home / "keys"))


async def test_many_who_make_it_at_once_make_one(tmp_path: Path) -> None:
    pack, content = pack_of(FILES)
    shelf = shelf_of(tmp_path)
    asked = 0

    async def fetch() -> bytes:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return content

    async with asyncio.TaskGroup() as group:
        made = [group.create_task(shelf.place(pack, fetch)) for _ in range(8)]
    assert {task.result() for task in made} == {str(tmp_path / "skills" / pack.digest[7:])}
    before = asked
    place = Path(await shelf.place(pack, fetch))
    assert asked == before, "what lies there is not fetched again"
    assert [path.name for path in (tmp_path / "skills").iterdir()] == [place.name]
    assert {f.path: (place / f.path).read_bytes() for f in pack.files} == FILES
    assert all((place / f.path).stat().st_mode & 0o7777 == 0o444 for f in pack.files)


async def test_other_content_than_the_digest_says_leaves_nothing(tmp_path: Path) -> None:
    pack, content = pack_of(FILES)

    async def fetch() -> bytes:
        return content[:-1] + b"y"

    with pytest.raises(DigestMismatch):
        await shelf_of(tmp_path).place(pack, fetch)
    assert not (tmp_path / "skills").exists()


@pytest.mark.parametrize("moment_s", [0.0, 0.005, 0.02])
async def test_a_kill_while_it_is_made_leaves_no_half_pack(tmp_path: Path, moment_s: float) -> None:
    pack, content = pack_of(FILES)
    source = f"""
import asyncio, os, pathlib, signal, sys, threading
sys.path[:0] = ["tests"]
from integration.store.test_shelf import FILES, pack_of, shelf_of
async def main():
    pack, content = pack_of(FILES)
    async def fetch():
        threading.Timer({moment_s}, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return content
    while True:
        await shelf_of(pathlib.Path({str(tmp_path)!r})).place(pack, fetch)
asyncio.run(main())
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/gen"}
    command = [sys.executable, "-c", source]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, timeout=30)
    assert done.returncode == -signal.SIGKILL

    async def fetch() -> bytes:
        return content

    assert Path(await shelf_of(tmp_path).place(pack, fetch)).is_dir()


async def test_what_was_left_half_made_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "STRAY_AGE_S", 0.0)
    left = tmp_path / "skills" / f"{shelves.MAKING}x"
    left.mkdir(parents=True)
    (left / "SKILL.md").write_text("half")
    pack, content = pack_of(FILES)

    async def fetch() -> bytes:
        return content

    await shelf_of(tmp_path).place(pack, fetch)
    assert not left.exists()


def test_every_factory_of_a_home_signs_with_one_key_and_forgeries_do_not_count(tmp_path: Path) -> None:
    one, two = SkillSigner.open(tmp_path / "keys"), SkillSigner.open(tmp_path / "keys")
    other = SkillSigner.open(tmp_path / "others")
    key_id, signature = one.sign("sha256:a")
    assert two.verify("sha256:a", key_id, signature)
    assert not two.verify("sha256:b", key_id, signature)
    assert not two.verify("sha256:a", key_id, b"forged")
    assert not other.verify("sha256:a", key_id, signature)
    assert oct((tmp_path / "keys/1/key.pem").stat().st_mode & 0o777) == "0o600"


def test_keys_are_changed_and_taken_back_by_hand(tmp_path: Path) -> None:
    """The newest signs, all that are there count; what a key signed that is gone counts no more."""
    keys = tmp_path / "keys"
    first_id, first = SkillSigner.open(keys).sign("sha256:a")
    SkillSigner.open(tmp_path / "new")
    (tmp_path / "new/1").rename(keys / "2")
    both = SkillSigner.open(keys)
    second_id, second = both.sign("sha256:a")
    assert second_id != first_id
    assert both.verify("sha256:a", first_id, first)
    assert both.verify("sha256:a", second_id, second)
    assert not both.verify("sha256:a", second_id, first)
    shutil.rmtree(keys / "1")
    rest = SkillSigner.open(keys)
    assert not rest.verify("sha256:a", first_id, first)
    assert rest.verify("sha256:a", second_id, second)
