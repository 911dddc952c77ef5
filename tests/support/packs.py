"""Make archives of skill packs, sound ones and crafted ones, byte by byte where no tool would make them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

END = bytes(1024)
COUNT = """import json, sys
text = json.load(sys.stdin)["text"]
print(json.dumps({"words": len(text.split())}))
"""


def skill_md(name: str = "counting", **fields: Any) -> bytes:
    """A SKILL.md whose frontmatter holds these fields, too; JSON strings are YAML."""
    lines = [f"name: {name}", "description: Counts words. Use it when somebody asks how long a text is."]
    for key, value in fields.items():
        key = key.replace("_", "-")
        if isinstance(value, Mapping):
            lines += [f"{key}:", *(f"  {k}: {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return ("---\n" + "\n".join(lines) + "\n---\n\n# Counting\n").encode()


def tool(name: str = "count_words", **more: Any) -> dict[str, Any]:
    """A declared tool."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    base = {"name": name, "description": "Count words.", "script": "scripts/count.py"}
    return base | {"input_schema": schema, "read_only": True} | more


def with_tools(*tools: Mapping[str, Any], name: str = "counting", **fields: Any) -> dict[str, bytes]:
    """The files of a pack that declares these tools."""
    metadata = {"hyperfactory/tools": json.dumps(tools)}
    return {"SKILL.md": skill_md(name, metadata=metadata, **fields), "scripts/count.py": COUNT.encode()}


def member(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    """One entry: a header with a right checksum around whatever is asked for, and its data."""
    kind, prefix = fields.get("kind", b"0"), fields.get("prefix", b"")
    size = fields.get("size", b"%011o\x00" % len(data))
    head = name.ljust(100, b"\x00") + fields.get("mode", b"0000644\x00") + b"0000000\x00" * 2
    head += size + b"%011o\x00" % 0 + b" " * 8 + kind + fields.get("link", b"").ljust(100, b"\x00")
    head += fields.get("magic", b"ustar\x0000") + bytes(64) + b"0000000\x00" * 2 + prefix.ljust(155, b"\x00")
    head = head.ljust(512, b"\x00")
    total = fields.get("checksum", sum(head))
    head = head[:148] + b"%06o\x00 " % total + head[156:]
    return head + data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    """An extension for the next entry."""
    return member(b"pax", _records(records), kind=b"x")


def pax_global(**records: str) -> bytes:
    """An extension for all that follow."""
    return member(b"pax", _records(records), kind=b"g")


def _records(records: Mapping[str, str]) -> bytes:
    lines = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        size = len(body) + len(str(len(body) + 2))
        lines += str(size).encode() + body
    return lines


def archive(files: Mapping[str, bytes], *, compressed: bool = False, folder: str = "") -> bytes:
    """A sound archive, as Python's own tarfile writes it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{path}" if folder else path)
            info.size, info.mode = len(data), 0o755 if path.startswith("bin/") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(made.getvalue()) if compressed else made.getvalue()
