"""The sandboxes' system call filter as a profile for container engines; the same refusals as `namespaces`."""

from __future__ import annotations

import errno
import functools
import json
import platform
from typing import Any, Final

from factory_server.drivers.namespaces import seccomp

_ARCHITECTURES: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_NAMESPACE_FLAGS: Final = 0x7E020000
_ERRNO: Final = "SCMP_ACT_ERRNO"
_LOW: Final = 0xFFFFFFFF
_ALLOW: Final = "SCMP_ACT_ALLOW"


def _rule(names: list[str], action: str, number: int | None = None, **argument: object) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    if number is not None:
        rule["errnoRet"] = number
    if argument:
        rule["args"] = [{"valueTwo": 0, **argument}]
    return rule


def profile(machine: str | None = None) -> dict[str, Any]:
    """The profile for this machine's architecture; calls of its other word sizes kill their caller."""
    machine = machine or platform.machine()
    rules = [
        _rule(sorted(seccomp.denied_names(machine)), _ERRNO, errno.EPERM),
        # Its flags lie in memory that no filter can read; libc falls back to clone.
        _rule(["clone3"], _ERRNO, errno.ENOSYS),
    ]
    # A filter cannot say "none of these" of one argument, so it names what is refused, bit by bit.
    rules += [
        _rule(["clone"], _ERRNO, errno.EPERM, index=0, value=bit, valueTwo=bit, op="SCMP_CMP_MASKED_EQ")
        for bit in (1 << number for number in range(32))
        if bit & _NAMESPACE_FLAGS
    ]
    rules += [
        _rule(["socket", "socketpair"], _ERRNO, errno.EAFNOSUPPORT, index=0, **refused)
        for refused in _refused_families()
    ]
    # The kernel looks at the lower half alone, so that is what is compared.
    rules += [
        _rule(["ioctl"], _ERRNO, errno.EPERM, index=1, value=_LOW, valueTwo=request, op="SCMP_CMP_MASKED_EQ")
        for request in seccomp.REFUSED_IOCTLS
    ]
    return {"defaultAction": _ALLOW, "architectures": [_ARCHITECTURES[machine]], "syscalls": rules}


def _refused_families() -> list[dict[str, object]]:
    """All address families but those of `namespaces`, as comparisons: the gaps between, and all above."""
    allowed = seccomp.ALLOWED_FAMILIES
    gaps: list[dict[str, object]] = [
        {"value": family, "op": "SCMP_CMP_EQ"} for family in range(max(allowed)) if family not in allowed
    ]
    return [*gaps, {"value": max(allowed), "op": "SCMP_CMP_GT"}]


@functools.cache
def text() -> str:
    """The profile as an engine takes it."""
    return json.dumps(profile(), separators=(",", ":"))
