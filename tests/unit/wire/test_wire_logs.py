"""Log lines are JSON with a process name, and secrets do not get into them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wire.logs import REDACTED, redact

ROOT = Path(__file__).parents[3]
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "line",
    [
        {"token": "abc"},
        {"identity": {"key_pem": b"abc"}},
        {"env": {"OPENAI_API_KEY": "sk-abc"}},
        {"metadata": [{"authorization": "abc"}]},
        {"event": f"called with {JWT}"},
        {"event": "authorization: Bearer abcdefghijk"},
        {"error": "cannot connect to postgres://user:hunter2@db/x"},
        {"exception": "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": "too deep to look at"}}}}}}}},
    ],
)
def test_secrets_are_taken_out(line: dict[str, Any]) -> None:
    text = json.dumps(redact(None, "info", line), default=str)
    assert REDACTED in text
    for secret in ("abc", JWT, "hunter2", "MIGH", "too deep"):
        assert secret not in text


def test_what_is_no_secret_stays() -> None:
    line = {"event": "agent ready", "agent": "ag-1", "generation": 3, "page_token": "p", "none": None}
    assert redact(None, "info", dict(line)) == line


def test_both_kinds_of_loggers_write_json_lines() -> None:
    code = (
        "import logging, structlog\n"
        "from wire.logs import configure\n"
        "configure('factory')\n"
        "logging.getLogger('a').info('from stdlib', extra={'action': 'x', 'token': 's3cret'})\n"
        "structlog.get_logger('b').info('from structlog', action='y')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('a').exception('boom')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["from stdlib", "from structlog", "boom"]
    assert all(line["process"] == "factory" and line["time"].endswith("Z") for line in lines)
    assert (lines[0]["action"], lines[1]["action"]) == ("x", "y")
    assert "s3cret" not in done.stderr
    assert "ZeroDivisionError" in lines[2]["exception"]
