"""Which directories are bases, and that a rebuilt one is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_server.drivers import bases


def test_a_directory_with_a_plain_name_is_a_base(tmp_path: Path) -> None:
    (tmp_path / "office").mkdir()
    assert bases.find(tmp_path, "office") == tmp_path / "office"


@pytest.mark.parametrize("name", ["", ".", "..", "../office", "Office", "office/bin", "absent", "a" * 33])
def test_nothing_else_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "office" / "bin").mkdir(parents=True)
    (tmp_path / "Office").mkdir()
    (tmp_path / ("a" * 33)).mkdir()
    assert bases.find(tmp_path, name) is None


def test_neither_a_link_nor_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("")
    assert [bases.find(tmp_path, name) for name in ("link", "file")] == [None, None]


def test_the_digest_changes_with_the_image_and_with_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "office"
    tree.mkdir()
    seen = {bases.joined("sha256:a", tree), bases.joined("sha256:b", tree)}
    for stamp in ("one", "two"):
        (tree / ".digest").write_text(stamp)
        seen.add(bases.joined("sha256:a", tree))
    assert len(seen) == 4
