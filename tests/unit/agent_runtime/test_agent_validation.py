"""Our lean check of constraints gives protovalidate's verdict on every request of AgentService."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from agent_runtime.validation import violations
from hyperfactory.v1 import agent_service_pb2 as pb
from wire.validation import RequestValidator

REQUESTS = [method.input_type for method in pb.DESCRIPTOR.services_by_name["AgentService"].methods]
TEXTS = [
    "",
    "a",
    "user",
    "tool",
    "coder",
    "a.b:C",
    "k" * 64,
    "k" * 65,
    "k" * 128,
    "k" * 129,
    "ü" * 256,
    "ü" * 257,
]
NUMBERS = [-1, 0, 1, 100, 101, 4096, 4097, 600, 86_400, 2**31 - 1]
ROUNDS = 300


def fill(message: Message, dice: random.Random, depth: int = 0) -> None:
    """Set some fields to values on both sides of the bounds."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.4 or depth > 4:
            continue
        try:
            _set(message, field, dice, depth)
        except (ValueError, OverflowError):
            continue  # the number does not fit the field's width


def _set(message: Message, field: FieldDescriptor, dice: random.Random, depth: int) -> None:
    value: Any = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is None:
            for key in dice.sample(["A", "b_1", "1x", "", "k" * 129], dice.randint(0, 3)):
                value[key] = dice.choice(["", "v", "v" * 4097])
    elif field.message_type and field.message_type.full_name == "google.protobuf.Duration":
        value.seconds, value.nanos = (
            dice.choice([0, 1, 600, 601, 3600, 3601]),
            dice.choice([0, 9_999_999, 10**8]),
        )
    elif field.message_type and field.is_repeated:
        for _ in range(dice.choice([0, 1, 3])):
            fill(value.add(), dice, depth + 1)
    elif field.message_type:
        value.SetInParent()
        fill(value, dice, depth + 1)
    elif field.is_repeated:
        choices = TEXTS if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else NUMBERS
        value.extend([dice.choice(choices)] * dice.choice([0, 1, 32, 33]))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.type != FieldDescriptor.TYPE_BYTES:
        setattr(message, field.name, dice.choice(TEXTS))
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64):
        setattr(message, field.name, dice.choice(NUMBERS))


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.name)
def test_the_verdict_is_protovalidates(kind: Any) -> None:
    theirs = RequestValidator()
    dice = random.Random(kind.name)
    for _ in range(ROUNDS):
        message = GetMessageClass(kind)()
        fill(message, dice)
        ours, expected = list(violations(message)), theirs(message)
        assert bool(ours) == bool(expected), (message, ours, expected)
        assert {item.field.split("[")[0] for item in ours} <= {item.field.split("[")[0] for item in expected}


def test_violations_are_bounded() -> None:
    messages = [pb.ChatMessage(role="nobody") for _ in range(50)]
    assert len(violations(pb.ChatRequest(messages=messages))) == 20
