"""Print `lf/a2a/v1/a2a.proto` from the descriptor that the official a2a-sdk package carries.

The package is pinned, the specification's repository moves on: so our stubs are of the version that our peer in
tests speaks. Declarations only: names, numbers, types, methods. Apache-2.0, The Linux Foundation.
"""

from __future__ import annotations

import ast
import sys
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from google.protobuf import descriptor_pb2 as d
from print_validate_proto import enum, message

HEADER = """\
// Copyright (c) The Linux Foundation. Licensed under the Apache License, Version 2.0.
// Declarations printed from the descriptor in the a2a-sdk package by scripts/print_a2a_proto.py.
"""
WANTED = ("google/protobuf/",)


def descriptor() -> d.FileDescriptorProto:
    """The file's descriptor, taken from the literal in the package's generated module."""
    for node in ast.walk(ast.parse((files("a2a") / "types/a2a_pb2.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return d.FileDescriptorProto.FromString(ast.literal_eval(node.args[0]))
    raise SystemExit("cannot find the descriptor in a2a's generated module")


def service(s: d.ServiceDescriptorProto) -> list[str]:
    """A service; its methods without their options."""
    out = [f"service {s.name} {{"]
    for m in s.method:
        given, answer = (
            f"{'stream ' if streams else ''}{kind.lstrip('.')}"
            for streams, kind in ((m.client_streaming, m.input_type), (m.server_streaming, m.output_type))
        )
        out.append(f"  rpc {m.name}({given}) returns ({answer});")
    return [*out, "}"]


def render(fd: d.FileDescriptorProto) -> str:
    """The whole file."""
    out = [HEADER, f'syntax = "{fd.syntax}";', "", f"package {fd.package};", ""]
    out += [f'import "{name}";' for name in fd.dependency if name.startswith(WANTED)]
    for s in fd.service:
        out += ["", *service(s)]
    for m in fd.message_type:
        out += ["", *message(m, f".{fd.package}", fd.syntax)]
    for e in fd.enum_type:
        out += ["", *enum(e)]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(descriptor()))
