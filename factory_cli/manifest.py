"""Read a crew manifest from JSON, naming each field that cannot be understood."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperfactory.v1 import crew_service_pb2
from wire.errors import Invalid
from wire.proto_json import bad, fill, load_object, relaxed

MANIFEST_MAX_BYTES = 256 * 1024


def read_text(source: str) -> str:
    """Read a file, or standard input for `-`."""
    if source == "-":
        return sys.stdin.read(MANIFEST_MAX_BYTES + 1)
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.read(MANIFEST_MAX_BYTES + 1)
    except OSError as error:
        raise Invalid(f"cannot read manifest '{source}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"cannot read manifest '{source}': it is not UTF-8") from error


def parse(text: str) -> crew_service_pb2.CrewManifest:
    """Parse a manifest's JSON; unknown and repeated fields are refused by name."""
    if len(text.encode()) > MANIFEST_MAX_BYTES:
        raise bad("manifest", f"is larger than {MANIFEST_MAX_BYTES // 1024} KiB")
    message = crew_service_pb2.CrewManifest()
    return fill(relaxed(load_object(text, "manifest"), message.DESCRIPTOR), message, "manifest")
