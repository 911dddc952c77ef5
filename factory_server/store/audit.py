"""Keep who did what, the factory's own secrets, and the time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from factory_server.core.errors import Invalid
from factory_server.core.model import AuditRow, Page
from factory_server.store.encode import text
from factory_server.store.pool import Part, Transaction

SECRET_BYTES = 32
LAST_ID = 2**63 - 1


class Audit(Part):
    """The audit log, and small things that belong to no crew."""

    async def secret(self, name: str) -> bytes:
        """Return 32 random bytes under this name, made once for all replicas."""
        fresh = secrets.token_bytes(SECRET_BYTES)

        async def body(transaction: Transaction) -> bytes:
            await transaction.send("secret_make", name=name, value=fresh)
            return bytes((await transaction.one("secret_get", name=name))["value"])

        return await self._db.run(body)

    async def audit(self, rows: Sequence[AuditRow]) -> None:
        """Append."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("commit_asynchronously")
            await transaction.send(
                "audit_append",
                actors=[text(row.actor) for row in rows],
                methods=[text(row.method) for row in rows],
                resources=[text(row.resource) for row in rows],
                peers=[text(row.peer) for row in rows],
                outcomes=[text(row.outcome) for row in rows],
                reasons=[text(row.reason) for row in rows],
            )

        if rows:
            await self._db.run(body)

    async def list_audit(self, page: Page) -> Sequence[AuditRow]:
        """Return rows, newest first, at most page.size + 1."""
        if page.after and not page.after.isdecimal():
            raise Invalid(f"cannot list audit rows after '{page.after}'", reason="CURSOR_INVALID")
        before = int(page.after) if page.after else LAST_ID

        async def body(transaction: Transaction) -> Sequence[AuditRow]:
            rows = await transaction.rows("audit_list", before=before, size=page.size + 1)
            return [AuditRow(**row) for row in rows]

        return await self._db.read(body)

    async def now(self) -> datetime:
        """Return the database's clock."""

        async def body(transaction: Transaction) -> datetime:
            moment: datetime = (await transaction.one("database_now"))["now"]
            return moment

        return await self._db.read(body)
