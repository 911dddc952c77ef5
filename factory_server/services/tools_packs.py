"""The skill packs of a crew: which agent has which, as their rows say, and what is in them, as the store has it.

No agent is asked: a pack is its digest, and whoever has it has the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from factory_server.core import model, tools
from factory_server.core.errors import DigestMismatch, NotFound
from factory_server.core.skills import Pack, SkillRef
from factory_server.services import skills
from factory_server.services.parts import Parts

log = logging.getLogger("factory.tools")

PACKS_MAX: Final = 256
"""Of which frontmatter and files are kept in memory; the store has all of them."""
CONTENT_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of packs that were read from last."""
READS_MAX: Final = 4
"""Each may bring a whole pack from the store."""

Refs = tuple[SkillRef, ...]


class CrewPacks:
    """Which packs each crew has."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, tuple[str, Refs]]] = {}
        self._counts: defaultdict[str, Counter[SkillRef]] = defaultdict(Counter)

    def take(self, agent: model.AgentRow) -> bool:
        """Note what an agent's row says; whether its crew has other packs now."""
        fresh = () if agent.state in tools.GONE else tuple(map(_ref, agent.spec.skills))
        crew = self._of.setdefault(agent.crew, {})
        _, held = crew.pop(agent.id, ("", ()))
        if fresh:
            crew[agent.id] = (agent.name, fresh)
        if not crew:
            del self._of[agent.crew]
        changed = self._count(agent.crew, held, fresh)
        if not self._counts[agent.crew]:
            del self._counts[agent.crew]
        return changed

    def _count(self, crew: str, held: Refs, fresh: Refs) -> bool:
        counts = self._counts[crew]
        came, gone = set(fresh).difference(held), set(held).difference(fresh)
        changed = any(ref not in counts for ref in came)
        counts.update(came)
        for ref in gone:
            counts[ref] -= 1
            if not counts[ref]:
                del counts[ref]
                changed = True
        return changed

    def of_crew(self, crew: str) -> Mapping[SkillRef, Sequence[str]]:
        """The crew's packs by name and digest, each with the names of the agents that have it."""
        found: defaultdict[SkillRef, list[str]] = defaultdict(list)
        for name, refs in self._of.get(crew, {}).values():
            for ref in refs:
                found[ref].append(name)
        return {ref: sorted(found[ref]) for ref in sorted(found, key=str)}


def _ref(pin: str) -> SkillRef:
    name, _, digest = pin.partition("@")
    return SkillRef(name, digest)


class Library:
    """Packs as stored. They never change, so that what was read once is kept, within bounds."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._packs: OrderedDict[SkillRef, Pack] = OrderedDict()
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._reads = asyncio.Semaphore(READS_MAX)

    async def packs(self, refs: Iterable[SkillRef]) -> Mapping[SkillRef, Pack]:
        """Those of these packs that exist and that we have signed: agents mount no others."""
        wanted = list(refs)
        found = {ref: self._packs[ref] for ref in wanted if ref in self._packs}
        missing = [ref for ref in wanted if ref not in found]
        for ref, row in (await self._parts.store.get_skills(missing) if missing else {}).items():
            try:
                found[ref] = skills.verified(self._parts, row).pack
            except DigestMismatch as error:
                log.warning("does not list a skill pack", extra={"skill": str(ref), "error": str(error)})
        for ref in found:
            self._packs[ref] = found[ref]
            self._packs.move_to_end(ref)
        while len(self._packs) > PACKS_MAX:
            self._packs.popitem(last=False)
        return found

    async def file(self, pack: Pack, path: str) -> bytes:
        """A file's bytes, as the pack's manifest has them. NotFound, DigestMismatch."""
        start = 0
        for file in pack.files:
            if file.path == path:
                content = await self._content(pack)
                data = content[start : start + file.size]
                digest = await asyncio.to_thread(hashlib.sha256, data)
                if digest.hexdigest() != file.sha256:
                    raise DigestMismatch(
                        f"'{path}' of skill pack '{pack.ref}' is not as its digest says",
                        metadata={"skill": str(pack.ref), "digest": pack.digest},
                    )
                return data
            start += file.size
        raise NotFound(f"no file '{path}' in '{pack.ref}'", resource_type="skill", resource_name=path)

    async def _content(self, pack: Pack) -> bytes:
        async with self._reads:
            content = self._contents.pop(pack.digest, None)
            if content is None:
                content = await self._parts.store.skill_content(pack.digest)
        self._contents[pack.digest] = content  # the last one used is the last to go
        while sum(map(len, self._contents.values())) > CONTENT_BYTES_MAX and len(self._contents) > 1:
            self._contents.popitem(last=False)
        return content
