"""Plain HTTP clients for a running factory: httpx with the operator's credentials, raw TLS, and the proxy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from running import ROOT, Running, token_of

WITHIN_S = 60.0
JSON = "application/json"


def tls(told: dict[str, str], alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    """mTLS as client.json says."""
    context = ssl.create_default_context(cafile=told["ca"])
    context.load_cert_chain(told["cert"], told["key"])
    context.set_alpn_protocols(list(alpn))
    return context


@asynccontextmanager
async def http(running: Running, *, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway's port; nothing of ours is used."""
    told = running.client
    port = told["endpoint"].rpartition(":")[2]
    given = token_of(told) if token is None else token
    headers = {"authorization": f"Bearer {given}"} if given else {}
    async with httpx.AsyncClient(
        base_url=f"https://localhost:{port}",
        verify=tls(told),
        headers=headers,
        timeout=WITHIN_S,
        trust_env=False,
    ) as client:
        yield client


async def raw(running: Running, *said: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """What comes back for these bytes until the end; half a minute at most."""
    told = running.client
    host, _, port = told["endpoint"].rpartition(":")
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=context or tls(told), server_hostname=told["authority"]
        )
        try:
            for part in said:
                writer.write(part)
                await writer.drain()
            return await reader.read()
        finally:
            writer.close()


async def events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Server-sent events as (event, id, data)."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"])
            fields = {}


@asynccontextmanager
async def proxied(running: Running) -> AsyncIterator[str]:
    """`hyperfactory proxy`; its URL. It must end cleanly on SIGINT."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "factory_cli", "--client", str(running.home / "client.json")),
        *("--json", "proxy", "--port", "0"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            said = await process.stdout.readline()
        yield json.loads(said)["url"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WITHIN_S):
            await process.communicate()
    assert process.returncode == 0
