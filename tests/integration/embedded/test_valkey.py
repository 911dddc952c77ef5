"""The embedded Valkey keeps its keys, lets nobody in without a password, and keeps its socket's path."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, OutOfMemoryError

from embedded.process import Command, find
from embedded.valkey import EmbeddedValkey


async def running(home: Path) -> int:
    found = find(Command("valkey", (), home))
    assert found is not None
    process, _ = found
    process.release()
    return process.pid


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def test_a_second_launcher_adopts_the_running_server(home: Path) -> None:
    first, second = EmbeddedValkey(home), EmbeddedValkey(home)
    url = await first.start()
    pid = await running(home)
    assert await second.start() == url
    assert await running(home) == pid
    await second.stop()


async def test_keys_and_saved_users_survive_kill_9(home: Path) -> None:
    valkey = EmbeddedValkey(home)
    url = await valkey.start()
    async with Redis.from_url(url, decode_responses=True) as client:
        await client.set("kept", "yes")
        await client.execute_command("ACL", "SETUSER", "crew-1", "on", ">pw", "~crew:1:*", "+get")
        await client.execute_command("ACL", "SAVE")
        # Wait for the disk, so that the test is about recovery and not about the last second.
        assert await client.execute_command("WAITAOF", 1, 0, 5000) == [1, 0]
    os.kill(await running(home), signal.SIGKILL)
    again = EmbeddedValkey(home)
    assert await again.start() == url
    async with Redis.from_url(url, decode_responses=True) as client:
        assert await client.get("kept") == "yes"
    async with Redis(unix_socket_path=str(valkey.socket), username="crew-1", password="pw") as crew:
        with pytest.raises(NoPermissionError):
            await crew.get("kept")
    await again.stop()


async def test_nobody_enters_without_a_password(home: Path) -> None:
    valkey = EmbeddedValkey(home)
    await valkey.start()
    reader, writer = await asyncio.open_unix_connection(str(valkey.socket))
    writer.write(b"GET x\r\n")
    assert (await reader.readline()).startswith(b"-NOAUTH")
    writer.close()
    await writer.wait_closed()
    secret = home / "services/valkey.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() not in command_line(await running(home))
    await valkey.stop()


async def test_a_hard_link_to_the_socket_connects(home: Path) -> None:
    valkey = EmbeddedValkey(home)
    url = await valkey.start()
    link = home / "bus.sock"
    os.link(home / "valkey/valkey.sock", link)
    async with Redis.from_url(url.replace(str(valkey.socket), str(link))) as client:
        assert await client.ping()
    assert stat.S_IMODE(link.stat().st_mode) == 0o777
    await valkey.stop()


async def test_a_full_memory_refuses_writes_and_evicts_nothing(home: Path) -> None:
    valkey = EmbeddedValkey(home)
    async with Redis.from_url(await valkey.start()) as client:
        await client.set("kept", "yes")
        await client.config_set("maxmemory", "3mb")
        with pytest.raises(OutOfMemoryError):
            async with asyncio.timeout(20):
                for number in range(1000):
                    await client.set(f"filler-{number}", b"x" * 100_000)
        assert await client.get("kept") == b"yes"
    await valkey.stop()
