"""Secrets as files: whole, private, read when needed, and told to nobody by an error."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from factory_server.core import secrets
from factory_server.core.errors import Invalid, NotFound, Refused
from factory_server.identity.secretfiles import VALUE_MAX_BYTES, SecretFiles
from hyperfactory.v1 import types_pb2


async def test_what_is_written_is_read_without_the_line_break_of_an_editor(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path)
    files.write("model.key", b"s3cr3t\n")
    (tmp_path / "secrets" / "by-hand").write_text("other\r\n")
    assert await files.read(["model.key", "by-hand", "absent"]) == {"model.key": "s3cr3t", "by-hand": "other"}
    assert files.names() == ["by-hand", "model.key"]


def test_only_the_owner_reads_them(tmp_path: Path) -> None:
    SecretFiles(tmp_path).write("key", b"x")
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "secrets" / "key").stat().st_mode) == 0o600


async def test_one_that_is_replaced_or_removed_counts_from_then_on(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path)
    files.write("key", b"old")
    files.write("key", b"new")
    assert await files.read(["key"]) == {"key": "new"}
    files.remove("key")
    assert await files.read(["key"]) == {}
    with pytest.raises(NotFound):
        files.remove("key")


@pytest.mark.parametrize("name", ["", "../pki", "A", "a/b", ".hidden", "-a", "a" * 65])
async def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    files = SecretFiles(tmp_path)
    with pytest.raises(Invalid):
        files.write(name, b"x")
    with pytest.raises(NotFound):
        files.remove(name)
    assert await files.read([name]) == {}


@pytest.mark.parametrize("value", [b"", b"\n", b"a\0b", b"\xff\xfe", b"x" * (VALUE_MAX_BYTES + 1)])
def test_a_value_that_no_environment_can_hold_is_refused_and_not_repeated(
    tmp_path: Path, value: bytes
) -> None:
    with pytest.raises(Invalid) as refused:
        SecretFiles(tmp_path).write("key", value)
    assert "xxxx" not in str(refused.value)
    assert SecretFiles(tmp_path).names() == []


async def test_what_a_profile_refers_to_is_read_and_nothing_else(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path)
    for name in ("one", "two", "three"):
        files.write(name, name.encode())
    server = types_pb2.McpServer(name="a", command="b", secret_env={"TOKEN": "one"})
    spec = types_pb2.ProfileSpec(mcp_servers=[server], model=types_pb2.Model(api_key_secret="two"))
    assert await secrets.required(files, secrets.named_in(spec), "start") == {"one": "one", "two": "two"}


async def test_one_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot assemble: secret 'absent' does not exist") as refused:
        await secrets.required(SecretFiles(tmp_path), ["absent"], "assemble")
    assert (refused.value.reason, refused.value.metadata) == ("SECRET_MISSING", {"secret": "absent"})


def test_a_profile_without_references_needs_none() -> None:
    assert secrets.named_in(types_pb2.ProfileSpec()) == frozenset()
