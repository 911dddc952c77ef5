"""Run the assembled seccomp programs in a small BPF machine, for every architecture."""

from __future__ import annotations

import errno
import struct

import pytest

from factory_server.drivers.namespaces import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "x86_64": {"read": 0, "clone": 56, "socket": 41, "mount": 165, "setns": 308, "ioctl": 16, "mknodat": 259,
               "execve": 59, "bpf": 321, "openat": 257},
    "aarch64": {"read": 63, "clone": 220, "socket": 198, "mount": 40, "setns": 268, "ioctl": 29, "mknodat": 33,
                "execve": 221, "bpf": 280, "openat": 56},
}  # fmt: skip
THREAD = 0x3D0F00  # what libc asks of clone for a thread


def run(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Interpret classic BPF over one seccomp_data."""
    arguments = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, arch, 0, *arguments)
    code = [struct.unpack_from("<HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator, position = 0, 0
    while True:
        operation, on_true, on_false, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                position += on_true if accumulator == value else on_false
            case 0x35:
                position += on_true if accumulator >= value else on_false
            case 0x45:
                position += on_true if accumulator & value else on_false
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case other:
                raise AssertionError(hex(other))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("call", "arguments", "refused"),
    [
        ("read", (), 0),
        ("openat", (), 0),
        ("execve", (), 0),
        ("mount", (), errno.EPERM),
        ("setns", (), errno.EPERM),
        ("bpf", (), errno.EPERM),
        ("clone", (THREAD,), 0),
        ("clone", (0x11,), 0),
        ("clone", (0x10000011,), errno.EPERM),
        ("clone", (0x40000011,), errno.EPERM),
        ("socket", (1, 1, 0), 0),
        ("socket", (2, 1, 0), 0),
        ("socket", (10, 2, 0), 0),
        ("socket", (16, 3, 0), errno.EAFNOSUPPORT),
        ("socket", (40, 1, 0), errno.EAFNOSUPPORT),
        ("ioctl", (0, 0x5401), 0),
        ("ioctl", (0, 0x5412), errno.EPERM),
        ("mknodat", (0, 0, 0o010644), 0),
        ("mknodat", (0, 0, 0o020644), errno.EPERM),
        ("mknodat", (0, 0, 0o060644), errno.EPERM),
    ],
)
def test_calls(machine: str, call: str, arguments: tuple[int, ...], refused: int) -> None:
    answer = run(seccomp.program(machine), ARCH[machine], CALLS[machine][call], arguments)
    assert answer == (0x50000 | refused if refused else ALLOW)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_clone3_makes_libc_fall_back(machine: str) -> None:
    assert run(seccomp.program(machine), ARCH[machine], 435) == 0x50000 | errno.ENOSYS


def test_other_calling_conventions_kill() -> None:
    program = seccomp.program("x86_64")
    assert run(program, 0x40000003, 1) == KILL  # 32 bit
    assert run(program, ARCH["x86_64"], 0x40000000 | 39) == KILL  # x32
    assert run(seccomp.program("aarch64"), ARCH["x86_64"], 0) == KILL


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_program_fits_the_kernel(machine: str) -> None:
    assert len(seccomp.program(machine)) // 8 <= 4096
    assert seccomp.denied_calls(machine) >= 60
