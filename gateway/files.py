"""Files that Traefik reads: certificates under names that change with their content, and a document."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from gateway.routes import KeyPair

SCRATCH: Final = ".new-"


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step; only its owner may read it."""
    descriptor, scratch = tempfile.mkstemp(prefix=SCRATCH, dir=path.parent)  # 0600; a name of its own
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(scratch).replace(path)


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
        if not path.name.startswith(SCRATCH) and str(path).encode() not in keep:
            path.unlink(missing_ok=True)
