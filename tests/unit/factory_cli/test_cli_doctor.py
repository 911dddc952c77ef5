"""The doctor tells what is missing, and only what is required fails it."""

from __future__ import annotations

import io
import json
import socket

from factory_cli import checks, doctor
from factory_cli.doctor import Finding, Health
from factory_cli.failures import Exit
from factory_cli.output import Output


async def broken_check():
    raise RuntimeError("no such file")


async def test_a_check_that_breaks_is_a_finding():
    found = await doctor._examine_one("disk", broken_check)
    assert (found[0].name, found[0].health) == ("disk", Health.MISSING)
    assert "no such file" in found[0].detail


async def report(monkeypatch, tmp_path, *findings: Finding):
    async def examine(_home, _client):
        return list(findings)

    monkeypatch.setattr(doctor, "examine", examine)
    out = Output(as_json=True, stdout=io.StringIO())
    code = await doctor.run(tmp_path, tmp_path / "client.json", out)
    return code, json.loads(out.stdout.getvalue())


async def test_only_what_is_required_and_missing_fails(monkeypatch, tmp_path):
    optional = Finding("docker", Health.MISSING, "", required=False)
    weaker = Finding("cpu", Health.DEGRADED, "")
    code, body = await report(monkeypatch, tmp_path, optional, weaker)
    assert (code, body["ok"]) == (Exit.OK, True)
    code, body = await report(
        monkeypatch, tmp_path, optional, Finding("python", Health.MISSING, "", "install it")
    )
    assert (code, body["missing"]) == (Exit.FAILED, ["python"])
    assert body["checks"][1]["mend"] == "install it"


def test_a_saved_port_that_somebody_took_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "ports.json").write_text(json.dumps({"gateway": port}))
        found = checks.ports(tmp_path)[0]
    assert (found.health, found.required) == (Health.DEGRADED, False)
    assert f"gateway {port}" in found.detail


def test_a_wheel_without_its_binary_is_missing_with_a_remedy():
    assert checks._wheel_binary("x", "no_such_module", "no-such", "bin").mend == checks.INSTALL
    found = checks._wheel_binary("x", "json", "json", "bin/none")
    assert found.health is Health.MISSING
    assert found.mend
