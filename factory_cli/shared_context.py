"""Read and write a crew's shared context."""

from __future__ import annotations

import json
from typing import Any

from factory_cli.client import CALL_WITHIN_S, Client
from factory_cli.output import Output, free_json
from factory_cli.requests import PAGE_SIZE, new_id, pages, value
from hyperfactory.v1 import crew_service_pb2


async def get(client: Client, out: Output, crew: str, key: str) -> None:
    """Print a key's value; for programs with its version."""
    request = crew_service_pb2.GetContextRequest(crew=await client.crew_id(crew), key=key)
    entry = (await client.crews.GetContext(request, timeout=CALL_WITHIN_S)).entry
    out.document(_entry(entry) if out.as_json else _value(entry))


async def put(
    client: Client, out: Output, crew: str, key: str, text: str | None, if_version: int | None
) -> None:
    """Set a key, or remove it where `text` is None."""
    request = crew_service_pb2.PutContextRequest(
        request_id=new_id(), crew=await client.crew_id(crew), key=key, if_version=if_version
    )
    if text is not None:
        request.value.CopyFrom(value(text))
    answer = await client.crews.PutContext(request, timeout=CALL_WITHIN_S)
    if out.as_json:
        out.document(answer)
    out.text(f"{key} is at version {answer.version}")


async def list_(client: Client, out: Output, crew: str, prefix: str) -> None:
    """Print keys and values, by key."""
    crew_id = await client.crew_id(crew)

    async def fetch(token: str) -> crew_service_pb2.ListContextResponse:
        request = crew_service_pb2.ListContextRequest(
            crew=crew_id, prefix=prefix, page_size=PAGE_SIZE, page_token=token
        )
        return await client.crews.ListContext(request, timeout=CALL_WITHIN_S)

    entries = [entry async for page in pages(fetch) for entry in page.entries]
    if out.as_json:
        out.document({"entries": [_entry(entry) for entry in entries]})
        return
    rows = [(entry.key, entry.version, json.dumps(_value(entry), ensure_ascii=False)) for entry in entries]
    out.table(("KEY", "VERSION", "VALUE"), rows)


def _entry(entry: crew_service_pb2.ContextEntry) -> dict[str, object]:
    # Not through message_dict: a null value would be left out.
    return {"key": entry.key, "value": _value(entry), "version": str(entry.version)}


def _value(entry: crew_service_pb2.ContextEntry) -> Any:
    return free_json(entry.value)
