"""Follow events, and take a broken stream up where it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import grpc

from factory_cli.client import Client
from factory_cli.failures import UsageFailedError
from factory_cli.narrate import Narrator
from factory_cli.output import Output
from hyperfactory.v1 import crew_service_pb2, events_pb2

RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 5.0
RECONNECT_ATTEMPTS = 20
"""In a row; about a minute and a half without a server."""
_PREFIX = "EVENT_TYPE_"


@dataclass(frozen=True, slots=True)
class Watch:
    """Which events of which crew, from where."""

    crew: str
    cursor: str = ""
    from_latest: bool = False
    types: tuple[str, ...] = ()
    count: int = 0
    """Stop after so many events; 0: never."""
    idle_s: float = 0.0
    """Stop when no event came for so long; 0: never."""

    async def run(self, client: Client, out: Output) -> None:
        """Print events until told to stop."""
        crew = self.crew if self.crew == "-" else await client.crew_id(self.crew)
        told = Told(out, left=self.count)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.idle_s or None) as limit:
                async for response in events_of(client, replace(self, crew=crew)):
                    told.tell(response)
                    if self.count and not told.left:
                        break
                    if self.idle_s and response.events:
                        limit.reschedule(loop.time() + self.idle_s)
        except TimeoutError:
            pass  # nothing came for as long as was asked
        out.note(f"cursor: {told.cursor}")

    def request(self, cursor: str) -> crew_service_pb2.WatchCrewRequest:
        """Write the request that continues after `cursor`."""
        return crew_service_pb2.WatchCrewRequest(
            crew=self.crew,
            cursor=cursor,
            filter=crew_service_pb2.EventFilter(types=[_event_type(name) for name in self.types]),
            from_latest=self.from_latest and not cursor,
        )


@dataclass(slots=True)
class Told:
    """What was printed so far."""

    out: Output
    left: int
    cursor: str = ""
    narrator: Narrator = field(default_factory=Narrator)

    def tell(self, response: crew_service_pb2.WatchCrewResponse) -> None:
        """Print a response's events, but no more than are left."""
        if not 0 < self.left < len(response.events):  # else a resume must bring the rest of this response
            self.cursor = response.cursor or self.cursor
        if response.WhichOneof("control") == "gap":
            self.out.note(f"{response.gap.skipped} events were skipped")
        for event in response.events[: self.left or None]:
            if self.out.as_json:
                self.out.line(event)
            else:
                self.out.text(self.narrator.tell(event))
            self.left = max(0, self.left - 1)


async def events_of(client: Client, watch: Watch) -> AsyncIterator[crew_service_pb2.WatchCrewResponse]:
    """Yield responses for ever: after a cut or `draining`, go on from the last cursor."""
    cursor, failures = watch.cursor, 0
    while True:
        try:
            async for response in client.crews.WatchCrew(watch.request(cursor)):
                cursor, failures = response.cursor or cursor, 0
                yield response
        except grpc.aio.AioRpcError as error:
            failures += 1
            if error.code() is not grpc.StatusCode.UNAVAILABLE or failures > RECONNECT_ATTEMPTS:
                raise
        await asyncio.sleep(min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2**failures))


def _event_type(name: str) -> events_pb2.EventType.ValueType:
    try:
        return events_pb2.EventType.Value(_PREFIX + name.upper().replace("-", "_").removeprefix(_PREFIX))
    except ValueError:
        known = ", ".join(key.removeprefix(_PREFIX).lower() for key in list(events_pb2.EventType.keys())[1:])
        raise UsageFailedError(f"there is no event type '{name}'; there are: {known}") from None
