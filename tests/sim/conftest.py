"""A machine of model agents on which time passes quickly: nets are tight, leases short."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from model_agents import ModelAgents
from support.site import Site, open_site
from support.valkey import ValkeyServer, running_valkey

from factory_server.services import agents, assemble, broadcast, keeper, reconciler, sessions, sweeper, tasks

QUICK = {
    (reconciler, "LEASE_S"): 0.9,
    (assemble, "LEASE_S"): 0.9,
    (agents, "LEASE_S"): 0.9,
    (reconciler, "SCAN_S"): 0.2,
    (reconciler, "SWEEP_S"): 0.3,
    (reconciler, "REAP_S"): 0.3,
    (keeper, "LOOK_AGAIN_S"): 0.5,
    (keeper, "TROUBLE_PAUSE_S"): 0.02,
    (broadcast, "RECORD_AGAIN_S"): 0.02,
    (sessions, "RETRY_MAX_S"): 0.1,
    (sweeper, "CREATE_DEADLINE_S"): 1.0,
    (sweeper, "CREATE_SLACK_S"): 0.2,
    (tasks, "LEASE_S"): 0.9,
    (tasks, "RENEW_S"): 0.2,
    (tasks, "SESSION_WITHIN_S"): 1.0,
}


@pytest.fixture(scope="session")
def sim_valkey_server() -> Iterator[ValkeyServer]:
    """The session's server."""
    with running_valkey() as server:
        yield server


@pytest.fixture
async def site(
    postgres_url: str, sim_valkey_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """A machine without a factory."""
    from factory_server.drivers.fake import silent_agent

    for (module, name), value in QUICK.items():
        monkeypatch.setattr(module, name, value)
    sim_valkey_server.empty()
    models = ModelAgents()
    opened = open_site(postgres_url, sim_valkey_server.url, agent=silent_agent, open_line=models.open_line)
    async with opened as made:
        models.host = made.host
        yield made
