"""Agents die: each death costs exactly one generation, whatever else does not answer meanwhile."""

from __future__ import annotations

from support.asking import assembled, disbanded
from support.site import Plant, Site, until
from support.valkey import ValkeyServer

from factory_server.core.lifecycle import AgentState, CrewState


async def ready_again(plant: Plant, crew: str, generation: int) -> None:
    async def healed() -> bool:
        row = await plant.store.get_crew(crew)
        return row.state is CrewState.READY and all(
            a.state is AgentState.READY and a.generation >= generation for a in row.agents
        )

    await until(healed, what=f"crew READY at generation {generation}")


async def test_a_killed_agent_is_replaced_once(site: Site, plant: Plant):
    crew = await assembled(plant)
    agent = crew.agents[0]
    assert agent.instance is not None
    site.host.kill(agent.instance.id)
    await ready_again(plant, crew.id, 2)
    assert (await plant.store.get_agent(agent.id)).generation == 2
    gone = await disbanded(plant, crew.id)
    assert gone.state is CrewState.DISBANDED


async def test_a_death_while_the_bus_is_away_costs_one_generation(
    site: Site, plant: Plant, valkey: ValkeyServer
):
    """The bus's silence is not the new instance's failure."""
    crew = await assembled(plant)
    agent = crew.agents[0]
    assert agent.instance is not None
    valkey.stop()
    site.host.kill(agent.instance.id)

    async def second() -> bool:
        return (await plant.store.get_agent(agent.id)).generation >= 2

    await until(second)
    refused = plant.parts.measures.trouble.labels("job")
    await until(lambda: refused._value.get() >= 3, what="the bus was asked in vain")
    valkey.start()
    await ready_again(plant, crew.id, 2)
    assert (await plant.store.get_agent(agent.id)).generation == 2
