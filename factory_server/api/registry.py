"""FactoryService, the registry side: agents, leases, health, pool, logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from factory_server.api import encode, pages
from factory_server.api.caller import actor
from factory_server.api.encode import Encoder
from factory_server.core import filters
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Refused
from factory_server.services import agents, health, hibernate, pool, wake
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.registry import RegistryFeed
from hyperfactory.v1 import factory_service_pb2 as pb

BOOKMARK_S = 10.0
LOG_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RegistryUses:
    """The use cases behind the registry."""

    parts: Parts
    reconciler: Reconciler
    registry: RegistryFeed
    encoder: Encoder
    codec: CursorCodec
    draining: asyncio.Event


class RegistryMethods:
    """Methods of FactoryService about agents."""

    _u: RegistryUses

    async def SpawnAgent(self, request: pb.SpawnAgentRequest, context: Any) -> pb.SpawnAgentResponse:
        row = await agents.spawn(self._u.parts, self._u.reconciler, request, actor())
        return pb.SpawnAgentResponse(agent=self._u.encoder.agent(row))

    async def StopAgent(self, request: pb.StopAgentRequest, context: Any) -> pb.StopAgentResponse:
        row = await agents.stop(self._u.parts, self._u.reconciler, request, actor())
        return pb.StopAgentResponse(agent=self._u.encoder.agent(row))

    async def GetAgent(self, request: pb.GetAgentRequest, context: Any) -> pb.GetAgentResponse:
        return pb.GetAgentResponse(
            agent=self._u.encoder.agent(await self._u.parts.store.get_agent(request.agent))
        )

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:
        scope = f"agents|{request.filter}"
        page = pages.page_of(self._u.codec, scope, request.page_size, request.page_token)
        found = await self._u.parts.store.list_agents(filters.agent_filter(request.filter), page)
        shown, token = pages.split(self._u.codec, scope, page, found, "id")
        return pb.ListAgentsResponse(agents=[self._u.encoder.agent(r) for r in shown], next_page_token=token)

    async def WatchAgents(
        self, request: pb.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAgentsResponse]:
        where = filters.agent_filter(request.filter)
        bookmark_s = seconds(request.bookmark_interval, BOOKMARK_S)
        changes = self._u.registry.watch(where, bookmark_s=bookmark_s, draining=self._u.draining)
        async for change in changes:
            yield pb.WatchAgentsResponse(
                agents=[self._u.encoder.agent(r) for r in change.agents],
                synced=change.synced,
                draining=change.draining,
            )

    async def HibernateAgent(
        self, request: pb.HibernateAgentRequest, context: Any
    ) -> pb.HibernateAgentResponse:
        row = await hibernate.hibernate(self._u.parts, self._u.reconciler, request, actor())
        return pb.HibernateAgentResponse(agent=self._u.encoder.agent(row))

    async def WakeAgent(self, request: pb.WakeAgentRequest, context: Any) -> pb.WakeAgentResponse:
        row = await wake.wake(self._u.parts, self._u.reconciler, request, actor())
        return pb.WakeAgentResponse(agent=self._u.encoder.agent(row))

    async def RetryAgent(self, request: pb.RetryAgentRequest, context: Any) -> pb.RetryAgentResponse:
        row = await agents.retry(self._u.parts, self._u.reconciler, request, actor())
        return pb.RetryAgentResponse(agent=self._u.encoder.agent(row))

    async def AcquireAgent(self, request: pb.AcquireAgentRequest, context: Any) -> pb.AcquireAgentResponse:
        row = await agents.acquire(self._u.parts, request, actor())
        return pb.AcquireAgentResponse(agent=self._u.encoder.agent(row))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        row = await agents.renew(self._u.parts, request, actor())
        return pb.RenewLeaseResponse(agent=self._u.encoder.agent(row))

    async def ReleaseAgent(self, request: pb.ReleaseAgentRequest, context: Any) -> pb.ReleaseAgentResponse:
        row = await agents.release(self._u.parts, request, actor())
        return pb.ReleaseAgentResponse(agent=self._u.encoder.agent(row))

    async def ReportHealth(self, request: pb.ReportHealthRequest, context: Any) -> pb.ReportHealthResponse:
        condemned, stale = await health.report(self._u.parts, self._u.reconciler, request.reports)
        return pb.ReportHealthResponse(condemned=condemned, stale=stale)

    async def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.GetPoolResponse:
        rows = await pool.get_pools(self._u.parts)
        return pb.GetPoolResponse(pools=[encode.pool(row) for row in rows])

    async def UpdatePool(self, request: pb.UpdatePoolRequest, context: Any) -> pb.UpdatePoolResponse:
        row = await pool.update_pool(self._u.parts, request, actor())
        return pb.UpdatePoolResponse(pool=encode.pool(row))

    async def GetAgentLogs(
        self, request: pb.GetAgentLogsRequest, context: Any
    ) -> AsyncIterator[pb.GetAgentLogsResponse]:
        agent = await self._u.parts.store.get_agent(request.agent)
        if agent.instance is None:
            raise Refused(
                f"agent '{agent.name}' is {agent.state} and has no instance", metadata={"state": agent.state}
            )
        chunks = self._u.parts.driver.logs(
            agent.instance.id, tail_bytes=request.tail_bytes or LOG_TAIL_BYTES, follow=request.follow
        )
        async for chunk in chunks:
            yield pb.GetAgentLogsResponse(chunk=chunk.data, offset=chunk.offset)
