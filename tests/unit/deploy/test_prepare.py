"""prepare.sh makes secrets that fit together, private, and once only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from factory_cli.client import ClientFile

SCRIPT = Path(__file__).parents[3] / "deploy" / "prepare.sh"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it gives directories to the stores' user")


def prepare(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it with directories of the test's own."""
    (where / "deploy").mkdir(exist_ok=True)
    places = {"HF_HOME_FOR_TESTS": str(where / "home"), "HF_DEPLOY_FOR_TESTS": str(where / "deploy")}
    return subprocess.run(
        [str(SCRIPT), *words],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def secret(where: Path, name: str) -> str:
    return (where / "deploy" / "secrets" / name).read_text()


def test_secrets_fit_together(tmp_path: Path) -> None:
    assert prepare(tmp_path).returncode == 0
    assert urlsplit(secret(tmp_path, "database_url")).password == secret(tmp_path, "postgres_password")
    bus = urlsplit(secret(tmp_path, "bus_url"))
    assert bus.path == f"{tmp_path}/home/bus/valkey.sock"
    assert bus.password is not None
    digest = hashlib.sha256(bus.password.encode()).hexdigest()
    assert f"user factory on #{digest} " in secret(tmp_path, "valkey_users")
    assert "user default off" in secret(tmp_path, "valkey_users")


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, "namespaces", "--public", "hf.example:443")
    before = {path: path.read_bytes() for path in (tmp_path / "deploy").rglob("*") if path.is_file()}
    assert prepare(tmp_path, "docker").returncode == 0
    assert {path: path.read_bytes() for path in before} == before
    assert b"HF_PUBLIC=hf.example:443" in before[tmp_path / "deploy" / ".env"]


def test_the_command_line_can_connect(tmp_path: Path) -> None:
    prepare(tmp_path, "--public", "hf.example:443")
    told = json.loads((tmp_path / "home" / "client.json").read_text())
    assert told.keys() == {field.name for field in dataclasses.fields(ClientFile)}
    assert told["endpoint"] == "hf.example:443"
    assert told["key"] == f"{tmp_path}/home/pki/operator/key.pem"


def test_only_root_gets_to_secrets_and_keys(tmp_path: Path) -> None:
    prepare(tmp_path)
    for private in ("deploy/secrets", "home/pki", "home/pki/.versions", "home/sandboxes"):
        assert stat.S_IMODE((tmp_path / private).stat().st_mode) == 0o700, private


def test_what_it_does_not_understand_it_refuses(tmp_path: Path) -> None:
    done = prepare(tmp_path, "--pubic", "x")
    assert done.returncode == 1
    assert "--pubic" in done.stderr
    assert not (tmp_path / "deploy" / "secrets").exists()
