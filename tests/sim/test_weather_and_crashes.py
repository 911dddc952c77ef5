"""Whatever the weather and wherever the factory dies: no harm is done, and all comes right when it clears."""

from __future__ import annotations

import os
import random

import pytest
from support.site import Site
from world import Life, Weather

from factory_server.core.lifecycle import CrewState

CALLS_OF_A_LIFE = 260
"""About as many port calls as a calm life has: crashes are drawn among the first so many."""
LIVES = int(os.environ.get("HYPERFACTORY_SIM_LIVES", "6"))
"""Of each kind; `make test` has 15 minutes for everything, the nights are longer."""


async def live(life: Life) -> None:
    """A crew's whole life."""
    crew = await life.assemble()
    assert crew.state is CrewState.READY or life.weather.crash_at or life.weather.severity
    await life.broadcast()
    await life.kill_one()
    await life.task()
    grown = await life.update(agents=life.agents + 1)
    assert len(grown.agents) == life.agents + 1
    await life.stop(crew.agents[1].id)
    await life.broadcast()


async def end(life: Life) -> None:
    await life.clear_up()
    await life.check_liveness()
    await life.disband()
    await life.check_liveness()


async def test_a_calm_life_wastes_nothing(site: Site):
    life = Life(site, Weather(0, severity=0.0000001))
    await live(life)
    await end(life)
    assert life.weather.calls < 2 * CALLS_OF_A_LIFE, "port calls of a whole life"


@pytest.mark.parametrize("seed", range(LIVES))
async def test_in_a_storm(site: Site, seed: int):
    life = Life(site, Weather(seed))
    await live(life)
    await end(life)


@pytest.mark.parametrize("seed", range(100, 100 + LIVES))
async def test_in_a_storm_with_crashes(site: Site, seed: int):
    dice = random.Random(seed)
    points = frozenset(dice.sample(range(20, 2 * CALLS_OF_A_LIFE), 3))
    life = Life(site, Weather(seed, crash_at=points))
    await live(life)
    await end(life)


@pytest.mark.parametrize("seed", [200, 201, 225])
async def test_a_bridged_crew_in_a_storm_with_crashes(site: Site, seed: int):
    points = frozenset(random.Random(seed).sample(range(20, 2 * CALLS_OF_A_LIFE), 3))
    life = Life(site, Weather(seed, crash_at=points), bridged=True)
    await live(life)
    await end(life)


@pytest.mark.parametrize("point", range(10, CALLS_OF_A_LIFE, CALLS_OF_A_LIFE // (LIVES + 2)))
async def test_a_factory_that_dies_at_one_point_of_a_calm_life(site: Site, point: int):
    life = Life(site, Weather(point, severity=0.0000001, crash_at=frozenset({point})))
    await live(life)
    await end(life)
    assert life.crashes == 1


@pytest.mark.parametrize("seed", range(200, 200 + LIVES))
async def test_a_factory_that_dies_while_a_crew_is_disbanded(site: Site, seed: int):
    life = Life(site, Weather(seed))
    await life.assemble()
    await life.broadcast()
    begun = life.weather.calls
    points = random.Random(seed).sample(range(1, 40), 2)
    life.weather.crash_at = frozenset(begun + point for point in points)
    await life.disband()
    await life.clear_up()
    await life.check_liveness()
