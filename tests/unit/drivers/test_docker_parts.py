"""The docker driver's parts that need no engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from factory_server.core.errors import Invalid, NotFound, Unavailable
from factory_server.core.sandbox import Exit, Limits
from factory_server.drivers import open_driver
from factory_server.drivers.docker import (
    arrivals,
    births,
    engine,
    exitinfo,
    findings,
    hardening,
    seccomp,
    stream,
)
from factory_server.drivers.namespaces import seccomp as ours


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hfu") as name:
        yield Path(name)


def test_profile_refuses_what_namespaces_refuse() -> None:
    for machine in ("x86_64", "aarch64"):
        told = seccomp.profile(machine)
        refused = {name for rule in told["syscalls"] if "args" not in rule for name in rule["names"]}
        assert ours.denied_names(machine) | {"clone3"} == refused
        assert len(told["architectures"]) == 1, "no other word size"


@pytest.mark.parametrize("family", range(50))
def test_profile_lets_only_three_socket_families_pass(family: int) -> None:
    rules = [rule for rule in seccomp.profile("x86_64")["syscalls"] if "socket" in rule["names"]]
    tests = {"SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    refused = any(tests[arg["op"]](family, arg["value"]) for rule in rules for arg in rule["args"])
    assert refused == (family not in ours.ALLOWED_FAMILIES)


def test_nothing_a_wish_says_loosens_a_container() -> None:
    wish = hardening.Wish("a-g1", "f", "image", 12_000, "/o", "/p", Limits(0, 0, 0, 0), {"crew": "red"})
    body = hardening.container(wish)
    host = body["HostConfig"]
    assert "UsernsMode" not in host
    assert "Binds" not in host
    assert host["Memory"] == host["MemorySwap"] == Limits().memory_bytes, "0 is the default, not: no limit"
    assert host["PidsLimit"] == Limits().pids_max
    assert host["NanoCpus"] == 1_000_000_000
    assert json.loads(body["Labels"][hardening.LABEL_GIVEN]) == {"crew": "red"}


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, Exit("a")),
        (3, Exit("a", code=3)),
        (137, Exit("a", signal=9)),
        (255, Exit("a", code=255)),
    ],
)
def test_codes_above_128_are_signals(code: int, how: Exit) -> None:
    assert exitinfo.from_code("a", code) == how


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("exit 7", Exit("a", code=7)),
        ("kill -11 $$", Exit("a", signal=11)),
    ],
)
def test_the_kernel_tells_how_another_process_ended(command: str, how: Exit) -> None:
    child = subprocess.Popen(["sh", "-c", command])
    pidfd = os.pidfd_open(child.pid)
    try:
        assert child.poll() is not None or exitinfo.wait_status(pidfd) is None, "not reaped yet"
        child.wait()
        status = exitinfo.wait_status(pidfd)
        if status is None:
            pytest.skip("this kernel does not tell")
        assert exitinfo.from_wait_status("a", status) == how
    finally:
        os.close(pidfd)


def test_remapped_base_is_read_from_the_data_directory() -> None:
    on = {"SecurityOptions": ["name=seccomp", "name=userns"], "DockerRootDir": "/d/1500000000.1500000000"}
    assert findings.remapped_base(on) == 1_500_000_000
    assert findings.remapped_base({**on, "SecurityOptions": ["name=seccomp"]}) == 0
    assert findings.remapped_base({"DockerRootDir": "/d"}) == 0


async def test_arrivals_are_told_by_name(short: Path) -> None:
    watcher, seen = arrivals.Arrivals(), asyncio.Queue[str]()
    number = watcher.watch(short, seen.put_nowait)
    (short / "ctl.sock").touch()
    assert await asyncio.wait_for(seen.get(), 2) == "ctl.sock"
    watcher.forget(number)
    (short / "other").touch()
    (short / "sub").mkdir()
    watcher.watch(short / "sub", seen.put_nowait)
    (short / "sub" / "last").touch()
    assert await asyncio.wait_for(seen.get(), 2) == "last"
    watcher.close()


async def test_a_birth_ends_in_one_of_three_ways() -> None:
    arrived, died, unwanted = births.Birth("a"), births.Birth("b"), births.Birth("c")
    arrived.see("svc.sock", "ctl.sock")
    arrived.see("ctl.sock", "ctl.sock")
    await arrived.settled()
    died.fail(Exit("b", code=1))
    with pytest.raises(births.EndedError, match="code 1"):
        await died.settled()
    unwanted.abandon()
    with pytest.raises(Unavailable, match="being destroyed"):
        await unwanted.settled()


async def scripted(path: Path, *pieces: bytes) -> asyncio.Server:
    """A server that reads a request and says these pieces."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, str(path))


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_streams_are_whole_however_they_are_cut(short: Path, size: int) -> None:
    said = [{"n": number, "text": "x" * number} for number in range(20)]
    lines = b"".join(json.dumps(item).encode() + b"\n" for item in said)
    server = await scripted(short / "e", HEAD, chunked(lines, size))
    async with server, stream.get(str(short / "e"), "/events", {}) as pieces:
        assert [item async for item in stream.objects(pieces)] == said
    frames = b"".join(bytes([1, 0, 0, 0]) + len(t).to_bytes(4, "big") + t for t in (b"one\n", b"", b"two\n"))
    server = await scripted(short / "l", HEAD, chunked(frames, size))
    async with server, stream.get(str(short / "l"), "/logs", {}) as pieces:
        assert b"".join([piece async for piece in stream.output(pieces)]) == b"one\ntwo\n"


async def test_a_stream_that_breaks_off_is_unavailable(short: Path) -> None:
    async with await scripted(short / "e", HEAD, b"ff\r\nhalf"):
        with pytest.raises(Unavailable):
            async with stream.get(str(short / "e"), "/events", {}) as pieces:
                async for _ in pieces:
                    pass
    async with await scripted(short / "n", b"HTTP/1.1 404 Not Found\r\n\r\n"):
        with pytest.raises(NotFound):
            async with stream.get(str(short / "n"), "/x", {}):
                pass
    with pytest.raises(Unavailable):
        async with stream.get(str(short / "nobody"), "/x", {}):
            pass


@pytest.fixture
async def greeting(short: Path) -> AsyncIterator[str]:
    """An engine that says who it is, and no more."""
    body = json.dumps({"ApiVersion": "1.41"}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    async with await asyncio.start_unix_server(answer, str(short / "s")):
        yield f"unix://{short}/s"


async def test_looks_at_a_silent_engine_end_soon_and_then_sooner(greeting: str) -> None:
    found = engine.Engine(greeting)
    await found.open()
    loop, told = asyncio.get_running_loop(), threading.Event()
    for longest_s in (engine.SILENCE_MAX_S + 0.5, engine.SUSPECT_MAX_S + 0.4):
        started = loop.time()
        with pytest.raises(engine.SilenceError, match="cannot look"):
            await found.read(lambda client: told.wait(5), what="look")
        assert loop.time() - started < longest_s
    assert await found.call(engine.Lane.CREATE, lambda client: 1, what="make") == 1, "another lane is free"
    told.set()
    assert await found.read(lambda client: 2, what="look") == 2
    found.close()


async def test_an_engine_elsewhere_is_refused() -> None:
    with pytest.raises(Invalid, match="on this host"):
        await engine.Engine("tcp://192.0.2.1:2375").open()


async def test_the_driver_is_chosen_by_name(short: Path) -> None:
    assert open_driver("docker", short, factory="f").name == "docker"
    assert open_driver("auto", short, factory="f").name == "namespaces"
