"""A crew's vectors through the gateway: put, found exactly, refused by field, gone with the crew."""

from __future__ import annotations

import math

import grpc
import pytest
from running import CALL_WITHIN_S, request_id

from hyperfactory.v1 import crew_service_pb2 as pb
from wire.status import from_rpc_error

NAMES = {"north": (0, 1), "east": (1, 0), "northeast": (1, 1)}


def vector(name: str, *values: float) -> pb.Vector:
    made = pb.Vector(id=name, values=values)
    made.metadata.update({"name": name})
    return made


async def upsert(client, crew: str, *vectors: pb.Vector, request: str = "") -> int:
    asked = pb.UpsertVectorsRequest(request_id=request or request_id(), crew=crew, vectors=vectors)
    done = await client.crews.UpsertVectors(asked, timeout=CALL_WITHIN_S, metadata=client.metadata)
    return done.upserted


async def search(client, crew: str, *values: float, limit: int = 2) -> list[pb.VectorHit]:
    asked = pb.SearchVectorsRequest(crew=crew, values=values, limit=limit)
    found = await client.crews.SearchVectors(asked, timeout=CALL_WITHIN_S, metadata=client.metadata)
    return list(found.hits)


async def test_vectors_are_found_replaced_refused_and_gone_with_the_crew(client):
    crew = (await client.assemble(name="v", members=[{"name": "one", "profile": "generic"}], context={})).id
    assert await search(client, crew, 1, 0) == []
    first = request_id()
    for _ in range(2):
        assert await upsert(client, crew, *(vector(n, *v) for n, v in NAMES.items()), request=first) == 3
    hits = await search(client, crew, 0.1, 5)
    assert [hit.vector.id for hit in hits] == ["north", "northeast"]
    assert hits[0].score == pytest.approx(5 / math.hypot(0.1, 5), abs=1e-5)
    assert hits[0].vector.metadata["name"] == "north"
    assert list(hits[1].vector.values) == [1, 1]

    assert len(await search(client, crew, 1, 1, limit=0)) == 3, "as many as there are, up to 10"

    await upsert(client, crew, vector("north", -1, -1))
    assert [hit.vector.id for hit in await search(client, crew, 0.1, 5)] == ["northeast", "east"]

    for wrong, field in (((math.nan, 1), "vectors[0].values[0]"), ((1, 2, 3), "vectors[0].values")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await upsert(client, crew, vector("x", *wrong))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc_error(refused.value).violations[0].field == field
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await search(client, crew, 1, 2, 3)
    assert from_rpc_error(refused.value).violations[0].field == "values"

    await client.disband(crew)
    assert await search(client, crew, 1, 0) == []
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await upsert(client, crew, vector("x", 1, 2))
    assert late.value.code() is grpc.StatusCode.FAILED_PRECONDITION
