"""How MCP's skills extension (SEP-2640) shows a skill pack, whoever serves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

from wire.mcp.messages import Json

ENTRY: Final = "SKILL.md"
SCHEME: Final = "skill://"
_MIME_TYPES: Final = {".md": "text/markdown", ".json": "application/json", ".txt": "text/plain"}
_UNKNOWN_TYPE: Final = "application/octet-stream"


class File(Protocol):
    """A file of a pack, as its manifest has it."""

    @property
    def path(self) -> str:
        """Below the pack's root."""

    @property
    def sha256(self) -> str:
        """In hex."""

    @property
    def size(self) -> int:
        """In bytes."""


def mime_type(path: str) -> str:
    """By the file's ending."""
    return _MIME_TYPES.get(PurePosixPath(path).suffix, _UNKNOWN_TYPE)


def entry(root: str, frontmatter: Mapping[str, Any], files: Iterable[File]) -> Json:
    """A pack in lists: its frontmatter, and every file with digest and size. `root` begins all its URIs."""
    return {
        "uri": root + ENTRY,
        "frontmatter": dict(frontmatter),
        "resources": [
            {"uri": root + file.path, "digest": f"sha256:{file.sha256}", "size": file.size} for file in files
        ],
    }
