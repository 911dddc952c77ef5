"""A small agent for tests of drivers: JSON over gRPC on both sockets, in a sandbox or in the test's process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

METHOD = "/tests.SmallAgent/Do"
Answer = dict[str, Any]


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, do: Callable[[Answer], Any]) -> None:
        self._do = do

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != METHOD:
            return None

        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return json.dumps(await self._do(json.loads(request))).encode()

        return grpc.unary_unary_rpc_method_handler(handle)


async def serve(
    own_dir: str,
    peers_dir: str,
    ready: Callable[[], object],
    say: Callable[[str], object],
    skills_dir: str = "/skills",
) -> int:
    """Serve on `ctl.sock` and `svc.sock` until told to exit; the answer is the exit code."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    plain: list[asyncio.Server] = []

    async def do(wish: Answer) -> Answer:
        match wish["do"]:
            case "ping":
                return {"pid": os.getpid()}
            case "exit":
                asyncio.get_running_loop().call_soon(ended.set_result, wish["code"])
                return {}
            case "signal":
                asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), wish["signal"])
                return {}
            case "print":
                await asyncio.to_thread(say, wish["text"] + "\n")  # a full pipe must not block the server
                return {}
            case "hog":
                return {"bytes": len(b"x" * 500_000_000)}
            case "http":
                plain.append(await asyncio.start_unix_server(_greet, f"{own_dir}/http.sock"))
                return {}
            case "own":
                return {"there": os.path.lexists(f"{own_dir}/{wish['name']}")}
            case "peers":
                return {"names": sorted(os.listdir(peers_dir))}  # noqa: PTH208
            case "skills":
                files = [path for path in Path(skills_dir).rglob("*") if path.is_file()]
                return {"files": {str(path.relative_to(skills_dir)): path.read_text() for path in files}}
            case "connect":
                return {"error": await _connect(Path(peers_dir, wish["name"]))}
            case "run":
                return await _run(wish["source"], wish.get("deadline_s", 30.0))
            case other:
                raise ValueError(other)

    servers = []
    for name in ("svc.sock", "ctl.sock"):  # whoever waits for the control socket may then use the other
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_Handlers(do),))
        server.add_insecure_port(f"unix://{own_dir}/{name}")
        await server.start()
        servers.append(server)
    ready()
    try:
        return await ended
    finally:
        for listener in plain:
            listener.close()
        for server in servers:
            await server.stop(1.0)  # the answer to `exit` is on its way


async def _greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    writer.close()


async def _connect(path: Path) -> str:
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_unix_connection(str(path))
    except OSError as error:
        return type(error).__name__
    writer.close()
    return ""


async def _run(source: str, deadline_s: float) -> Answer:
    """Write a program into the workspace and run it, as a profile's code tool does."""
    program = Path("program.py")
    program.write_text(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(deadline_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
    return {"code": process.returncode, "out": out.decode(), "err": err.decode()}


def run(own_dir: str, peers_dir: str, workspace: str, ready_fd: int) -> None:
    """The entry for a sandbox."""

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    code = asyncio.run(serve(own_dir, peers_dir, lambda: os.write(ready_fd, b"r"), say))
    os._exit(code)


async def ask(target: str, wish: Answer, *, deadline_s: float = 10.0) -> Answer:
    """One call to an agent at a gRPC target."""
    async with grpc.aio.insecure_channel(target) as channel:
        answer = await channel.unary_unary(METHOD)(json.dumps(wish).encode(), timeout=deadline_s)
    return json.loads(answer)
