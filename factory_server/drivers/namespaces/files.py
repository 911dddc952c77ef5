"""The host side of the sandboxes' directories: control and service sockets, peers, and what is left to wipe."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from factory_server.core.errors import Invalid, Unavailable
from factory_server.core.sandbox import HTTP_SUFFIX, SOCKET_SUFFIX
from factory_server.drivers import packs
from factory_server.drivers.namespaces import wiring
from factory_server.drivers.namespaces.launcher import Places
from factory_server.drivers.namespaces.records import stem

HOSTS_SUFFIX = ".hosts"
_TREES = ("own", "peers")
_LINKS = (("ctl", SOCKET_SUFFIX), ("svc", SOCKET_SUFFIX), ("svc", HTTP_SUFFIX), ("peers", HOSTS_SUFFIX))
_LINK_DIRS = ("ctl", "svc")


@dataclass(frozen=True, slots=True)
class Files:
    """Every method blocks on the disk: call in a thread."""

    where: Places

    def control(self, instance: str) -> Path:
        """The control socket's name that only the factory can open."""
        return self.where.sockets / "ctl" / f"{stem(instance)}.sock"

    def publish(self, instance: str, seal: bool) -> str:
        """Take the sockets over that it serves; `seal` takes their directory away from the agent."""
        own = self.where.sockets / "own" / stem(instance)
        target = self.where.sockets / "svc" / f"{stem(instance)}{SOCKET_SUFFIX}"
        try:
            wiring.publish(own, target, target.with_name(f"{stem(instance)}{HTTP_SUFFIX}"))
            if seal:
                wiring.seal(own)
        except OSError as error:
            raise Unavailable(f"cannot publish '{instance}': {error}") from error
        return f"unix://{target}"

    def wire(self, instance: str, links: Mapping[str, str]) -> Sequence[str]:
        """Show exactly these sockets; the answer names those that are not there."""
        try:
            return wiring.wire(self.where.sockets / "peers" / stem(instance), links)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Invalid(
                    f"cannot wire '{instance}': {error.filename} lies on another filesystem"
                ) from error
            raise Unavailable(f"cannot wire '{instance}': {error}") from error

    def mount(self, instance: str, name: str, path: str) -> None:
        """Show a skill pack."""
        packs.mount(self.where.state, stem(instance), name, path)

    def unmount(self, instance: str, name: str) -> None:
        """Show it no more."""
        packs.unmount(self.where.state, stem(instance), name)

    def mounts(self, instance: str) -> Sequence[str]:
        """The skill packs that are shown."""
        return packs.mounted(self.where.state, stem(instance))

    def remove(self, instance: str) -> None:
        """Remove all that is the instance's."""
        packs.remove(self.where.state, stem(instance))
        for part in _TREES:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.where.sockets / part / stem(instance))
        for part, suffix in _LINKS:
            (self.where.sockets / part / f"{stem(instance)}{suffix}").unlink(missing_ok=True)

    def present(self) -> Sequence[Path]:
        """What lies there of any instance."""
        packs.sweep_making(self.where.state)
        places = [self.where.state / packs.SHOWN, *(self.where.sockets / p for p in (*_TREES, *_LINK_DIRS))]
        return [path for place in places for path in place.iterdir()]

    def sweep(self, known: AbstractSet[str], present: Sequence[Path] | None = None) -> None:
        """Remove of `present` (or of all that lies there) what belongs to none of the `known` instances."""
        stems = {stem(instance) for instance in known}
        for path in self.present() if present is None else present:
            name = path.name.removesuffix(SOCKET_SUFFIX).removesuffix(HTTP_SUFFIX)
            if name.removesuffix(HOSTS_SUFFIX) not in stems:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove_everything(self) -> None:
        """Remove every file of the driver, when nothing runs any more."""
        shutil.rmtree(self.where.sockets, ignore_errors=True)
        for name in ("instances", "logs", "root", packs.SHOWN, packs.MAKING):
            shutil.rmtree(self.where.state / name, ignore_errors=True)
        for name in ("zygote.log", "zygote.lock", "users"):
            (self.where.state / name).unlink(missing_ok=True)
