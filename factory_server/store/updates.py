"""Change a crew that lives: its manifest, who joins it and who leaves, in one transaction."""

from __future__ import annotations

import json

from factory_server.core import scaling
from factory_server.core.model import CrewPlan, CrewRow, RequestKey
from factory_server.core.ports import Updated
from factory_server.store import encode
from factory_server.store.crews import add_agents, read_crew
from factory_server.store.locked import LockedCrew, lock_crew
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request, find_request
from factory_server.store.steps import shutdown

REASON = "Updated"


class Updates(Part):
    """Updates of crews."""

    async def update_crew(
        self,
        crew: str,
        plan: CrewPlan,
        request: RequestKey,
        actor: str,
        owner: str,
        *,
        drain_s: float,
        lease_s: float,
    ) -> Updated:
        """Make the crew the planned one: the difference is taken under its lock."""

        async def body(transaction: Transaction) -> Updated:
            locked = await lock_crew(transaction, crew, None)
            # Under the crew's lock nobody else can be the first between the look and the claim.
            if (earlier := await find_request(transaction, request)) is not None:
                return Updated(await read_crew(transaction, crew), **json.loads(earlier), replayed=True)
            before = await read_crew(transaction, crew)
            change = scaling.change(before, plan, locked.now)
            names = {"added": [a.name for a in change.added], "removed": [a.name for a in change.removed]}
            await claim_request(transaction, request, json.dumps(names))
            await _carry_out(locked, before, change, actor, drain_s)
            await transaction.send("crew_lease_if_free", crew=crew, owner=owner, lease_s=lease_s)
            return Updated(await read_crew(transaction, crew), **names, replayed=False)

        return await self._db.run(body)


async def _carry_out(
    locked: LockedCrew, before: CrewRow, change: scaling.CrewChange, actor: str, drain_s: float
) -> None:
    manifest = change.manifest
    await locked.transaction.send(
        "crew_update",
        crew=locked.id,
        manifest=manifest.SerializeToString(),
        labels=json.dumps(dict(manifest.labels)),
        min_ready=manifest.policy.min_ready,
        expires_at=change.expires_at,
    )
    locked.min_ready = manifest.policy.min_ready
    locked.events.append(encode.crew_moved(before.state, before.state, actor, REASON, change.summary))
    if change.replicas:
        await locked.transaction.send(
            "agents_regroup", agents=list(change.replicas), replicas=list(change.replicas.values())
        )
        locked.transaction.agents = True
    if change.added:
        await add_agents(locked, change.added, actor)
    await locked.take([shutdown(agent, actor, REASON, "", drain_s) for agent in change.removed])
    await locked.finish()
