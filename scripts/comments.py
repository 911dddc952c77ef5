"""Write the contract's comments, by full name, beside the stubs in the directory given: descriptors lose them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Field numbers in the descriptors' own messages: what lies below a file, a message, an enum and a service.
KINDS: dict[str, dict[int, str]] = {
    "file": {4: "message_type", 5: "enum_type", 6: "service"},
    "message_type": {2: "field", 3: "nested_type", 4: "enum_type", 8: "oneof_decl"},
    "nested_type": {2: "field", 3: "nested_type", 4: "enum_type", 8: "oneof_decl"},
    "enum_type": {2: "value"},
    "service": {2: "method"},
}


def comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Full names and what is said above them."""
    for location in file.source_code_info.location:
        text = location.leading_comments.strip()
        name = _name(file, location.path)
        if text and name:
            yield name, " ".join(text.split())


def _name(file: FileDescriptorProto, path: Sequence[int]) -> str:
    at: Any = file
    kind, names = "file", [file.package]
    for number, index in zip(path[::2], path[1::2], strict=False):
        below = KINDS.get(kind, {}).get(number)
        if below is None:
            return ""
        at, kind = getattr(at, below)[index], below
        names.append(at.name)
    return ".".join(names) if len(names) > 1 and len(path) % 2 == 0 else ""


if __name__ == "__main__":
    out = Path(sys.argv[1])
    every = FileDescriptorSet.FromString((out / "hyperfactory.binpb").read_bytes()).file
    ours = (file for file in every if file.package.startswith("hyperfactory."))
    found = {name: text for file in ours for name, text in comments(file)}
    (out / "hyperfactory" / "comments.json").write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
