"""Ids of our own making are UUIDs as everybody's."""

from __future__ import annotations

import uuid

from agent_runtime.ids import new_id


def test_ids_are_random_uuids_in_their_usual_form() -> None:
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    for text in made:
        read = uuid.UUID(text)
        assert (str(read), read.version, read.variant) == (text, 4, uuid.RFC_4122)
