"""Unknown fields are found wherever they hide, and messages without any pass unchanged."""

from __future__ import annotations

import pytest
from google.protobuf.struct_pb2 import Struct

from hyperfactory.v1 import crew_service_pb2 as pb
from wire.errors import Invalid
from wire.requests import RequestReader, unknown

EXTRA = b"\xfa\x3e\x01x"  # field 1007


def reader(kind: type, **settings: object) -> RequestReader:
    return RequestReader("/a.B/C", kind.FromString, None, strict=True)  # type: ignore[attr-defined]


def test_a_sound_request_is_what_was_sent() -> None:
    payload = Struct()
    payload.update({"deep": {"list": [1, {"x": None}]}})
    request = pb.BroadcastRequest(crew="c1", signal="PAUSE", payload=payload)
    assert reader(pb.BroadcastRequest)(request.SerializeToString()) == request


def test_an_unknown_field_inside_a_struct_is_found() -> None:
    body = pb.BroadcastRequest(crew="c1").SerializeToString() + b"\x22\x04" + EXTRA
    request = pb.BroadcastRequest.FromString(body)
    paths = list(unknown(request))
    assert paths == ["payload.1007"]
    with pytest.raises(Invalid):
        reader(pb.BroadcastRequest)(body)


def test_an_unknown_field_inside_a_map_is_found() -> None:
    value = EXTRA
    entry = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    manifest = pb.CrewManifest()
    number = manifest.DESCRIPTOR.fields_by_name["context"].number
    if manifest.DESCRIPTOR.fields_by_name["context"].message_type.full_name == "google.protobuf.Struct":
        entry = b"\x0a" + bytes([len(entry)]) + entry
    raw = bytes([(number << 3) | 2, len(entry)]) + entry
    assert len(list(unknown(pb.CrewManifest.FromString(raw)))) == 1
    with pytest.raises(Invalid):
        reader(pb.CrewManifest)(raw)


def test_builtin_services_may_send_what_we_do_not_know() -> None:
    lenient = RequestReader("/a.B/C", pb.GetCrewRequest.FromString, None, strict=False)
    assert lenient(EXTRA) == pb.GetCrewRequest.FromString(EXTRA)


def test_a_thousand_nested_messages_are_malformed_not_a_crash() -> None:
    body = b""
    for _ in range(300):
        inner = b"\x32" + _varint(len(body)) + body  # Value.list_value
        body = b"\x0a" + _varint(len(inner)) + inner  # ListValue.values
    entry = b"\x0a\x01k\x12" + _varint(len(b"\x32" + _varint(len(body)) + body))
    entry += b"\x32" + _varint(len(body)) + body
    struct = b"\x0a" + _varint(len(entry)) + entry
    with pytest.raises(Invalid) as caught:
        reader(pb.BroadcastRequest)(b"\x22" + _varint(len(struct)) + struct)
    assert caught.value.reason == "MALFORMED_MESSAGE"


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
