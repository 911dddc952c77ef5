"""Pid 1 of a sandbox: reaps orphans, and ends with the runtime, whose exit status it passes on.

A Python as pid 1 costs every agent 3 MB for a loop of one system call. So the tree holds a program of two
hundred bytes that does the same; it is written out here, because nothing at install time could compile it:

    prctl(PR_SET_DUMPABLE, 0)
    do n = wait4(-1, &status, 0, NULL) while n is neither 2 nor -ECHILD
    write(STATUS_FD, &status, 4); exit_group(0)

The runtime is always process 2, the first child of a new pid namespace. On other machines than x86-64 the
Python loop below stays.
"""

from __future__ import annotations

import os
import platform
import struct
from typing import Final

PATH: Final = "/app/init"
STATUS_FD: Final = 4
RUNTIME_PID: Final = 2
STATUS_BYTES: Final = 4

_CODE_X86_64: Final = bytes.fromhex(
    "b89d000000"  # mov eax, 157 (prctl)
    "bf04000000"  # mov edi, 4 (PR_SET_DUMPABLE)
    "31f6"  #       xor esi, esi
    "0f05"  #       syscall
    "4883ec10"  #   sub rsp, 16
    "48c7c7ffffffff"  # again: mov rdi, -1
    "4889e6"  #     mov rsi, rsp
    "31d2"  #       xor edx, edx
    "4d31d2"  #     xor r10, r10
    "b83d000000"  # mov eax, 61 (wait4)
    "0f05"  #       syscall
    "83f802"  #     cmp eax, 2
    "7405"  #       je done
    "83f8f6"  #     cmp eax, -10 (ECHILD)
    "75e0"  #       jne again
    "bf04000000"  # done: mov edi, STATUS_FD
    "4889e6"  #     mov rsi, rsp
    "ba04000000"  # mov edx, 4
    "b801000000"  # mov eax, 1 (write)
    "0f05"  #       syscall
    "31ff"  #       xor edi, edi
    "b8e7000000"  # mov eax, 231 (exit_group)
    "0f05"  #       syscall
)
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56
_READ_EXECUTE: Final = 5


def program() -> bytes | None:
    """The tiny program as an ELF file; None where there is none for this machine."""
    if platform.machine() != "x86_64":
        return None
    size = _HEADERS + len(_CODE_X86_64)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, _READ_EXECUTE, 0, _BASE, _BASE, size, size, 0x1000)
    return identity + header + segment + _CODE_X86_64


def reap() -> None:
    """Be pid 1; never returns. Only descriptor 1 and the status pipe may be open."""
    if os.path.exists(PATH):  # noqa: PTH110 - every object made here is memory that the runtime shares no more
        os.execve(PATH, ["init"], {})
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == RUNTIME_PID:
            os.write(STATUS_FD, struct.pack("=i", status))
            os._exit(0)


def exit_code(status: bytes) -> int | None:
    """What the runtime ended with, negative for a signal; None if pid 1 could not tell."""
    if len(status) != STATUS_BYTES:
        return None
    return os.waitstatus_to_exitcode(struct.unpack("=i", status)[0])
