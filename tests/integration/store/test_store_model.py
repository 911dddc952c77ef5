"""Random steps against the pure lifecycle: the store and the model never disagree."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.plans import assemble, fill_pool

from factory_server.core import lifecycle
from factory_server.core.lifecycle import NEW_GENERATION, TABLE, AgentEvent, AgentState, CrewState
from factory_server.core.model import CrewRow, InstanceState, Step
from factory_server.store import PostgresStore
from hyperfactory.v1 import events_pb2, types_pb2

E, S = AgentEvent, AgentState
AGENTS = 3
WITHOUT_INSTANCE = (S.HIBERNATING, S.FAILED, S.STOPPED)


@dataclass
class Model:
    """What must be, by the core alone."""

    crew: CrewState
    states: list[AgentState] = field(default_factory=lambda: [S.PROVISIONING] * AGENTS)
    generations: list[int] = field(default_factory=lambda: [1] * AGENTS)
    wish_gone: bool = False

    def step(self, index: int, generation: int, sources: frozenset[AgentState], event: AgentEvent) -> bool:
        """Carry out a step; whether it won."""
        target = lifecycle.advance(self.states[index], event)
        if generation != self.generations[index] or self.states[index] not in sources or target is None:
            return False
        self.states[index] = target
        self.generations[index] += event in NEW_GENERATION
        return True

    def settle(self, min_ready: int) -> None:
        self.crew = lifecycle.crew_state(self.crew, self.wish_gone, False, self.states, min_ready)


ONE = st.tuples(
    st.integers(0, AGENTS - 1),
    st.sampled_from([0, 0, 0, 0, -1, 1]),
    st.one_of(st.just(frozenset(S)), st.frozensets(st.sampled_from(S), min_size=1, max_size=3)),
    st.sampled_from([event for event in E if event is not E.REQUESTED]),
)
CALLS = st.lists(st.one_of(st.lists(ONE, min_size=1, max_size=6), st.just("disband")), max_size=14)
COMMON = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(calls=CALLS, min_ready=st.integers(0, 2))
async def test_random_steps_end_where_the_model_ends(
    store: PostgresStore, calls: list[object], min_ready: int
) -> None:
    crew = await assemble(store, agents=AGENTS, min_ready=min_ready)
    model = Model(crew.state)
    for call in calls:
        if call == "disband":
            await disband(store, crew, model)
        else:
            await take(store, crew, model, call)  # type: ignore[arg-type]
        model.settle(min_ready)
        now = await store.get_crew(crew.id)
        assert [agent.state for agent in now.agents] == model.states
        assert [agent.generation for agent in now.agents] == model.generations
        assert now.state is model.crew
    await check_instances(store, await store.get_crew(crew.id))
    await check_events(store, await store.get_crew(crew.id))


async def take(
    store: PostgresStore,
    crew: CrewRow,
    model: Model,
    drawn: list[tuple[int, int, frozenset[AgentState], AgentEvent]],
) -> None:
    """Give the same steps to both."""
    steps, won = [], []
    for index, lag, sources, event in drawn:
        generation = model.generations[index] + lag
        steps.append(Step(crew.agents[index].id, generation, tuple(sources), event, "factory"))
        won.append(model.step(index, generation, sources, event))
    done = await store.step(crew.id, steps)
    assert [result.agent is not None for result in done.results] == won
    last = {result.agent.id: result.agent for result in done.results if result.agent is not None}
    for agent in last.values():
        assert agent == await store.get_agent(agent.id)


async def disband(store: PostgresStore, crew: CrewRow, model: Model) -> None:
    """Wish the crew gone in both."""
    await store.disband(crew.id, None, "a", failed=False, reason="", message="", drain_s=0)
    if not model.wish_gone:
        model.wish_gone = True
    for index, state in enumerate(model.states):
        if lifecycle.advance(state, E.SHUTDOWN) is not None:
            model.step(index, model.generations[index], frozenset(S), E.SHUTDOWN)


async def check_instances(store: PostgresStore, crew: CrewRow) -> None:
    """Exactly what the states need exists; the rest is dying."""
    rows = [row for row in await store.list_instances() if row.agent in {a.id for a in crew.agents}]
    alive = {(row.agent, row.generation) for row in rows if row.state is not InstanceState.DYING}
    for agent in crew.agents:
        has = agent.instance is not None
        if agent.state in WITHOUT_INSTANCE:
            assert not has
        elif agent.state is not S.DRAINING:
            assert has
        assert ((agent.id, agent.generation) in alive) is has
    assert len(alive) == sum(agent.instance is not None for agent in crew.agents)


async def check_events(store: PostgresStore, crew: CrewRow) -> None:
    """The log alone tells where everything is."""
    events = [event.decode() for event in await store.read_events(crew.id, 0, 10_000)]
    assert [event.sequence for event in events] == list(range(1, crew.last_sequence + 1))
    table = {(row.source or "UNSPECIFIED", row.event, row.target) for row in TABLE}
    now: dict[str, str] = {}
    for event in events:
        if event.type != events_pb2.EVENT_TYPE_AGENT_STATE:
            continue
        source = word(getattr(event.agent_step, "from"))
        assert (source, event.agent_step.event, word(event.agent_step.to)) in table
        assert now.get(event.agent, "UNSPECIFIED") == source
        now[event.agent] = word(event.agent_step.to)
    assert now == {agent.id: agent.state for agent in crew.agents}
    moved = [event.crew_step.to for event in events if event.type == events_pb2.EVENT_TYPE_CREW_STATE]
    assert types_pb2.CrewState.Name(moved[-1]) == f"CREW_STATE_{crew.state}"


def word(state: int) -> str:
    return types_pb2.AgentState.Name(state).removeprefix("AGENT_STATE_")  # type: ignore[arg-type]


@COMMON
@given(calls=st.lists(st.lists(ONE, min_size=1, max_size=6), max_size=8), warm=st.integers(1, 5))
async def test_random_steps_with_a_pool_leak_no_instance(
    store: PostgresStore, calls: list[list[tuple[int, int, frozenset[AgentState], AgentEvent]]], warm: int
) -> None:
    await fill_pool(store, warm)
    crew = await assemble(store, agents=AGENTS)
    for call in calls:
        now = await store.get_crew(crew.id)
        steps = [
            Step(now.agents[i].id, now.agents[i].generation + lag, tuple(sources), event, "factory")
            for i, lag, sources, event in call
        ]
        await store.step(crew.id, steps)
    last = await store.get_crew(crew.id)
    await check_instances(store, last)
    await check_events(store, last)
    for agent in last.agents:
        assert not agent.warm or agent.instance is not None
