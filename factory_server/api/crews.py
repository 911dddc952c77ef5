"""CrewService: decode, call, encode."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from factory_server.api import encode, pages
from factory_server.api.caller import actor
from factory_server.api.encode import Encoder, duration, timestamp
from factory_server.core import filters, model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import OutOfRange
from factory_server.services import assemble, context, disband, update, watch
from factory_server.services.broadcast import Broadcasts, Progress
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.tasks import Tasks
from factory_server.services.vectors import VectorSpaces
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2_grpc, events_pb2
from hyperfactory.v1 import crew_service_pb2 as pb
from wire.policy import current_caller

BOOKMARK_S = 10.0
SHARED_MAX = 32
"""Answers that are kept for subscribers who are as far as the first one; the oldest goes first."""
SHARED_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class CrewUses:
    """The use cases behind CrewService."""

    parts: Parts
    reconciler: Reconciler
    broadcasts: Broadcasts
    tasks: Tasks
    feed: watch.Feed
    encoder: Encoder
    codec: CursorCodec
    draining: asyncio.Event
    vectors: VectorSpaces


class CrewServicer(crew_service_pb2_grpc.CrewServiceServicer):
    """What the contract says of CrewService."""

    def __init__(self, uses: CrewUses) -> None:
        self._u = uses
        self._shared: dict[tuple[str, int, str], pb.WatchCrewResponse] = {}

    # Crews

    async def AssembleCrew(self, request: pb.AssembleCrewRequest, context: Any) -> pb.AssembleCrewResponse:
        done = await assemble.assemble(self._u.parts, self._u.reconciler, request, actor())
        report = pb.AssemblyReport(phases=encode.phases(done.phases), milliseconds=done.milliseconds)
        if done.crew is None:
            return pb.AssembleCrewResponse(report=report)
        for agent in sorted(done.crew.agents, key=lambda a: a.name):
            report.members.append(
                pb.MemberReport(
                    name=agent.name,
                    agent=agent.id,
                    warm=agent.warm,
                    phases=encode.phases(done.members.get(agent.id, ())),
                )
            )
        return pb.AssembleCrewResponse(crew=self._crew(done.crew), report=report)

    async def GetCrew(self, request: pb.GetCrewRequest, context: Any) -> pb.GetCrewResponse:
        return pb.GetCrewResponse(crew=self._crew(await self._u.parts.store.get_crew(request.crew)))

    async def ListCrews(self, request: pb.ListCrewsRequest, context: Any) -> pb.ListCrewsResponse:
        scope = f"crews|{request.filter}"
        mark = await self._u.parts.store.latest_mark()
        page = pages.page_of(self._u.codec, scope, request.page_size, request.page_token)
        found = await self._u.parts.store.list_crews(filters.crew_filter(request.filter), page)
        shown, token = pages.split(self._u.codec, scope, page, found, "id")
        cursor = self._u.codec.encode(_watch_scope(watch.ALL, pb.EventFilter()), mark)
        return pb.ListCrewsResponse(
            crews=[self._crew(row) for row in shown], next_page_token=token, cursor=cursor
        )

    async def UpdateCrew(self, request: pb.UpdateCrewRequest, context: Any) -> pb.UpdateCrewResponse:
        done = await update.update(self._u.parts, self._u.reconciler, request, actor())
        crew = None if done.crew is None else self._crew(done.crew)
        return pb.UpdateCrewResponse(crew=crew, added=done.added, removed=done.removed)

    async def DisbandCrew(self, request: pb.DisbandCrewRequest, context: Any) -> pb.DisbandCrewResponse:
        row = await disband.disband(self._u.parts, self._u.reconciler, request, actor())
        return pb.DisbandCrewResponse(crew=self._crew(row))

    # Signals

    async def Broadcast(
        self, request: pb.BroadcastRequest, context: Any
    ) -> AsyncIterator[pb.BroadcastResponse]:
        row, joined = await self._u.broadcasts.send(request, actor())
        yield pb.BroadcastResponse(accepted=_accepted(row, joined), cursor=self._receipt_cursor(row, 0))
        async for progress in self._u.broadcasts.watch(row.id, 0):
            yield pb.BroadcastResponse(**await self._receipts(progress))

    async def WatchBroadcast(
        self, request: pb.WatchBroadcastRequest, context: Any
    ) -> AsyncIterator[pb.WatchBroadcastResponse]:
        row = await self._u.parts.store.get_broadcast(request.broadcast)
        after = 0
        if request.cursor:
            after = int(self._u.codec.decode(f"receipts|{row.id}", request.cursor))
        yield pb.WatchBroadcastResponse(
            accepted=_accepted(row, True), cursor=self._receipt_cursor(row, after)
        )
        async for progress in self._u.broadcasts.watch(row.id, after):
            yield pb.WatchBroadcastResponse(**await self._receipts(progress))

    async def _receipts(self, progress: Progress) -> dict[str, Any]:
        row = progress.row
        last = progress.receipts[-1].ordinal if progress.receipts else row.targets
        fields: dict[str, Any] = {
            "receipts": [encode.receipt(r) for r in progress.receipts],
            "cursor": self._receipt_cursor(row, last),
        }
        if progress.done:
            fields["completed"] = _summary(row, await self._u.parts.store.read_receipts(row.id, 0))
        return fields

    def _receipt_cursor(self, row: model.BroadcastRow, ordinal: int) -> str:
        return self._u.codec.encode(f"receipts|{row.id}", str(ordinal))

    # Events

    async def WatchCrew(
        self, request: pb.WatchCrewRequest, context: Any
    ) -> AsyncIterator[pb.WatchCrewResponse]:
        scope = _watch_scope(request.crew, request.filter)
        wanted = watch.Wanted(frozenset(request.filter.types), frozenset(request.filter.agents))
        position = self._u.codec.decode(scope, request.cursor) if request.cursor else None
        bookmark_s = seconds(request.bookmark_interval, BOOKMARK_S)
        if request.crew == watch.ALL:
            if position is None:
                position = await self._u.parts.store.latest_mark() if request.from_latest else ""
            yield pb.WatchCrewResponse(
                created=pb.SubscriptionCreated(), cursor=self._u.codec.encode(scope, position)
            )
            batches = watch.watch_all(
                self._u.parts, position, wanted, bookmark_s=bookmark_s, draining=self._u.draining
            )
        else:
            oldest, head = await self._u.parts.store.event_bounds(request.crew)
            after = int(position) if position else (head if request.from_latest else oldest - 1)
            if after + 1 < oldest:
                raise OutOfRange(
                    f"cannot continue: events up to {oldest - 1} were compacted",
                    metadata={"oldest_cursor": self._u.codec.encode(scope, str(oldest - 1))},
                )
            yield pb.WatchCrewResponse(
                created=pb.SubscriptionCreated(oldest_sequence=oldest, head_sequence=head),
                cursor=self._u.codec.encode(scope, str(after)),
            )
            batches = watch.watch_crew(
                self._u.parts,
                self._u.feed,
                request.crew,
                after,
                wanted,
                bookmark_s=bookmark_s,
                on_lag=pb.LagPolicy.Name(request.lag_policy).removeprefix("LAG_POLICY_"),
                draining=self._u.draining,
            )
        async for batch in batches:
            yield self._batch(batch, scope)

    def _batch(self, batch: watch.Batch, scope: str) -> pb.WatchCrewResponse:
        if batch.live:
            return self._live(batch, scope)
        response = self._response(batch, scope)
        if batch.draining:
            response.draining.SetInParent()
        elif batch.skipped:
            response.gap.skipped = batch.skipped
        elif batch.bookmark:
            response.bookmark.SetInParent()
        return response

    def _live(self, batch: watch.Batch, scope: str) -> pb.WatchCrewResponse:
        """Made once for all who are equally far: what lies between two events of a log never changes."""
        key = (scope, batch.events[0].sequence, batch.position)
        response = self._shared.get(key)
        if response is None:
            response = self._response(batch, scope)
            if sum(len(event.data) for event in batch.events) <= SHARED_BYTES_MAX:
                self._shared[key] = response
            if len(self._shared) > SHARED_MAX:
                del self._shared[next(iter(self._shared))]
        self._u.parts.measures.fanout_s.observe(_age_s(self._u.parts.now(), response.events[-1]))
        return response

    def _response(self, batch: watch.Batch, scope: str) -> pb.WatchCrewResponse:
        return pb.WatchCrewResponse(
            events=encode.events(batch.events), cursor=self._u.codec.encode(scope, batch.position)
        )

    async def ListEvents(self, request: pb.ListEventsRequest, context: Any) -> pb.ListEventsResponse:
        scope = f"events|{request.crew}"
        page = pages.page_of(self._u.codec, scope, request.page_size, request.page_token)
        await self._u.parts.store.event_bounds(request.crew)
        found = await self._u.parts.store.read_events(request.crew, int(page.after or 0), page.size + 1)
        shown, token = pages.split(self._u.codec, scope, page, found, "sequence")
        last = shown[-1].sequence if shown else int(page.after or 0)
        cursor = self._u.codec.encode(_watch_scope(request.crew, pb.EventFilter()), str(last))
        return pb.ListEventsResponse(events=encode.events(shown), next_page_token=token, cursor=cursor)

    # Tasks

    async def RunTask(self, request: pb.RunTaskRequest, context: Any) -> AsyncIterator[pb.RunTaskResponse]:
        task, _ = await self._u.tasks.start(request, actor(), current_caller().scopes)
        yield pb.RunTaskResponse(
            accepted=pb.TaskAccepted(task=task.id, agent=task.agent, generation=task.generation)
        )
        async for moved in self._u.tasks.updates(task):
            if isinstance(moved, agent_service_pb2.TaskProgress):
                yield pb.RunTaskResponse(progress=moved)
            else:
                yield pb.RunTaskResponse(result=encode.task_result(moved.result))

    # Context

    async def PutContext(self, request: pb.PutContextRequest, context_: Any) -> pb.PutContextResponse:
        return pb.PutContextResponse(version=await context.put(self._u.parts, request, actor()))

    async def GetContext(self, request: pb.GetContextRequest, context_: Any) -> pb.GetContextResponse:
        row = await context.get(self._u.parts, request.crew, request.key)
        return pb.GetContextResponse(entry=encode.context_entry(row))

    async def ListContext(self, request: pb.ListContextRequest, context_: Any) -> pb.ListContextResponse:
        scope = f"context|{request.crew}|{request.prefix}"
        page = pages.page_of(self._u.codec, scope, request.page_size, request.page_token)
        rows = await context.list_keys(self._u.parts, request.crew, request.prefix)
        rest = [r for r in rows if r.key > page.after]
        shown, token = pages.split(self._u.codec, scope, page, rest, "key")
        return pb.ListContextResponse(entries=[encode.context_entry(r) for r in shown], next_page_token=token)

    async def WatchContext(
        self, request: pb.WatchContextRequest, context_: Any
    ) -> AsyncIterator[pb.WatchContextResponse]:
        changes = context.watch(self._u.parts, request.crew, request.prefix, self._u.draining)
        async for rows, synced in changes:
            yield pb.WatchContextResponse(entries=[encode.context_entry(r) for r in rows], synced=synced)

    # Vectors

    async def UpsertVectors(
        self, request: pb.UpsertVectorsRequest, context_: Any
    ) -> pb.UpsertVectorsResponse:
        return pb.UpsertVectorsResponse(upserted=await self._u.vectors.upsert(request, actor()))

    async def SearchVectors(
        self, request: pb.SearchVectorsRequest, context_: Any
    ) -> pb.SearchVectorsResponse:
        return await self._u.vectors.search(request)

    def _crew(self, row: model.CrewRow) -> Any:
        scope = _watch_scope(row.id, pb.EventFilter())
        return self._u.encoder.crew(row, self._u.codec.encode(scope, str(row.last_sequence)))


def _watch_scope(crew: str, wanted: pb.EventFilter) -> str:
    digest = hashlib.sha256(wanted.SerializeToString(deterministic=True)).hexdigest()[:16]
    return f"watch|{crew}|{digest}"


def _age_s(now: datetime, event: events_pb2.Event) -> float:
    return max(now.timestamp() - event.time.seconds - event.time.nanos / 1e9, 0.0)


def _summary(row: model.BroadcastRow, receipts: Sequence[model.ReceiptRow]) -> pb.BroadcastSummary:
    counts = Counter(r.stage for r in receipts)
    stages = [
        pb.StageCount(stage=events_pb2.ReceiptStage.Value(f"RECEIPT_STAGE_{stage}"), count=count)
        for stage, count in sorted(counts.items())
    ]
    ended = row.done_at or row.created_at
    elapsed = duration((ended - row.created_at).total_seconds())
    return pb.BroadcastSummary(broadcast=row.id, targets=row.targets, stages=stages, elapsed=elapsed)


def _accepted(row: model.BroadcastRow, joined: bool) -> pb.BroadcastAccepted:
    return pb.BroadcastAccepted(
        broadcast=row.id, targets=row.targets, joined=joined, expire_time=timestamp(row.expires_at)
    )
