"""What the agents' runtime imports from wire stays light: no heavy package, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WIRE_MAX_MIB = 12
WIRE_MAX_CPU_S = 0.2
HEAVY = ("protovalidate", "prometheus_client", "structlog", "cryptography", "jwt")

CODE = f"""
import json, pathlib, sys, time
def rss_kib():
    text = pathlib.Path('/proc/self/status').read_text()
    return int(text.split('VmRSS:')[1].split()[0])
import grpc.aio
before, started = rss_kib(), time.process_time()
import wire.errors, wire.status, wire.identity, wire.channels, wire.tokens, wire.policy
import wire.interceptors, wire.health
print(json.dumps({{
    "mib": (rss_kib() - before) / 1024,
    "cpu_s": time.process_time() - started,
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
}}))
"""


def test_the_runtimes_modules_stay_within_their_budget() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/gen"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    spent = json.loads(done.stdout)
    assert spent["heavy"] == []
    assert spent["mib"] < WIRE_MAX_MIB
    assert spent["cpu_s"] < WIRE_MAX_CPU_S
