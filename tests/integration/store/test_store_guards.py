"""The database refuses by itself what the programs must not do, whatever plan or hand writes it."""

from __future__ import annotations

import psycopg
import pytest
from support.plans import advance, assemble, fill_pool, ready_agent, step

from factory_server.core.errors import Stale
from factory_server.core.lifecycle import TABLE, AgentEvent, AgentState
from factory_server.core.lifecycle import advance as next_state
from factory_server.core.model import AgentRow
from factory_server.store import PostgresStore, moves
from factory_server.store.errors import CONSTRAINTS
from factory_server.store.locked import lock_crew
from factory_server.store.named import QUERIES, parse
from factory_server.store.pool import Transaction
from hyperfactory.v1 import events_pb2

E, S = AgentEvent, AgentState

DEFECTS = {
    "agent_busy_is_held",
    "agent_generation_starts",
    "agent_health_pkey",
    "agent_of_crew",
    "agent_state_of_agent",
    "agent_state_pkey",
    "agent_tools_of_agent",
    "agent_tools_pkey",
    "agent_transition_pkey",
    "audit_pkey",
    "broadcast_finals_range",
    "broadcast_of_crew",
    "broadcast_pkey",
    "context_pkey",
    "crew_end_is_wished",
    "crew_state_known",
    "instance_of_agent",
    "instance_owned_has_agent",
    "instance_state_known",
    "instance_warm_is_free",
    "network_owned_has_crew",
    "network_pkey",
    "network_prefix_range",
    "network_ready_is_free",
    "network_state_known",
    "pool_count_pkey",
    "pool_pkey",
    "pool_target_range",
    "profile_version_of_profile",
    "receipt_final_is_counted",
    "receipt_of_broadcast",
    "receipt_pkey",
    "receipt_stage_known",
    "request_pkey",
    "schema_migration_pkey",
    "secret_pkey",
    "skill_pack_size",
    "task_ends_once",
    "task_of_agent",
    "task_phase_known",
    "task_pkey",
    "vector_of_space",
    "vector_pkey",
    "vector_space_dimension_range",
    "vector_space_of_crew",
    "vector_space_pkey",
}
"""Constraints that no caller can violate: a violation is a defect, logged and answered as INTERNAL."""
RAISED_BY_TRIGGER = {"agent_transition_known", "agent_generation_rises"}


async def put_state(url: str, agent: str, source: AgentState) -> None:
    """Bring an agent to a state behind the guard's back."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("ALTER TABLE agent DISABLE TRIGGER agent_guard_update")
        await connection.execute(
            "UPDATE agent SET state = %s, lease_holder = 'x' WHERE id = %s", [source, agent]
        )
        await connection.execute("ALTER TABLE agent ENABLE TRIGGER agent_guard_update")


@pytest.mark.parametrize("source", list(S))
async def test_a_handwritten_update_reaches_only_what_the_table_allows(
    store: PostgresStore, postgres_url: str, source: AgentState
) -> None:
    agent = (await assemble(store)).agents[0]
    allowed = {row.target for row in TABLE if row.source is source} | {source}
    await put_state(postgres_url, agent.id, source)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        for target in S:
            update = "UPDATE agent SET state = %s WHERE id = %s"
            if target in allowed:
                await connection.execute(update, [target, agent.id])
            else:
                with pytest.raises(psycopg.errors.CheckViolation) as caught:
                    await connection.execute(update, [target, agent.id])
                assert caught.value.diag.constraint_name == "agent_transition_known"
            await connection.rollback()


async def test_an_agent_can_only_begin_where_the_table_begins(
    store: PostgresStore, postgres_url: str
) -> None:
    agent = (await assemble(store)).agents[0]
    copy = """
        INSERT INTO agent SELECT (jsonb_populate_record(a, '{"id": "new", "uid": "new", "name": "new",
          "state": "READY"}')).* FROM agent a WHERE id = %s"""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        with pytest.raises(psycopg.errors.CheckViolation):
            await connection.execute(copy, [agent.id])


async def test_a_generation_never_falls(store: PostgresStore, postgres_url: str) -> None:
    agent = await ready_agent(store)
    sick = (await advance(store, [agent], E.HEALTH_FAILED))[0]
    await advance(store, [sick], E.REPLACE)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            await connection.execute("UPDATE agent SET generation = 1 WHERE id = %s", [agent.id])
        assert caught.value.diag.constraint_name == "agent_generation_rises"


@pytest.mark.parametrize("plant", ["state", "generation"])
async def test_a_plan_from_stale_rows_is_refused_whole(
    store: PostgresStore, postgres_url: str, plant: str
) -> None:
    """What a forgotten lock would do: the rows change between the reading and the writing."""
    agent = await ready_agent(store)
    before = await store.get_crew(agent.crew)

    async def body(transaction: Transaction) -> None:
        crew = await lock_crew(transaction, agent.crew, [agent.id])
        change = {
            "state": "UPDATE agent SET state = 'UNHEALTHY' WHERE id = %s",
            "generation": "UPDATE agent SET generation = generation + 1 WHERE id = %s",
        }[plant]
        async with await psycopg.AsyncConnection.connect(postgres_url) as other:
            await other.execute(change, [agent.id])
        await crew.take([step(agent, E.HEALTH_FAILED)])
        await crew.finish()

    with pytest.raises(Stale, match="another writer was first"):
        await store._db.run(body)
    after = await store.get_crew(agent.crew)
    assert after.last_sequence == before.last_sequence


async def test_a_move_outside_the_table_is_not_stored(store: PostgresStore) -> None:
    agent = await ready_agent(store)

    async def body(transaction: Transaction) -> None:
        crew = await lock_crew(transaction, agent.crew, [agent.id])
        wrong = _with_state(agent, S.PROVISIONING)
        plan = moves.Plan(agents={agent.id: wrong}, moves=[moves.Move(agent, E.REPLACE, wrong, "x")])
        await crew.write(plan)
        await crew.finish()

    with pytest.raises(Stale):
        await store._db.run(body)
    assert (await store.get_agent(agent.id)).state is S.READY


def _with_state(agent: AgentRow, state: AgentState) -> AgentRow:
    fields = {name: getattr(agent, name) for name in agent.__slots__}
    return AgentRow(**{**fields, "state": state})


async def test_a_claim_takes_as_many_as_it_asks_under_any_plan(store: PostgresStore) -> None:
    """Under nested loops, `WHERE id IN (SELECT ... LIMIT 1 FOR UPDATE SKIP LOCKED)` claims every row."""
    await fill_pool(store, 50)

    async def body(transaction: Transaction) -> int:
        for setting in ("hashjoin", "mergejoin", "hashagg", "sort", "material"):
            await transaction.connection.execute(f"SET LOCAL enable_{setting} = off".encode())
        await transaction.connection.execute(b"SET LOCAL enable_seqscan = on")
        await transaction.send("crews_lease", owner="x", lease_s=1.0, limit=1)
        rows = await transaction.rows(
            "instances_claim", crew="", base="python", count=1, agents=[agent.id], generations=[1]
        )
        return len(rows)

    agent = (await assemble(store, base="other")).agents[0]
    await store.release_instance(f"{agent.uid}-g1")
    assert await store._db.run(body) == 1
    assert (await store.get_pools())[0].ready == 49


async def test_transactions_are_ordered_as_numbers(store: PostgresStore, postgres_url: str) -> None:
    crew = await assemble(store)
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("UPDATE event SET xid = (8 + sequence)::text::xid8")
    seen, mark = [], ""
    while True:
        batch, mark = await store.read_all_events(mark, 1)
        if not batch:
            break
        seen += [event.sequence for event in batch]
    await store.append(crew.id, [events_pb2.Event()] * 2)
    assert seen == list(range(1, crew.last_sequence + 1))
    assert [event.sequence for event in (await store.read_all_events(mark, 9))[0]] == [3, 4]


async def test_the_table_in_the_database_is_the_core_s(store: PostgresStore, postgres_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("DELETE FROM agent_transition WHERE event = 'replace'")
        await connection.execute("INSERT INTO agent_transition VALUES ('READY', 'replace', 'PROVISIONING')")
    again = PostgresStore(postgres_url)
    await again.open()
    await again.close()
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        rows = await (
            await connection.execute("SELECT source, event, target FROM agent_transition")
        ).fetchall()
    assert set(rows) == {(row.source or "", row.event, row.target) for row in TABLE}
    assert all(
        next_state(S(source) if source else None, E(event)) == target for source, event, target in rows
    )


async def test_every_constraint_has_a_meaning(store: PostgresStore, postgres_url: str) -> None:
    query = """
        SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
        UNION SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indisunique AND c.relnamespace = 'public'::regnamespace"""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        rows = await (await connection.execute(query)).fetchall()
    names = {name for (name,) in rows} | RAISED_BY_TRIGGER
    assert names == set(CONSTRAINTS) | DEFECTS
    assert not set(CONSTRAINTS) & DEFECTS


async def test_every_query_is_one_that_postgres_understands(store: PostgresStore) -> None:
    async def body(transaction: Transaction) -> None:
        for number, (name, query) in enumerate(QUERIES.items()):
            if name.startswith(("migration_", "begin", "commit")):
                continue
            cursor = psycopg.AsyncCursor(transaction.connection)
            converted = psycopg._queries.PostgresQuery(psycopg.adapt.Transformer(cursor))
            converted.convert(query, _Anything())
            await transaction.connection.execute(b"PREPARE q%d AS " % number + converted.query, prepare=False)

    await store._db.run(body)


class _Anything(dict):  # type: ignore[type-arg]
    """Any parameter, of no known type."""

    def __missing__(self, key: str) -> None:
        return None

    def __contains__(self, key: object) -> bool:
        return True


def test_a_query_named_twice_is_a_defect() -> None:
    assert parse("-- why\n\n-- name: a\nSELECT 1;\n\n-- name: b\nSELECT 2;\n") == {
        "a": b"SELECT 1",
        "b": b"SELECT 2",
    }
