"""Keep skill packs by content, and in each agent's row which of them it has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from psycopg.rows import DictRow

from factory_server.core.errors import Exhausted, NotFound, Refused
from factory_server.core.lifecycle import SERVING
from factory_server.core.model import AgentRow, Page, RequestKey
from factory_server.core.skills import ENTRY, Pack, PackFile, PackRow, SkillRef, describe
from factory_server.store import encode
from factory_server.store.locked import lock_agent
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request
from hyperfactory.v1 import events_pb2, types_pb2

PACKS_MAX: Final = 2000
BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
OF_AGENT_MAX: Final = 32


class Skills(Part):
    """Packs stay once they are stored, referred to or not; how many there may be is bounded."""

    async def publish_skill(
        self, row: PackRow, content: bytes, request: RequestKey | None
    ) -> tuple[PackRow, bool]:
        """Store a pack; second value: the same content was there before, and is now as signed here."""

        async def body(transaction: Transaction) -> tuple[PackRow, bool]:
            await transaction.rows("skill_lock")
            await claim_request(transaction, request, row.pack.digest)
            if await transaction.row("skill_get", digest=row.pack.digest) is not None:
                await transaction.send("skill_renew", content=content, **_values(row))
                return _row(await transaction.one("skill_get", digest=row.pack.digest)), True
            totals = await transaction.one("skill_totals")
            if totals["packs"] >= PACKS_MAX or totals["bytes"] + len(content) > BYTES_MAX:
                raise Exhausted(
                    f"cannot keep more than {PACKS_MAX} skill packs of {BYTES_MAX} bytes", quota="skill packs"
                )
            await transaction.send("skill_insert", content=content, **_values(row))
            return _row(await transaction.one("skill_get", digest=row.pack.digest)), False

        return await self._db.run(body)

    async def get_skill(self, name: str, digest: str) -> PackRow:
        """Return a pack, or without a digest the newest of the name."""

        async def body(transaction: Transaction) -> PackRow:
            if digest:
                found = await transaction.row("skill_get", digest=digest)
            else:
                found = await transaction.row("skill_newest", name=name)
            if found is None or found["name"] != name:
                which = f"{name}@{digest}" if digest else name
                raise NotFound(f"no skill pack '{which}'", resource_type="skill", resource_name=which)
            return _row(found)

        return await self._db.read(body)

    async def get_skills(self, refs: Sequence[SkillRef]) -> Mapping[SkillRef, PackRow]:
        """Return those that exist."""

        async def body(transaction: Transaction) -> Mapping[SkillRef, PackRow]:
            rows = await transaction.rows("skills_get", digests=[ref.digest for ref in refs])
            found = {SkillRef(row["name"], row["digest"]): row for row in rows}
            return {ref: _row(found[ref]) for ref in refs if ref in found}

        return await self._db.read(body) if refs else {}

    async def skill_entry(self, pack: Pack) -> bytes:
        """Return what is kept of a pack's SKILL.md, without the rest of its content."""
        before = sum(file.size for file in pack.files if file.path < ENTRY)
        size = next((file.size for file in pack.files if file.path == ENTRY), 0)

        async def body(transaction: Transaction) -> bytes:
            found = await transaction.row("skill_entry", digest=pack.digest, begin=before + 1, size=size)
            return bytes(found["entry"]) if found is not None else b""

        return await self._db.read(body)

    async def skill_content(self, digest: str) -> bytes:
        """Return the bytes of a pack's files, one after the other by path."""

        async def body(transaction: Transaction) -> bytes:
            row = await transaction.row("skill_content", digest=digest)
            if row is None:
                raise NotFound(f"no skill pack '{digest}'", resource_type="skill", resource_name=digest)
            return bytes(row["content"])

        return await self._db.read(body)

    async def list_skills(self, page: Page) -> Sequence[PackRow]:
        """Return packs by name, newest first within a name, at most page.size + 1."""
        name, _, number = page.after.partition("|")

        async def body(transaction: Transaction) -> Sequence[PackRow]:
            rows = await transaction.rows("skill_list", name=name, id=int(number or 0), size=page.size + 1)
            return [_row(row) for row in rows]

        return await self._db.read(body)

    async def mount_skill(
        self, agent: str, skill: SkillRef, request: RequestKey | None, actor: str
    ) -> AgentRow:
        """Note down that an agent has a pack, in the place of another one of its name."""

        async def body(transaction: Transaction) -> AgentRow:
            return await _change(transaction, agent, skill.name, str(skill), request, actor)

        return await self._db.run(body)

    async def unmount_skill(self, agent: str, name: str, request: RequestKey | None, actor: str) -> AgentRow:
        """Note down that an agent has no pack of this name."""

        async def body(transaction: Transaction) -> AgentRow:
            return await _change(transaction, agent, name, "", request, actor)

        return await self._db.run(body)


async def _change(
    transaction: Transaction, agent: str, name: str, skill: str, request: RequestKey | None, actor: str
) -> AgentRow:
    locked, row = await lock_agent(transaction, agent)
    if await claim_request(transaction, request, agent) is not None:
        return row
    if row.state not in SERVING:
        verb = "mount a skill pack into" if skill else "unmount a skill pack from"
        raise Refused(f"cannot {verb} agent '{row.name}': it is {row.state}", metadata={"state": row.state})
    before = [text for text in row.spec.skills if text.partition("@")[0] == name]
    after = [text for text in row.spec.skills if text not in before] + ([skill] if skill else [])
    if before == ([skill] if skill else []):
        return row
    if skill and before:
        raise Refused(
            f"agent '{row.name}' has another version of the skill pack: unmount '{before[0]}' first",
            metadata={"state": row.state, "skill": before[0]},
        )
    if len(after) > OF_AGENT_MAX:
        raise Exhausted(f"cannot mount more than {OF_AGENT_MAX} skill packs", quota="skill packs of an agent")
    spec = types_pb2.ProfileSpec()
    spec.CopyFrom(row.spec)
    del spec.skills[:]
    spec.skills.extend(after)
    values = {"agent": agent, "generation": row.generation, "now": locked.now}
    await transaction.one("agent_respecify", spec=spec.SerializeToString(), **values)
    transaction.agents = True
    gone = [(text, False) for text in before]
    for text, mounted in gone + ([(skill, True)] if skill else []):
        change = events_pb2.SkillChange(skill=text, mounted=mounted)
        locked.events.append(
            events_pb2.Event(type=events_pb2.EVENT_TYPE_SKILL, actor=actor, agent=agent, skill=change)
        )
    await locked.finish()
    return replace(row, spec=spec, updated_at=locked.now)


def _values(row: PackRow) -> dict[str, object]:
    pack = row.pack
    return {
        "digest": pack.digest,
        "name": pack.name,
        "frontmatter": json.dumps(pack.frontmatter),
        "files": json.dumps([[f.path, f.mode, f.size, f.sha256] for f in pack.files]),
        "size": pack.size,
        "signature": row.signature,
        "key_id": row.key_id,
        "publisher": encode.text(row.publisher),
    }


def _row(r: DictRow) -> PackRow:
    files = [PackFile(*file) for file in r["files"]]
    pack = describe(r["name"], r["digest"], r["frontmatter"], files)
    return PackRow(pack, bytes(r["signature"]), r["key_id"], r["publisher"], r["created_at"], r["id"])
