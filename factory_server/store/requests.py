"""Remember requests for a day, so that the same one has one effect."""

from __future__ import annotations

from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.model import RequestKey
from factory_server.store.pool import Part, Transaction


class Requests(Part):
    """Idempotency keys for whoever has no transaction of the store to put them in."""

    async def find_request(self, request: RequestKey) -> str | None:
        """Return the reference stored for an earlier request with this key."""

        async def body(transaction: Transaction) -> str | None:
            return await find_request(transaction, request)

        return await self._db.read(body)

    async def save_request(self, request: RequestKey, reference: str) -> str:
        """Store the reference of a request once; return the one that stands."""

        async def body(transaction: Transaction) -> str:
            return await claim_request(transaction, request, reference) or reference

        return await self._db.run(body)


async def claim_request(transaction: Transaction, request: RequestKey | None, reference: str) -> str | None:
    """Claim a request for this transaction; what it referred to, if it came before.

    While another transaction with the same key is open, this waits for its end.
    """
    if request is None:
        return None
    claimed = await transaction.row(
        "request_claim",
        actor=request.actor,
        method=request.method,
        request_id=request.request_id,
        request_hash=request.request_hash,
        reference=reference,
    )
    return None if claimed else await find_request(transaction, request)


async def find_request(transaction: Transaction, request: RequestKey) -> str | None:
    """What an earlier request with this key referred to. Invalid (REQUEST_ID_REUSED)."""
    row = await transaction.row(
        "request_find", actor=request.actor, method=request.method, request_id=request.request_id
    )
    if row is None:
        return None
    if row["request_hash"] != request.request_hash:
        violation = FieldViolation("request_id", "was used for another request", "REQUEST_ID_REUSED")
        raise Invalid(
            f"cannot repeat request '{request.request_id}': it came before with other fields",
            reason="REQUEST_ID_REUSED",
            metadata={"request_id": request.request_id},
            violations=[violation],
        )
    return str(row["reference"])
