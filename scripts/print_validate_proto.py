"""Print `buf/validate/validate.proto` from the descriptor that the protovalidate package carries.

No package on PyPI ships the source file, so its declarations (names, numbers, types; not its comments and
rule options, which the native engine has compiled in) are written out for protoc and buf. Apache-2.0, Buf
Technologies.
"""

from __future__ import annotations

import ast
import sys
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2 as d

HEADER = """\
// Copyright (c) 2023-2026 Buf Technologies, Inc. Licensed under the Apache License, Version 2.0.
// Declarations printed from the descriptor in the protovalidate package by scripts/print_validate_proto.py.
"""
F = d.FieldDescriptorProto
TYPES = {number: name[5:].lower() for name, number in F.Type.items()}
LABELS = {F.LABEL_OPTIONAL: "optional ", F.LABEL_REPEATED: "repeated ", F.LABEL_REQUIRED: "required "}


def descriptor() -> d.FileDescriptorProto:
    """The file's descriptor, taken from the literal in the package's generated module."""
    source = (files("protovalidate") / "_gen/buf/validate/validate_pb.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "file_desc":
            return d.FileDescriptorProto.FromString(_literal(node.args[0]))
    raise SystemExit("cannot find the descriptor in protovalidate's generated module")


def _literal(node: ast.expr) -> bytes:
    value: Any = ast.literal_eval(node)
    return value if isinstance(value, bytes) else bytes(value, "latin-1")


def field(f: d.FieldDescriptorProto, syntax: str, maps: dict[str, d.DescriptorProto], indent: str) -> str:
    """One field declaration."""
    entry = maps.get(f.type_name)
    if entry:
        key, value = (type_of(x) for x in entry.field)
        return f"{indent}map<{key}, {value}> {f.name} = {f.number};"
    optional = syntax != "proto3" or f.proto3_optional
    in_oneof = f.HasField("oneof_index") and not f.proto3_optional
    label = LABELS[f.label] if (optional or f.label == F.LABEL_REPEATED) and not in_oneof else ""
    return f"{indent}{label}{type_of(f)} {f.name} = {f.number};"


def type_of(f: d.FieldDescriptorProto) -> str:
    """The type as the source names it."""
    return f.type_name.lstrip(".") if f.type_name else TYPES[f.type]


def message(m: d.DescriptorProto, prefix: str, syntax: str, indent: str = "") -> list[str]:
    """A message with what is nested in it."""
    inner = indent + "  "
    full = f"{prefix}.{m.name}"
    maps = {f"{full}.{n.name}": n for n in m.nested_type if n.options.map_entry}
    out = [f"{indent}message {m.name} {{"]
    for nested in m.nested_type:
        if not nested.options.map_entry:
            out += message(nested, full, syntax, inner)
    for e in m.enum_type:
        out += enum(e, inner)
    oneofs = {i: o.name for i, o in enumerate(m.oneof_decl)}
    done: set[int] = set()
    for f in m.field:
        index = f.oneof_index if f.HasField("oneof_index") and not f.proto3_optional else None
        if index is None:
            out.append(field(f, syntax, maps, inner))
        elif index not in done:
            done.add(index)
            members = [g for g in m.field if g.HasField("oneof_index") and g.oneof_index == index]
            out += [f"{inner}oneof {oneofs[index]} {{"]
            out += [field(g, syntax, maps, inner + "  ") for g in members]
            out += [f"{inner}}}"]
    out += [f"{inner}extensions {r.start} to {_end(r.end)};" for r in m.extension_range]
    return [*out, f"{indent}}}"]


def _end(end: int) -> str:
    return "max" if end > 536870911 else str(end - 1)


def enum(e: d.EnumDescriptorProto, indent: str = "") -> list[str]:
    """An enum."""
    values = [f"{indent}  {v.name} = {v.number};" for v in e.value]
    return [f"{indent}enum {e.name} {{", *values, f"{indent}}}"]


def render(fd: d.FileDescriptorProto) -> str:
    """The whole file."""
    syntax = fd.syntax or "proto2"
    out = [HEADER, f'syntax = "{syntax}";', "", f"package {fd.package};", ""]
    out += [f'import "{x}";' for x in fd.dependency]
    for x in fd.extension:
        out += ["", f"extend {x.extendee.lstrip('.')} {{", field(x, syntax, {}, "  "), "}"]
    for m in fd.message_type:
        out += ["", *message(m, f".{fd.package}", syntax)]
    for e in fd.enum_type:
        out += ["", *enum(e)]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(descriptor()))
