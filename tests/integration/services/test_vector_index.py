"""An index of vectors that is lost, late, hung or contended costs a search some time, and never its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from support.asking import assembled, disbanded
from support.plans import advance
from support.searching import DIMENSION, Searching, searching, some
from support.site import open_site, until
from support.valkey import ValkeyServer

from factory_server.bus import RedisBus, RedisVectorSets, vector_sets
from factory_server.core import vectors
from factory_server.core.lifecycle import AgentEvent
from factory_server.core.vector_index import NOTHING
from factory_server.core.vectors import VectorRow
from factory_server.services import vector_indexing
from factory_server.services.vectors import VectorSpaces

COUNT = 150
QUESTION = [1.0, *[0.1] * (DIMENSION - 1)]
HUNG_SLACK_S = 1.0
CREW = "c1"
MANY = 8


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow with the whole suite beside it is not taken for one that hangs; one that was lost is
    asked again soon."""
    monkeypatch.setattr(vector_sets, "LOOK_MAX_S", vector_sets.COMMAND_MAX_S)
    monkeypatch.setattr(vector_indexing, "PROBE_AGAIN_S", 0.05)


@pytest.fixture
async def one(postgres_url: str, redis8: ValkeyServer) -> AsyncIterator[Searching]:
    """A process that searches with an index."""
    async with searching(postgres_url, redis8.url) as opened:
        yield opened


@pytest.fixture
async def index(redis8: ValkeyServer) -> AsyncIterator[RedisVectorSets]:
    """Only the index."""
    opened = RedisVectorSets(redis8.url)
    yield opened
    await opened.close()


async def indexed_crew(one: Searching) -> str:
    """A crew with an index."""
    crew = await one.crew()
    await one.put(crew, some(COUNT))
    await one.indexed(crew)
    return crew


def keys_of(server: ValkeyServer) -> list[str]:
    with redis.Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
        return sorted(client.keys("crew*"))


async def at_rest(server: ValkeyServer) -> list[str]:
    """The keys, once nobody brings an index up."""
    await until(lambda: not [name for name in keys_of(server) if name.endswith(":claim")], what="no claims")
    return keys_of(server)


def units(count: int) -> list[VectorRow]:
    rows = [VectorRow(ident, vectors.packed(values)) for ident, values in some(count).items()]
    return list(vectors.units(rows))


async def same_as_exact(one: Searching, crew: str, *, approximate: bool) -> None:
    """A search answers as an exact one does, and says how it was found."""
    near, exact = await one.search(crew, QUESTION), await one.search(crew, QUESTION, exact=True)
    assert [(h.vector.id, h.score) for h in near.hits] == [(h.vector.id, h.score) for h in exact.hits]
    assert near.approximate is approximate


# What is lost


async def test_a_flush_leads_to_exact_answers_and_then_to_a_new_index(one: Searching, redis8: ValkeyServer):
    crew = await indexed_crew(one)
    redis8.empty()
    await same_as_exact(one, crew, approximate=False)
    await one.indexed(crew)
    await same_as_exact(one, crew, approximate=True)


@pytest.mark.parametrize("part", ["set", "stamp"])
async def test_half_an_index_is_none(one: Searching, redis8: ValkeyServer, part: str):
    """As an eviction leaves it."""
    crew = await indexed_crew(one)
    gone = [name for name in await at_rest(redis8) if name.endswith("stamp") is (part == "stamp")]
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        assert client.delete(*gone) == 1
    await same_as_exact(one, crew, approximate=False)
    await one.indexed(crew)
    await same_as_exact(one, crew, approximate=True)


async def test_a_server_that_dies_is_missed_by_nobody_and_used_again(one: Searching, redis8: ValkeyServer):
    crew = await indexed_crew(one)
    redis8.stop()
    await same_as_exact(one, crew, approximate=False)
    assert one.indexing is not None
    assert not one.indexing.there
    redis8.start()
    await one.indexed(crew)
    await same_as_exact(one, crew, approximate=True)


async def test_a_server_that_hangs_costs_one_short_wait(
    one: Searching, redis8: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    crew = await indexed_crew(one)
    monkeypatch.setattr(vector_sets, "LOOK_MAX_S", 0.25)
    loop = asyncio.get_running_loop()
    redis8.freeze()
    try:
        began = loop.time()
        assert one.indexing is not None
        assert await one.indexing.candidates(crew, vectors.packed(QUESTION), 10) is None
        assert loop.time() - began < 0.25 + HUNG_SLACK_S
        assert not one.indexing.there
        monkeypatch.setattr(vector_sets, "LOOK_MAX_S", 60.0)
        began = loop.time()
        for _ in range(MANY):
            await same_as_exact(one, crew, approximate=False)
        assert loop.time() - began < MANY * HUNG_SLACK_S
    finally:
        redis8.freeze(frozen=False)
    await one.indexed(crew)
    await same_as_exact(one, crew, approximate=True)


async def test_a_server_without_vector_sets_is_left_alone(postgres_url: str, valkey: ValkeyServer):
    async with searching(postgres_url, valkey.url) as one:
        crew = await one.crew()
        await one.put(crew, some(COUNT))
        assert one.index is not None
        assert one.indexing is not None
        assert not await one.index.probe()
        await same_as_exact(one, crew, approximate=False)
        assert not one.indexing.there
        assert keys_of(valkey) == []


async def test_a_server_that_would_build_indexes_when_it_starts_is_left_alone(
    index: RedisVectorSets, redis8: ValkeyServer
):
    assert await index.probe()
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        client.config_set("appendonly", "yes")
        try:
            assert not await index.probe()
        finally:
            client.config_set("appendonly", "no")


# Writers


async def test_every_answer_knows_what_was_put_before_it_was_asked(one: Searching):
    """While the index is brought up again and again."""
    crew = await indexed_crew(one)
    approximate = 0
    for i in range(25):
        await one.put(crew, {f"v{i % 7:05}": [float(i + 1), *QUESTION[1:]], f"new{i}": [-1.0] * DIMENSION})
        found = await one.search(crew, [float(i + 1), *QUESTION[1:]], limit=1)
        assert [(h.vector.id, h.score) for h in found.hits] == [(f"v{i % 7:05}", 1.0)]
        approximate += found.approximate
    assert approximate
    await one.indexed(crew)
    await same_as_exact(one, crew, approximate=True)


async def test_what_changed_takes_nobodys_place(one: Searching):
    """The index's candidates are vectors that have moved away since, all of them."""
    crew = await one.crew()
    near = {f"near{i:02}": [1.0, 0.001 * i, *[0.0] * (DIMENSION - 2)] for i in range(40)}
    await one.put(crew, some(COUNT) | near)
    await one.indexed(crew)
    await one.put(crew, {ident: [-1.0] * DIMENSION for ident in near})
    found = await one.search(crew, [1.0, *[0.0] * (DIMENSION - 1)])
    exact = await one.search(crew, [1.0, *[0.0] * (DIMENSION - 1)], exact=True)
    assert [h.vector.id for h in found.hits] == [h.vector.id for h in exact.hits]


async def test_an_index_is_brought_up_by_what_changed(one: Searching, redis8: ValkeyServer):
    crew = await indexed_crew(one)
    await at_rest(redis8)
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        client.config_resetstat()
        await one.put(crew, {"new": QUESTION})
        await one.indexed(crew)
        assert client.info("commandstats")["cmdstat_VADD"]["calls"] == 1
    assert [h.vector.id for h in (await one.search(crew, QUESTION, limit=1)).hits] == ["new"]


async def test_two_replicas_and_a_writer_leave_one_whole_index(
    one: Searching, postgres_url: str, redis8: ValkeyServer
):
    crew = await one.crew()
    rows = some(COUNT)
    await one.put(crew, rows)
    async with searching(postgres_url, redis8.url) as two:
        for i in range(10):
            rows |= {f"v{j:05}": values for j, values in enumerate(some(20, seed=9 + i).values())}
            await one.put(crew, {f"v{j:05}": rows[f"v{j:05}"] for j in range(20)})
            async with asyncio.TaskGroup() as group:
                for process in (one, two):
                    group.create_task(process.search(crew, QUESTION))
        await one.indexed(crew)
        await two.indexed(crew)
        await same_as_exact(two, crew, approximate=True)
        assert len(await at_rest(redis8)) == 2
    index = one.index
    assert index is not None
    for ident, values in list(rows.items())[:40]:
        unit = vectors.units([VectorRow("", vectors.packed(values))])[0].coordinates
        found = await index.candidates(crew, unit, 1)
        assert found is not None
        assert list(found.ids) == [ident]


async def test_who_lost_its_claim_spoils_nothing(index: RedisVectorSets, redis8: ValkeyServer):
    """However late its vectors come."""
    late = await index.claim(CREW, 20, DIMENSION)
    assert late is not None
    assert late.revision == NOTHING
    assert await index.claim(CREW, 20, DIMENSION) is None
    assert await index.put(late, units(20))
    assert await index.finish(late, 5, 20)
    late = await index.claim(CREW, 20, DIMENSION)
    assert late is not None
    assert late.revision == 5
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        client.delete(f"crew-vectors:{CREW}:claim")  # as if it had expired
    heir = await index.claim(CREW, 20, DIMENSION)
    assert heir is not None
    assert heir.revision == 5
    wrong = [VectorRow(row.id, units(1)[0].coordinates) for row in units(20)]
    assert not await index.put(late, wrong)
    assert not await index.finish(late, 9, 20)
    await index.abandon(late)
    assert await index.finish(heir, 6, 20)
    found = await index.candidates(CREW, units(20)[7].coordinates, 1)
    assert found is not None
    assert (found.revision, list(found.ids)) == (6, ["v00007"])
    assert len(keys_of(redis8)) == 2


async def test_a_set_that_lost_something_meanwhile_is_no_index(index: RedisVectorSets, redis8: ValkeyServer):
    claim = await index.claim(CREW, 20, DIMENSION)
    assert claim is not None
    assert await index.put(claim, units(10))
    assert not await index.finish(claim, 5, 20)
    assert await index.candidates(CREW, units(1)[0].coordinates, 1) is None
    assert keys_of(redis8) == []


# Room and rights


async def test_indexes_take_only_so_much_memory_together(index: RedisVectorSets):
    much = vector_sets.INDEX_BYTES_MAX // 2 // (DIMENSION + vector_sets.OVERHEAD_BYTES)
    first = await index.claim("c1", much, DIMENSION)
    assert first is not None
    assert await index.claim("c2", much, DIMENSION) is not None
    assert await index.claim("c3", 1_000, DIMENSION) is None
    await index.abandon(first)
    assert await index.claim("c3", 1_000, DIMENSION) is not None


async def test_a_small_server_gives_a_part_of_its_memory(index: RedisVectorSets, redis8: ValkeyServer):
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        client.config_set("maxmemory", "40mb")
        try:
            assert await index.probe()
            assert await index.claim("c1", 9_000, DIMENSION) is None
            assert await index.claim("c1", 7_000, DIMENSION) is not None
        finally:
            client.config_set("maxmemory", "0")


async def test_no_agent_sees_or_spoils_an_index(one: Searching, redis8: ValkeyServer):
    crew = await indexed_crew(one)
    bus = RedisBus(redis8.url, secret=b"test")
    access = await bus.grant(crew, "a1", 1)
    name = next(name for name in keys_of(redis8) if name.endswith(":set"))
    own = ("VADD", f"{access.prefix}v", "VALUES", 1, 1, "a", "CAS")  # which would crash a restart from a file
    with redis.Redis(
        unix_socket_path=str(redis8.socket), username=access.username, password=access.password
    ) as agent:
        for command in (
            ("VCARD", name),
            ("DEL", name),
            ("VREM", name, "v00001"),
            ("SET", f"{name}x", 1),
            own,
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                agent.execute_command(*command)
    await bus.close()


# Ends


async def test_a_crew_that_ends_while_it_is_indexed_leaves_nothing(
    one: Searching, redis8: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vector_indexing, "CHUNK", 1)
    crew = await one.crew()
    await one.put(crew, some(COUNT))
    bus = RedisBus(redis8.url, secret=b"test")
    indexing = one.indexing
    assert indexing is not None
    await until(lambda: indexing.there)
    indexing.want(crew)
    await until(lambda: len(keys_of(redis8)) > 1, what="half an index")
    gone = await one.store.disband(crew, None, "x", failed=False, reason="Done", message="", drain_s=9)
    await advance(one.store, gone.agents, AgentEvent.DRAINED)
    assert await bus.list_crews() == [crew]
    await bus.drop_crew(crew)
    await until(lambda: keys_of(redis8) == [], what="no keys")
    assert not (await one.search(crew, QUESTION)).hits
    await bus.close()


async def test_only_the_crews_own_keys_go_with_it(index: RedisVectorSets, redis8: ValkeyServer):
    bus = RedisBus(redis8.url, secret=b"test")
    await bus.put_context("c2", "x:c1:y", "1", "operator/alice", None)
    with redis.Redis(unix_socket_path=str(redis8.socket)) as client:
        client.set("crew:c2:of:c1:too", "1")
    for crew in ("c1", "c2"):
        claim = await index.claim(crew, 20, DIMENSION)
        assert claim is not None
        assert await index.put(claim, units(20))
        assert await index.finish(claim, 1, 20)
    assert await bus.list_crews() == ["c1", "c2"]
    await bus.drop_crew("c1")
    assert await bus.list_crews() == ["c2"]
    assert len(keys_of(redis8)) == 5
    await bus.drop_crew("c2")
    assert keys_of(redis8) == []
    await bus.close()


async def test_a_factory_on_such_a_bus_indexes_searches_and_clears_up(
    postgres_url: str, redis8: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    """Whole, with real agents on the same bus."""
    async with open_site(postgres_url, redis8.url) as site:
        plant = await site.plant()
        indexing = plant.factory.vector_indexing
        assert indexing is not None
        indexing.index_from = COUNT
        one = Searching(plant.store, plant.parts.measures, None, indexing, plant.factory.vectors)
        crew = (await assembled(plant)).id
        await one.put(crew, some(COUNT))
        await until(lambda: indexing.there)

        async def approximate() -> bool:
            return (await one.search(crew, QUESTION)).approximate

        await until(approximate, what="an index")
        await same_as_exact(one, crew, approximate=True)
        await one.put(crew, {"new": QUESTION})
        assert isinstance(one.spaces, VectorSpaces)
        assert [h.vector.id for h in (await one.search(crew, QUESTION, limit=1)).hits] == ["new"]
        await disbanded(plant, crew)
        await until(lambda: keys_of(redis8) == [], what="no keys")
