"""Schemathesis over /openapi.json: whatever it thinks of, no 5xx, and every answer is as described."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest
from http_client import proxied

pytestmark = pytest.mark.timeout(300)

EXAMPLES = int(os.environ.get("HYPERFACTORY_SCHEMATHESIS_EXAMPLES", "3"))
PHASES = os.environ.get("HYPERFACTORY_SCHEMATHESIS_PHASES", "fuzzing")
RUN_WITHIN_S = 240.0
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# They would change what other tests of this stack count on: its pool (to 200, if so inclined), its profiles.
LEFT_OUT = ("FactoryService_UpdatePool", "ProfileService_CreateProfile", "ProfileService_UpdateProfile")


async def test_every_answer_is_as_described(running, tmp_path):
    program = shutil.which("schemathesis", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program, "schemathesis is not installed"
    left_out = [word for name in LEFT_OUT for word in ("--exclude-operation-id", name)]
    async with proxied(running) as url:
        process = await asyncio.create_subprocess_exec(
            *(program, "run", f"{url}/openapi.json", "--seed", "7", "--no-color", "--warnings", "off"),
            *("--max-examples", str(EXAMPLES), "--phases", PHASES, "--checks", ",".join(CHECKS)),
            # Streams may last for ever; what is asked of them has tests of its own.
            *("--exclude-by", "/x-stream == true", *left_out),
            *("--generation-database", "none", "--request-timeout", "20", "--continue-on-failure"),
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(RUN_WITHIN_S):
                told, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, told.decode()[-6000:]
