"""Assemble the seccomp program of a sandbox as classic BPF, without libseccomp.

A deny-list with EPERM, plus filters on clone's namespace flags, on socket families, on device nodes and on
terminal input injection. `clone3` answers ENOSYS, because its flags lie in memory that BPF cannot read; libc
falls back to `clone`.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import Final

_LD_ABS: Final = 0x20
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_AND: Final = 0x54
_RET: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_OFF_NR, _OFF_ARCH, _OFF_ARG0 = 0, 4, 16
_X32_BIT: Final = 0x40000000
_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_NAMESPACE_FLAGS: Final = 0x7E020000
ALLOWED_FAMILIES: Final = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
REFUSED_IOCTLS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

# The same number on every architecture.
_COMMON: Final = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
    "process_mrelease": 448, "set_mempolicy_home_node": 450, "statmount": 457, "listmount": 458,
    "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "open_tree_attr": 467,
}  # fmt: skip
_DENIED: Final = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "personality": 135, "ustat": 136, "sysfs": 139, "vhangup": 153,
        "modify_ldt": 154, "pivot_root": 155, "_sysctl": 156, "adjtimex": 159, "chroot": 161, "acct": 163,
        "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "create_module": 174,
        "init_module": 175, "delete_module": 176, "get_kernel_syms": 177, "query_module": 178,
        "quotactl": 179, "nfsservctl": 180, "lookup_dcookie": 212, "clock_settime": 227, "mbind": 237,
        "set_mempolicy": 238, "get_mempolicy": 239, "kexec_load": 246, "add_key": 248, "request_key": 249,
        "keyctl": 250, "migrate_pages": 256, "unshare": 272, "move_pages": 279, "perf_event_open": 298,
        "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305,
        "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
        "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "nfsservctl": 42, "chroot": 51,
        "vhangup": 58, "quotactl": 60, "acct": 89, "personality": 92, "unshare": 97, "kexec_load": 104,
        "init_module": 105, "delete_module": 106, "clock_settime": 112, "syslog": 116, "ptrace": 117,
        "reboot": 142, "sethostname": 161, "setdomainname": 162, "settimeofday": 170, "adjtimex": 171,
        "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225, "mbind": 235,
        "get_mempolicy": 236, "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239,
        "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
        "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip
_CLONE3: Final = 435
# call -> number, per architecture; a `mknod` of 0 means that the architecture has only `mknodat`.
_FILTERED: Final = {
    "x86_64": {"clone": 56, "socket": 41, "socketpair": 53, "ioctl": 16, "mknod": 133, "mknodat": 259},
    "aarch64": {"clone": 220, "socket": 198, "socketpair": 199, "ioctl": 29, "mknod": 0, "mknodat": 33},
}


def _op(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jump_true, jump_false, value)


def _arg(index: int) -> bytes:
    return _op(_LD_ABS, _OFF_ARG0 + 8 * index)


def _refuse(number: int = errno.EPERM) -> bytes:
    return _op(_RET, _ERRNO | number)


def _when(number: int, body: bytes) -> bytes:
    """Run `body`, which must end in a return, if the call is `number`; the accumulator holds the number."""
    return _op(_JEQ, number, 0, len(body) // 8) + body


def _one_of(values: tuple[int, ...], then: bytes, otherwise: bytes) -> bytes:
    checks = b"".join(
        _op(_JEQ, value, len(values) - position - 1 + len(otherwise) // 8)
        for position, value in enumerate(values)
    )
    return checks + otherwise + then


def program(machine: str | None = None) -> bytes:
    """The filter for this machine's architecture."""
    machine = machine or platform.machine()
    allow = _op(_RET, _ALLOW)
    calls = _FILTERED[machine]
    code = _op(_LD_ABS, _OFF_ARCH) + _op(_JEQ, _ARCH[machine], 1, 0) + _op(_RET, _KILL)
    code += _op(_LD_ABS, _OFF_NR)
    if machine == "x86_64":
        code += _op(_JGE, _X32_BIT, 0, 1) + _op(_RET, _KILL)
    for number in {**_COMMON, **_DENIED[machine]}.values():
        code += _when(number, _refuse())
    code += _when(_CLONE3, _refuse(errno.ENOSYS))
    code += _when(calls["clone"], _arg(0) + _op(_JSET, _NAMESPACE_FLAGS, 0, 1) + _refuse() + allow)
    families = _arg(0) + _one_of(ALLOWED_FAMILIES, allow, _refuse(errno.EAFNOSUPPORT))
    code += _when(calls["socket"], families) + _when(calls["socketpair"], families)
    code += _when(calls["ioctl"], _arg(1) + _one_of(REFUSED_IOCTLS, _refuse(), allow))
    for call, mode_index in (("mknod", 1), ("mknodat", 2)):
        if calls[call]:
            mode = _arg(mode_index) + _op(_AND, _S_IFMT)
            code += _when(calls[call], mode + _one_of((_S_IFCHR, _S_IFBLK), _refuse(), allow))
    return code + allow


def denied_names(machine: str | None = None) -> set[str]:
    """The calls that are refused whatever their arguments."""
    return {*_COMMON, *_DENIED[machine or platform.machine()]}


def denied_calls(machine: str | None = None) -> int:
    """How many calls are refused outright."""
    return len(_COMMON) + len(_DENIED[machine or platform.machine()]) + 1
