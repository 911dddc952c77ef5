"""List in docs/status.md which methods are served and which are planned; `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "gen"), str(ROOT / "scripts")]

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto  # noqa: E402
from lifecycle import run  # noqa: E402

from hyperfactory.v1 import options_pb2  # noqa: E402

DESCRIPTORS = ROOT / "gen" / "hyperfactory.binpb"
PAGE = ROOT / "docs" / "status.md"
SERVICE_FIELD, METHOD_FIELD = 6, 2  # in FileDescriptorProto and ServiceDescriptorProto


def services() -> Iterator[tuple[str, list[tuple[MethodDescriptorProto, str]]]]:
    """Our services by file, each with its methods and their comments."""
    files = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    for file in (file for file in files if file.package.startswith("hyperfactory.")):
        comments = {tuple(c.path): c.leading_comments for c in file.source_code_info.location}
        for number, service in enumerate(file.service):
            paths = ((SERVICE_FIELD, number, METHOD_FIELD, n) for n in range(len(service.method)))
            told = [comments.get(path, "") for path in paths]
            yield f"{file.package}.{service.name}", list(zip(service.method, told, strict=True))


def shape(method: MethodDescriptorProto) -> str:
    """How many messages go which way."""
    match method.client_streaming, method.server_streaming:
        case True, True:
            return "both stream"
        case True, False:
            return "client streams"
        case False, True:
            return "server streams"
        case _:
            return "unary"


def first_sentence(comment: str) -> str:
    """What a method does, in one line of a table."""
    flat = " ".join(comment.split()).replace("|", "\\|")
    return flat.split(". ")[0].rstrip(".:")


def render() -> str:
    """A table for each service, and the sums before them."""
    parts, planned_count, count = [], 0, 0
    for name, methods in services():
        lines = [
            "",
            f"## {name.rpartition('.')[2]}",
            "",
            "| method | | status | |",
            "| --- | --- | --- | --- |",
        ]
        for method, comment in methods:
            planned = method.options.Extensions[options_pb2.policy].planned
            count, planned_count = count + 1, planned_count + bool(planned)
            status = f"planned: {planned}" if planned else "served"
            lines.append(f"| `{method.name}` | {shape(method)} | {status} | {first_sentence(comment)} |")
        parts += lines
    sums = f"{count - planned_count} of {count} methods are served."
    return "\n".join([sums, *parts])


if __name__ == "__main__":
    sys.exit(run(PAGE, render, "scripts/status.py"))
