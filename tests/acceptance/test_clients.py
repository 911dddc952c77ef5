"""Clients that nobody here wrote: Node's grpc-js with the proto files, and buf curl by reflection."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from running import ROOT, Running, request_id

pytestmark = pytest.mark.timeout(240)

NODE = Path(__file__).parent / "node"
INSTALLED = ROOT / "build" / "node-client"
RUN_WITHIN_S = 90.0
INSTALL_WITHIN_S = 150.0


def program(name: str) -> str:
    """Where a program is; without it CI fails, and a laptop skips."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, and CI should have it")
        pytest.skip(message)
    return found


async def run(*command: str, within_s: float = RUN_WITHIN_S, cwd: Path = ROOT, **env: str) -> str:
    """A command's output; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command[:3]}\n{out.decode()}\n{err.decode()}"
    return out.decode()


@pytest.fixture
async def node_client() -> Path:
    """The Node client with its packages; installed once for this checkout."""
    npm = program("npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "client.js"):
        shutil.copy(NODE / name, INSTALLED / name)
    if not (INSTALLED / "node_modules" / "@grpc" / "grpc-js").is_dir():
        options = ("--no-audit", "--no-fund", "--no-package-lock", "--silent")
        await run(npm, "install", *options, cwd=INSTALLED, within_s=INSTALL_WITHIN_S)
    return INSTALLED / "client.js"


async def test_a_node_client_assembles_broadcasts_watches_and_disbands(running, node_client):
    told = str(running.home / "client.json")
    out = await run(program("node"), str(node_client), told, str(ROOT / "proto"), str(ROOT / "third_party"))
    seen = json.loads(out)
    assert seen["state"] == "CREW_STATE_READY"
    assert seen["agents"] == ["coder-1", "coder-2", "planner"]
    assert seen["receipts"] == ["RECEIPT_STAGE_ACKED"] * 3
    assert seen["sequences"] == list(range(1, len(seen["sequences"]) + 1))
    assert seen["refusal"] == {"code": 3, "hasDetails": True}
    assert seen["end"] == "CREW_STATE_DISBANDED"


def buf(running: Running, *arguments: str) -> list[str]:
    """A buf curl command with the credentials of client.json."""
    told = running.client
    token = Path(told["token"]).read_text().strip()
    return [
        *(program("buf"), "curl", "--protocol", "grpc"),
        *("--cacert", told["ca"], "--cert", told["cert"], "--key", told["key"]),
        *("--servername", told["authority"], "-H", f"authorization: Bearer {token}"),
        *arguments,
    ]


def url(running: Running, method: str = "") -> str:
    return f"https://{running.client['endpoint']}{'/' if method else ''}{method}"


async def test_buf_curl_does_the_same_by_reflection(running):
    services = await run(*buf(running, "--list-services", url(running)))
    assert "hyperfactory.v1.CrewService" in services.split()

    async def call(method: str, **body: object) -> list[dict]:
        name = url(running, f"hyperfactory.v1.CrewService/{method}")
        out = await run(*buf(running, "-d", json.dumps(body), name))
        return documents(out)

    manifest = {"name": "from-buf", "members": [{"name": "one", "profile": "generic"}]}
    crew = (await call("AssembleCrew", request_id=request_id(), manifest=manifest))[0]["crew"]
    assert crew["state"] == "CREW_STATE_READY"
    told = await call("Broadcast", request_id=request_id(), crew=crew["id"], signal="MISSION_START")
    receipts = [r for response in told for r in response.get("receipts", [])]
    assert [r["stage"] for r in receipts] == ["RECEIPT_STAGE_ACKED"]
    sequences = await watch_with_buf(running, crew["id"], int(crew["lastSequence"]))
    assert sequences[: int(crew["lastSequence"])] == list(range(1, int(crew["lastSequence"]) + 1))
    gone = (await call("DisbandCrew", request_id=request_id(), crew=crew["id"]))[0]["crew"]
    assert gone["state"] == "CREW_STATE_DISBANDED"


async def watch_with_buf(running: Running, crew: str, upto: int) -> list[int]:
    """Sequences of a watch, read until one is reached; the stream itself would never end."""
    name = url(running, "hyperfactory.v1.CrewService/WatchCrew")
    process = await asyncio.create_subprocess_exec(
        *buf(running, "-d", json.dumps({"crew": crew}), name), stdout=asyncio.subprocess.PIPE
    )
    text = ""
    try:
        async with asyncio.timeout(RUN_WITHIN_S):
            while True:
                text += (await process.stdout.read(65536)).decode()
                seen = [int(e["sequence"]) for d in documents(text) for e in d.get("events", [])]
                if seen and seen[-1] >= upto:
                    return seen
    finally:
        process.kill()
        await process.communicate()


def documents(text: str) -> list[dict]:
    """The whole JSON documents at the start of a text."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(text):
        try:
            document, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append(document)
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return found
