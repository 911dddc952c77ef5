"""The floor of a container: a bare grpc server in one of the agents' image, started without any of our care."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import grpc.aio

from bench.floors import BARE_SERVER, CALL_WITHIN_S, EMPTY_METHOD
from factory_server.drivers.docker.engine import DEFAULT_IMAGE, default_url

ENGINE_WITHIN_S = 60.0
LOOK_S = 0.002
LOOKS_MAX = 15_000


async def docker_run(count: int = 1) -> float:
    """Milliseconds from `docker run` to the answer of an empty call, of so many containers at once."""
    with tempfile.TemporaryDirectory(prefix="hfb", dir="/tmp") as directory, _client() as client:
        sockets = [Path(directory) / f"{i}.sock" for i in range(count)]
        since = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(_run(client, socket)) for socket in sockets]
        took = (time.perf_counter() - since) * 1000
        for run in runs:
            await asyncio.to_thread(client.remove_container, run.result(), force=True)
        return took


@contextmanager
def _client() -> Iterator[Any]:
    client = docker.APIClient(base_url=default_url(), version="auto", timeout=ENGINE_WITHIN_S)
    try:
        yield client
    finally:
        client.close()


async def _run(client: Any, socket: Path) -> str:
    container = await asyncio.to_thread(_start, client, socket)
    await asyncio.to_thread(_await, socket)
    async with grpc.aio.insecure_channel(f"unix://{socket}") as channel:
        call = channel.unary_unary(EMPTY_METHOD, bytes, bytes)
        await call(b"", timeout=CALL_WITHIN_S, wait_for_ready=True)
    return container


def _await(socket: Path) -> None:
    """Return when the server has made its socket."""
    for _ in range(LOOKS_MAX):
        if socket.is_socket():
            return
        threading.Event().wait(LOOK_S)
    raise TimeoutError(f"no server made {socket}")


def _start(client: Any, socket: Path) -> str:
    host = client.create_host_config(
        network_mode="none", binds={str(socket.parent): {"bind": "/s", "mode": "rw"}}
    )
    command = ["python", "-c", BARE_SERVER, f"/s/{socket.name}"]
    made: str = client.create_container(DEFAULT_IMAGE, command, user="0", host_config=host)["Id"]
    client.start(made)
    return made
