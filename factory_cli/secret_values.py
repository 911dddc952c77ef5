"""Keep the secrets of this home's factory: files that only their owner reads."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from factory_cli.output import Output
from factory_server.identity.secretfiles import VALUE_MAX_BYTES, SecretFiles


def write(home: Path, out: Output, name: str) -> None:
    """Keep what comes on standard input; a terminal is asked without an echo."""
    SecretFiles(home).write(name, _value(name))
    _done(out, name, f"secret '{name}' is kept in {home}")


def show(home: Path, out: Output) -> None:
    """Name them all."""
    names = SecretFiles(home).names()
    if out.as_json:
        out.document({"secrets": [{"name": name} for name in names]})
        return
    out.table(("NAME",), [(name,) for name in names])


def remove(home: Path, out: Output, name: str) -> None:
    """Forget one."""
    SecretFiles(home).remove(name)
    _done(out, name, f"secret '{name}' is gone")


def _value(name: str) -> bytes:
    if sys.stdin.isatty():
        return getpass.getpass(f"value of '{name}': ").encode()
    return sys.stdin.buffer.read(VALUE_MAX_BYTES + 2)


def _done(out: Output, name: str, text: str) -> None:
    if out.as_json:
        out.document({"name": name})
    out.text(text)
