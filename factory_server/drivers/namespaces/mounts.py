"""The filesystem of a sandbox: an allow-list tree, built once, and the mounts that each child adds to it.

The fork server lives in the tree itself, so that a child starts from it and only adds what is its own. What
the server needs of the host hangs below `/.host`, and a child detaches that before it runs anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from factory_server.drivers.namespaces import reaper
from factory_server.drivers.namespaces import syscalls as sys_
from factory_server.drivers.namespaces.interpreter import PythonTree

HOST: Final = "/.host"
HOST_SOCKETS: Final = f"{HOST}/s"
HOST_STATE: Final = f"{HOST}/d"
HOST_CGROUPS: Final = f"{HOST}/cg"
HOST_SKILLS: Final = f"{HOST}/k"
HOST_BASES: Final = f"{HOST}/b"
OWN: Final = "/run/hf/own"
PEERS: Final = "/run/hf/peers"
WORKSPACE: Final = "/workspace"
SKILLS: Final = "/skills"
BASE: Final = "/opt/base"
INNER_ID: Final = 1000

_SYSTEM_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC: Final = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/certs", "ssl/openssl.cnf", "alternatives",
               "localtime", "mime.types", "ca-certificates.conf")  # fmt: skip
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_DEV_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_NO_LOGIN: Final = "/usr/sbin/nologin"
_FILES: Final = {
    "/etc/passwd": f"root:x:0:0::/:{_NO_LOGIN}\nagent:x:{INNER_ID}:{INNER_ID}::/workspace:/bin/sh\n",
    "/etc/group": f"root:x:0:\nagent:x:{INNER_ID}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/resolv.conf": "",
}
_SEALED: Final = sys_.ATTR_RDONLY | sys_.ATTR_NOSUID | sys_.ATTR_NODEV
_OWN_FLAGS: Final = sys_.ATTR_NOSUID | sys_.ATTR_NODEV | sys_.ATTR_NOEXEC
_TMPFS_FLAGS: Final = sys_.MS_NOSUID | sys_.MS_NODEV
_SHM_SHARE: Final = 4  # /dev/shm gets a quarter of the workspace's size
_INODE_BYTES: Final = 2048  # one inode per so many bytes: bounds the kernel memory of many empty files


class _Builder:
    """Fills a fresh tmpfs at `root`; paths are as seen from inside."""

    def __init__(self, root: str) -> None:
        self._root = root

    def at(self, path: str) -> Path:
        return Path(self._root + path)

    def directory(self, path: str, mode: int = 0o755) -> None:
        self.at(path).mkdir(mode=mode, parents=True, exist_ok=True)

    def file(self, path: str, content: str) -> None:
        self.directory(str(Path(path).parent))
        self.at(path).write_text(content)

    def link(self, path: str, target: str) -> None:
        self.directory(str(Path(path).parent))
        self.at(path).symlink_to(target)

    def bind(self, source: str, target: str, attributes: int = _SEALED) -> None:
        if Path(source).is_dir():
            self.directory(target)
        else:
            self.file(target, "")
        inside = self._root + target
        # Recursive, because a user namespace may not uncover what lies below a locked mount.
        sys_.mount(source, inside, "", sys_.MS_BIND | sys_.MS_REC)
        sys_.mount_setattr(inside, attr_set=attributes, recursive=True)


def build_root(root: str, tree: PythonTree, *, sockets: str, state: str, bases: str) -> None:
    """Build the allow-list tree at `root` and make it the root of this mount namespace."""
    sys_.mount("none", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
    sys_.mount("tmpfs", root, "tmpfs", _TMPFS_FLAGS, "mode=755,size=1m")
    build = _Builder(root)
    build.bind("/usr", "/usr")
    _add_system(build)
    _add_devices(build)
    for path, content in (_FILES | tree.files).items():
        build.file(path, content)
    for target, source in sorted(tree.binds.items()):
        build.bind(source, target)
    _add_init(build)
    for path, target in tree.links.items():
        build.link(path, target)
    build.bind("/proc", "/proc", sys_.ATTR_NOSUID | sys_.ATTR_NODEV | sys_.ATTR_NOEXEC)
    for path in ("/tmp", WORKSPACE, OWN, PEERS, BASE, SKILLS):
        build.directory(path)
    build.directory(HOST)
    sys_.mount("tmpfs", root + HOST, "tmpfs", _TMPFS_FLAGS, "mode=700,size=64k")
    build.bind(sockets, HOST_SOCKETS, _OWN_FLAGS)
    build.bind(state, HOST_STATE, _OWN_FLAGS)
    # Sealed here, once: each child's bind of its own part inherits that, and is never anything else.
    build.bind(f"{state}/skills", HOST_SKILLS)
    build.bind(bases, HOST_BASES)
    if Path("/sys/fs/cgroup").is_dir():
        build.bind("/sys/fs/cgroup", HOST_CGROUPS, _OWN_FLAGS)
    build.directory(f"{HOST}/old")
    os.chdir(root)
    sys_.pivot_root(".", f".{HOST}/old")
    os.chdir("/")
    sys_.umount(f"{HOST}/old")
    sys_.mount_setattr("/", attr_set=_SEALED)


def _add_system(build: _Builder) -> None:
    for name in _SYSTEM_LINKS:
        host = Path("/") / name
        if host.is_symlink():
            build.link(f"/{name}", str(host.readlink()))
        elif host.is_dir():
            build.bind(str(host), f"/{name}")
    for name in _ETC:
        source = Path("/etc") / name
        if source.exists():
            build.bind(str(source.resolve()), f"/etc/{name}")


def _add_init(build: _Builder) -> None:
    program = reaper.program()
    if program is not None:
        build.file(reaper.PATH, "")
        build.at(reaper.PATH).write_bytes(program)
        # Nobody may read it: the kernel keeps the memory of such a program closed, too.
        build.at(reaper.PATH).chmod(0o111)


def _add_devices(build: _Builder) -> None:
    build.directory("/dev/shm")
    for name in _DEVICES:
        build.bind(f"/dev/{name}", f"/dev/{name}", sys_.ATTR_NOSUID | sys_.ATTR_NOEXEC)
    for name, target in _DEV_LINKS.items():
        build.link(f"/dev/{name}", target)


@dataclass(frozen=True, slots=True)
class View:
    """What one child adds to the tree: its directories on the host, the size of its scratch space, and the
    name of its base where it has one."""

    own: str
    peers: str
    workspace_bytes: int
    uid: int
    rootless: bool
    base: str = ""
    skills: str = ""


def enter(view: View) -> None:
    """Add the child's own mounts; the caller has just left for a mount namespace of its own."""
    sizes = {
        WORKSPACE: view.workspace_bytes,
        "/tmp": view.workspace_bytes,
        "/dev/shm": view.workspace_bytes // _SHM_SHARE,
    }
    for path, size in sizes.items():
        options = (
            f"size={size},nr_inodes={max(size // _INODE_BYTES, 64)},mode=700,uid={view.uid},gid={view.uid}"
        )
        sys_.mount("tmpfs", path, "tmpfs", _TMPFS_FLAGS, options)
    sys_.mount(view.own, OWN, "", sys_.MS_BIND)
    sys_.mount_setattr(OWN, attr_set=_OWN_FLAGS)
    sys_.mount(view.peers, PEERS, "", sys_.MS_BIND)
    sys_.mount_setattr(PEERS, attr_set=_OWN_FLAGS | sys_.ATTR_RDONLY)
    if view.base:
        sys_.mount(f"{HOST_BASES}/{view.base}", BASE, "", sys_.MS_BIND | sys_.MS_REC)
        sys_.mount_setattr(BASE, attr_set=_SEALED, recursive=True)
    sys_.mount(view.skills, SKILLS, "", sys_.MS_BIND)
    sys_.umount(HOST)
    _fresh_proc(rootless=view.rootless)


def _fresh_proc(*, rootless: bool) -> None:
    """Show only this sandbox's processes, and nothing of /proc but processes."""
    if not rootless:
        sys_.umount("/proc")  # a user namespace may only cover the old one, not take it away
    flags = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
    sys_.mount("proc", "/proc", "proc", flags, "subset=pid")
