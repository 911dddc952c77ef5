"""Keep profiles, each version by its digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg.rows import DictRow

from factory_server.core.errors import NotFound, Stale
from factory_server.core.model import Page, ProfileRow, RequestKey
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request
from hyperfactory.v1 import types_pb2


class Profiles(Part):
    """Named profiles at their newest version."""

    async def create_profile(self, row: ProfileRow, request: RequestKey | None) -> ProfileRow:
        """Make a profile at version 1."""

        async def body(transaction: Transaction) -> ProfileRow:
            if await claim_request(transaction, request, row.name) is not None:
                return await _read(transaction, row.name)
            return await _keep(transaction, await transaction.one("profile_insert", **_values(row)))

        return await self._db.run(body)

    async def get_profile(self, name: str) -> ProfileRow:
        """Return a profile."""

        async def body(transaction: Transaction) -> ProfileRow:
            return await _read(transaction, name)

        return await self._db.read(body)

    async def get_profiles(self, names: Sequence[str]) -> Mapping[str, ProfileRow]:
        """Return those that exist."""

        async def body(transaction: Transaction) -> Mapping[str, ProfileRow]:
            rows = await transaction.rows("profiles_get", names=list(names))
            return {row["name"]: _profile_row(row) for row in rows}

        return await self._db.read(body)

    async def list_profiles(self, page: Page) -> Sequence[ProfileRow]:
        """Return profiles by name, at most page.size + 1."""

        async def body(transaction: Transaction) -> Sequence[ProfileRow]:
            rows = await transaction.rows("profile_list", after=page.after, size=page.size + 1)
            return [_profile_row(row) for row in rows]

        return await self._db.read(body)

    async def update_profile(
        self, row: ProfileRow, expect_version: int, request: RequestKey | None
    ) -> ProfileRow:
        """Write version expect_version + 1."""

        async def body(transaction: Transaction) -> ProfileRow:
            if await claim_request(transaction, request, row.name) is not None:
                return await _read(transaction, row.name)
            written = await transaction.row("profile_update", expect=expect_version, **_values(row))
            if written is None:
                present = await _read(transaction, row.name)
                raise Stale(
                    f"cannot update profile '{row.name}': version {present.version} is not {expect_version}",
                    metadata={"version": str(present.version)},
                )
            return await _keep(transaction, written)

        return await self._db.run(body)

    async def ensure_profile(self, row: ProfileRow) -> None:
        """Make or update a built-in profile; no change where the digest is the same."""

        async def body(transaction: Transaction) -> None:
            values = _values(row)
            written = await transaction.row("profile_insert_if_missing", **values)
            written = written or await transaction.row("profile_refresh", **values)
            if written is not None:
                await _keep(transaction, written)

        await self._db.run(body)


async def _read(transaction: Transaction, name: str) -> ProfileRow:
    row = await transaction.row("profile_get", name=name)
    if row is None:
        raise NotFound(f"no profile '{name}'", resource_type="profile", resource_name=name)
    return _profile_row(row)


async def _keep(transaction: Transaction, row: DictRow) -> ProfileRow:
    """Remember this version for agents that were made from it."""
    await transaction.send(
        "profile_keep_version",
        name=row["name"],
        version=row["version"],
        digest=row["digest"],
        spec=row["spec"],
        image_digest=row["image_digest"],
    )
    return _profile_row(row)


def _values(row: ProfileRow) -> dict[str, object]:
    return {
        "name": row.name,
        "digest": row.digest,
        "spec": row.spec.SerializeToString(),
        "stage": row.stage,
        "description": row.description,
        "image_digest": row.image_digest,
    }


def _profile_row(r: DictRow) -> ProfileRow:
    return ProfileRow(
        name=r["name"],
        version=r["version"],
        digest=r["digest"],
        spec=types_pb2.ProfileSpec.FromString(r["spec"]),
        stage=r["stage"],
        description=r["description"],
        created_at=r["created_at"],
        updated_at=r["updated_at"],
        image_digest=r["image_digest"],
    )
