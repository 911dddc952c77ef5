"""The crew's shared context as orchestrators see it, and its mirror in the store."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from factory_server.core import model
from factory_server.core.errors import FactoryError, FieldViolation, Invalid, NotFound, Refused
from factory_server.core.lifecycle import CrewState
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.requests import key_of
from hyperfactory.v1 import crew_service_pb2

log = logging.getLogger("factory.context")

VALUE_BYTES_MAX = 64 * 1024
TAIL_BLOCK_S = 5.0
MIRROR_BLOCK_S = 0.25
"""Also how long a new crew waits until its log is read."""
TROUBLE_PAUSE_S = 0.5
LIVE = (CrewState.ASSEMBLING, CrewState.READY, CrewState.DEGRADED)


async def put(parts: Parts, request: crew_service_pb2.PutContextRequest, actor: str) -> int:
    """Set or remove a key; its new version. Invalid, NotFound, Refused (VERSION_MISMATCH, WRONG_STATE)."""
    value = None
    if request.HasField("value"):
        value = json.dumps(MessageToDict(request.value), separators=(",", ":"))
        if len(value) > VALUE_BYTES_MAX:
            text = f"is {len(value)} bytes of JSON, at most {VALUE_BYTES_MAX} are allowed"
            raise Invalid(
                f"cannot put '{request.key}': value {text}",
                violations=[FieldViolation("value", text, "TOO_LARGE")],
            )
    key = key_of(actor, "PutContext", request.request_id, request)
    before = await parts.store.find_request(key)
    if before is not None:
        return int(before)
    crew = await parts.store.get_crew(request.crew)
    if crew.state not in LIVE:
        raise Refused(f"crew '{crew.name}' is {crew.state}", metadata={"state": crew.state})
    expected = request.if_version if request.HasField("if_version") else None
    version = await parts.bus.put_context(crew.id, request.key, value, actor, expected)
    return int(await parts.store.save_request(key, str(version)))


async def get(parts: Parts, crew: str, key: str) -> model.ContextRow:
    """One key. NotFound."""
    await parts.store.get_crew(crew)
    return await parts.bus.get_context(crew, key)


async def list_keys(parts: Parts, crew: str, prefix: str) -> Sequence[model.ContextRow]:
    """Keys by name. NotFound."""
    await parts.store.get_crew(crew)
    return await parts.bus.list_context(crew, prefix)


async def watch(
    parts: Parts, crew: str, prefix: str, draining: asyncio.Event
) -> AsyncIterator[tuple[Sequence[model.ContextRow], bool]]:
    """(rows, synced): the context as it is, then as it changes. NotFound."""
    await parts.store.get_crew(crew)
    _, cursor = await parts.bus.read_context_log(crew, "", block_s=0.0)
    seen: dict[str, int] = {}
    rows = await parts.bus.list_context(crew, prefix)
    seen.update({r.key: r.version for r in rows})
    yield rows, True
    while not draining.is_set():
        changes, cursor = await parts.bus.read_context_log(crew, cursor, block_s=TAIL_BLOCK_S)
        fresh = [r for r in changes if r.key.startswith(prefix) and r.version > seen.get(r.key, 0)]
        seen.update({r.key: r.version for r in fresh})
        if fresh:
            yield fresh, False
        elif (await parts.store.get_crew(crew)).state not in LIVE:
            return


async def restore(parts: Parts, crew: model.CrewRow, *, mirrored: bool) -> None:
    """Put the manifest's values on the bus where they are missing, and (unless the crew is new) the newer ones
    that the store mirrored."""
    rows = {
        key: model.ContextRow(key, json.dumps(MessageToDict(value)), 1, ACTOR)
        for key, value in crew.manifest.context.items()
    }
    if mirrored:
        rows |= {row.key: row for row in await parts.store.read_context(crew.id)}
    if rows:
        await parts.bus.restore_context(crew.id, list(rows.values()))


class ContextMirror:
    """Copies context changes of the crews kept here from the bus to the store, as events."""

    def __init__(self, parts: Parts, crews: Callable[[], Sequence[str]]) -> None:
        self._parts = parts
        self._crews = crews
        self._cursors: dict[str, str] = {}

    async def run(self) -> None:
        """Tail until cancelled."""
        while True:
            try:
                await self._tail()
            except FactoryError as error:
                self._parts.measures.trouble.labels("context").inc()
                log.warning("cannot mirror", extra={"error": str(error)})
                await asyncio.sleep(TROUBLE_PAUSE_S)

    async def _tail(self) -> None:
        crews = set(self._crews())
        for crew in crews - self._cursors.keys():
            await self._begin(crew)
        for crew in self._cursors.keys() - crews:
            del self._cursors[crew]
        if not self._cursors:
            await asyncio.sleep(MIRROR_BLOCK_S)
            return
        failures: list[FactoryError] = []
        for crew, rows, cursor in await self._parts.bus.tail_contexts(self._cursors, block_s=MIRROR_BLOCK_S):
            try:
                await self._parts.store.mirror_context(crew, rows, cursor)
            except FactoryError as error:
                failures.append(error)  # one crew's trouble must not stop the others' mirror
            else:
                self._cursors[crew] = cursor
        if failures:
            raise failures[0]

    async def _begin(self, crew: str) -> None:
        try:
            self._cursors[crew] = (await self._parts.store.get_crew(crew)).context_cursor
        except NotFound:
            log.warning("cannot mirror an unknown crew", extra={"crew": crew})


def to_value(row: model.ContextRow) -> Value | None:
    """The row's value as the contract has it; None where it was removed."""
    if row.value is None:
        return None
    loaded: Any = json.loads(row.value)
    return ParseDict(loaded, Value())
