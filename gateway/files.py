"""Files that Traefik reads: certificates under names that change with their content, and a document."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gateway.routes import KeyPair

PRIVATE = 0o600


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step; only its owner may read it."""
    scratch = path.with_name(f".{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    scratch.replace(path)


def versioned(directory: Path, stem: str, suffix: str, content: bytes) -> str:
    """Write the content under a name that contains its digest; Traefik rereads only what changes its name."""
    path = directory / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    if not path.exists():
        write(path, content)
    return str(path)


def key_pair(directory: Path, stem: str, certificate_pem: bytes, key_pem: bytes) -> KeyPair:
    """Write a certificate and its key as versioned files."""
    return KeyPair(
        certificate=versioned(directory, stem, ".crt", certificate_pem),
        key=versioned(directory, stem, ".key", key_pem),
    )


def sweep(directory: Path, keep: bytes) -> None:
    """Remove the files that the document `keep` does not name."""
    for path in directory.iterdir():
        if str(path).encode() not in keep:
            path.unlink(missing_ok=True)
