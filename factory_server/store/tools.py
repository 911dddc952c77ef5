"""Keep what agents said of their tools, and tell the crew's log what changed."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.rows import DictRow

from factory_server.core import tools
from factory_server.core.tools import KnownOffer, Offer, OfferDelta
from factory_server.store.locked import LockedCrew, lock_crew
from factory_server.store.pool import Part, Transaction
from hyperfactory.v1 import agent_service_pb2, events_pb2


class Tools(Part):
    """One offer an agent: its newest."""

    async def record_offers(self, crew: str, offers: Sequence[Offer]) -> None:
        """Write offers that are not older than what is known, and an event for each that says something else."""

        async def body(transaction: Transaction) -> None:
            locked = await lock_crew(transaction, crew, [offer.agent for offer in offers])
            rows = await transaction.rows("tools_get", agents=[offer.agent for offer in offers])
            known = {row["agent"]: row for row in rows}
            fresh = [offer for offer in offers if _counts(locked, offer, known.get(offer.agent))]
            if not fresh:
                return
            await _put(transaction, fresh)
            for offer in fresh:
                _tell(locked, offer, known.get(offer.agent))
            if locked.events:
                await locked.finish()
            transaction.tools = True

        await self._db.run(body)

    async def offer_delta(self, mark: str) -> OfferDelta:
        """Return offers that changed since `mark`, and the next mark."""

        async def body(transaction: Transaction) -> OfferDelta:
            if mark:
                rows = await transaction.rows("tools_since", mark=mark)
            else:
                rows = await transaction.rows("tools_all")
            # One row without an agent carries the mark when nothing changed.
            return OfferDelta([_known(r) for r in rows if r["agent"] is not None], rows[0]["mark"])

        return await self._db.read(body)


def _counts(crew: LockedCrew, offer: Offer, known: DictRow | None) -> bool:
    """Whether it says something of the present instance of an agent that is not on its way out."""
    agent = crew.agents.get(offer.agent)
    if agent is None or agent.state in tools.GONE or agent.generation != offer.generation:
        return False
    return known is None or (known["generation"], known["revision"]) <= offer.age


async def _put(transaction: Transaction, offers: Sequence[Offer]) -> None:
    await transaction.send(
        "tools_put",
        agents=[o.agent for o in offers],
        generations=[o.generation for o in offers],
        revisions=[o.revision for o in offers],
        reports=[o.report().SerializeToString() for o in offers],
        heard_at=[o.heard_at for o in offers],
        heard_by=[o.heard_by for o in offers],
    )


def _tell(crew: LockedCrew, offer: Offer, known: DictRow | None) -> None:
    before = agent_service_pb2.AgentReport.FromString(known["report"] if known else b"")
    changed = tools.change(before.tools, offer.tools, offer.generation)
    said = [
        events_pb2.Event(type=events_pb2.EVENT_TYPE_CONDITION, condition=condition)
        for condition in tools.turned(before.conditions, offer.conditions)
    ]
    if changed is not None:
        said.insert(0, events_pb2.Event(type=events_pb2.EVENT_TYPE_TOOLS, tools=changed))
    for event in said:
        event.actor, event.agent = f"crew/{crew.id}/agent/{crew.agents[offer.agent].name}", offer.agent
    crew.events += said


def _known(row: DictRow) -> KnownOffer:
    report = agent_service_pb2.AgentReport.FromString(row["report"])
    offer = tools.offered(
        row["agent"],
        row["crew"],
        row["generation"],
        report,
        heard_at=row["heard_at"],
        heard_by=row["heard_by"],
    )
    return KnownOffer(offer, bool(row["heard"]))
