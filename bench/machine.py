"""What the figures were measured on; nothing that names the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import grpc


def facts() -> dict[str, str | int]:
    """Processor, memory, kernel and versions."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(pages / 2**30),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
        "root": "yes" if os.geteuid() == 0 else "no",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
