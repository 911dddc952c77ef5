"""`hyperfactory secret` keeps values that it never prints."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from factory_cli.failures import Exit, UsageFailedError, explain
from factory_cli.session import begin
from factory_server.identity.secretfiles import SecretFiles

CLIENT = {name: name for name in ("endpoint", "authority", "ca", "cert", "key", "token")}


async def test_a_secret_is_kept_listed_and_forgotten_without_being_shown(cli):
    kept = await cli("secret", "set", "model-key", stdin="s3cr3t\n")
    listed = await cli("secret", "list", "--json")
    assert (kept.code, kept.out) == (Exit.OK, f"secret 'model-key' is kept in {cli.home}\n")
    assert listed.json == {"secrets": [{"name": "model-key"}]}
    assert (cli.home / "secrets" / "model-key").read_text() == "s3cr3t"
    gone = await cli("secret", "delete", "model-key")
    assert gone.code == Exit.OK
    assert "s3cr3t" not in kept.out + kept.err + listed.out + gone.out


async def test_a_secret_that_cannot_be_is_refused(cli):
    ended = await cli("secret", "set", "Model Key", stdin="s3cr3t")
    assert ended.code == Exit.INVALID
    assert "s3cr3t" not in ended.err
    assert (await cli("secret", "delete", "absent")).code == Exit.NOT_FOUND


def test_a_secret_goes_to_the_stack_that_the_client_file_names(tmp_path: Path) -> None:
    file, other = tmp_path / "somewhere.json", tmp_path / "other"
    file.write_text(json.dumps(CLIENT | {"home": str(other)}))
    assert begin(None, file, as_json=False).stack_home() == other
    assert begin(tmp_path, file, as_json=False).stack_home() == tmp_path
    file.write_text(json.dumps(CLIENT))
    with pytest.raises(UsageFailedError, match="names no home; add --home"):
        begin(None, file, as_json=False).stack_home()
    assert begin(tmp_path, file, as_json=False).stack_home() == tmp_path


def test_a_home_that_a_secret_makes_is_as_the_stack_wants_it(tmp_path: Path) -> None:
    SecretFiles(tmp_path / "home").write("key", b"v")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o711


def test_a_home_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        SecretFiles(tmp_path / "file").write("key", b"v")
    failure = explain(caught.value)
    assert failure is not None
    assert failure.message.startswith(f"cannot use '{tmp_path}/file")
