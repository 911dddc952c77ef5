"""Skill packs: take and find them, and see that each agent's instance has those of its row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final
from weakref import WeakValueDictionary

from google.protobuf.struct_pb2 import Struct

from factory_server.core import model, skills
from factory_server.core.errors import (
    DigestMismatch,
    Exhausted,
    FactoryError,
    FieldViolation,
    Invalid,
    NotFound,
    Refused,
)
from factory_server.core.lifecycle import SERVING
from factory_server.core.skill_archive import Intake, read_entries
from factory_server.core.skills import Pack, PackRow
from factory_server.services.freezing import thawed
from factory_server.services.owned import spawn
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from factory_server.services.sessions import Sessions
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2, skill_service_pb2

log = logging.getLogger("factory.skills")

PUBLICATIONS_MAX: Final = 4
"""Each holds an unpacked archive in memory."""
MOUNT_S: Final = 10.0
UNMOUNT_S: Final = 20.0
"""Calls of the pack's tools end first."""


# Publishing


class Publisher:
    """Takes archives, a few at once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running = 0

    async def publish(
        self, header: skill_service_pb2.SkillPackHeader, pieces: AsyncIterator[bytes], actor: str
    ) -> tuple[PackRow, bool]:
        """The pack as stored; second value: it was there before. SkillRefused, DigestMismatch, Exhausted."""
        if self._running >= PUBLICATIONS_MAX:
            raise Exhausted(
                f"cannot take more than {PUBLICATIONS_MAX} archives at once", quota="publications"
            )
        self._running += 1
        try:
            intake = Intake()
            async for piece in pieces:
                await asyncio.to_thread(intake.feed, piece)
            pack, content = await asyncio.to_thread(lambda: skills.make_pack(read_entries(intake.finish())))
        finally:
            self._running -= 1
        if header.digest and header.digest != pack.digest:
            raise DigestMismatch(
                f"cannot publish skill pack '{pack.name}': its digest is {pack.digest}, not {header.digest}",
                metadata={"skill": str(pack.ref), "digest": pack.digest},
            )
        key_id, signature = self._parts.skills.sign(pack.digest)
        row = PackRow(pack, signature, key_id, actor)
        if header.validate_only:
            return row, False
        named = skill_service_pb2.SkillPackHeader(request_id=header.request_id, digest=pack.digest)
        key = key_of(actor, "PublishSkillPack", header.request_id, named)
        return await self._parts.store.publish_skill(row, content, key)


# Finding


async def find(parts: Parts, text: str) -> PackRow:
    """A pack by its pin, or the newest of a name. NotFound, Invalid, DigestMismatch."""
    if "@" in text:
        ref = skills.parse_ref(text, "skill")
        row = verified(parts, await parts.store.get_skill(ref.name, ref.digest))
    else:
        row = verified(parts, await parts.store.get_skill(text, ""))
    entry = await parts.store.skill_entry(row.pack)
    if not await asyncio.to_thread(skills.is_itself, row.pack, entry):
        raise _not_itself(row.pack, f"it is described otherwise than its {skills.ENTRY} says")
    return row


def verified(parts: Parts, row: PackRow) -> PackRow:
    """The row, if its files are those of its digest and we have signed that. DigestMismatch."""
    digest = row.pack.digest
    if skills.is_sound(row.pack) and parts.skills.verify(digest, row.key_id, row.signature):
        return row
    raise _not_itself(row.pack, "its signature is not ours")


def _not_itself(pack: Pack, why: str) -> DigestMismatch:
    return DigestMismatch(
        f"cannot use skill pack '{pack.name}': {why}",
        metadata={"skill": str(pack.ref), "digest": pack.digest},
    )


async def check_pins(parts: Parts, lists: Mapping[str, Sequence[str]]) -> None:
    """Every pin of these lists (by the field that holds them) is a pack of ours. Invalid, naming the fields."""
    pinned = {field: skills.pins(texts, field) for field, texts in lists.items() if texts}
    known = await parts.store.get_skills([ref for refs in pinned.values() for ref in refs])
    unknown = [
        FieldViolation(f"{field}[{place}]", f"skill pack '{ref}' is unknown", "UNKNOWN_SKILL")
        for field, refs in pinned.items()
        for place, ref in enumerate(refs)
        if ref not in known
    ]
    if unknown:
        raise Invalid(
            f"cannot use skill pack: {unknown[0].field}: {unknown[0].description}", violations=unknown
        )


async def check_manifest(
    parts: Parts, manifest: crew_service_pb2.CrewManifest, profiles: Mapping[str, model.ProfileRow]
) -> None:
    """The pins of a crew's members, which are none of their profiles' packs in another version. Invalid."""
    lists = {f"manifest.members[{i}].skills": member.skills for i, member in enumerate(manifest.members)}
    await check_pins(parts, lists)
    for i, member in enumerate(manifest.members):
        row = profiles.get(member.profile)
        own = {text.partition("@")[0]: text for text in (row.spec.skills if row else ())}
        for place, text in enumerate(member.skills):
            if own.get(text.partition("@")[0], text) != text:
                field = f"manifest.members[{i}].skills[{place}]"
                raise skills.bad_ref(field, "the profile pins another version of this pack", "DUPLICATE")


# Mounting


async def lay_out(parts: Parts, agent: model.AgentRow) -> list[agent_service_pb2.MountedSkill]:
    """Show the row's packs in its instance; what the runtime is to know of them. DigestMismatch, Unavailable."""
    if agent.instance is None:
        return []
    refs = skills.pins(agent.spec.skills, "skills")
    known = await parts.store.get_skills(refs)
    told = []
    for ref in refs:
        if ref not in known:
            raise NotFound(f"no skill pack '{ref}'", resource_type="skill", resource_name=str(ref))
        pack = verified(parts, known[ref]).pack
        await _show(parts, agent.instance.id, pack)
        told.append(mounted_message(pack))
    return told


async def _show(parts: Parts, instance: str, pack: Pack) -> None:
    path = await parts.skills.place(pack, lambda: parts.store.skill_content(pack.digest))
    await parts.driver.mount(instance, pack.name, path)


def tool_messages(pack: Pack) -> list[agent_service_pb2.SkillTool]:
    """The tools of a pack, on the wire."""
    found = []
    for tool in pack.tools:
        message = agent_service_pb2.SkillTool(script=tool.script, scope=tool.scope)
        message.tool.name, message.tool.description, message.tool.title = (
            tool.name,
            tool.description,
            tool.title,
        )
        message.tool.input_schema.update(tool.input_schema)
        message.tool.read_only = tool.read_only
        found.append(message)
    return found


def mounted_message(pack: Pack) -> agent_service_pb2.MountedSkill:
    """What a runtime is told of a pack."""
    frontmatter = Struct()
    frontmatter.update(pack.frontmatter)
    return agent_service_pb2.MountedSkill(
        name=pack.name,
        digest=pack.digest,
        tools=tool_messages(pack),
        frontmatter=frontmatter,
        files=file_messages(pack),
    )


def file_messages(pack: Pack) -> list[agent_service_pb2.SkillFile]:
    """The files of a pack, on the wire."""
    return [
        agent_service_pb2.SkillFile(path=f.path, mode=f.mode, size=f.size, sha256=f.sha256)
        for f in pack.files
    ]


class Mounts:
    """Brings instances to what their rows say, level-triggered; each agent by one at a time."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self._settled: dict[str, tuple[str, int, tuple[str, ...]]] = {}
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def mount(
        self, request: skill_service_pb2.MountSkillPackRequest, actor: str
    ) -> tuple[model.AgentRow, Sequence[agent_service_pb2.Tool]]:
        """The agent with the pack, and the tools that came. NotFound, Refused, DigestMismatch, Unavailable."""
        ref = skills.parse_ref(request.skill, "skill")
        row = verified(self._parts, await self._parts.store.get_skill(ref.name, ref.digest))
        # Laid out before it is noted down: what cannot be mounted is refused and not tried for ever.
        await self._parts.skills.place(row.pack, lambda: self._parts.store.skill_content(ref.digest))
        key = key_of(actor, "MountSkillPack", request.request_id, request)
        agent = await self._parts.store.mount_skill(request.agent, ref, key, actor)
        if str(ref) not in agent.spec.skills:
            raise Refused(f"skill pack '{ref}' was unmounted since", metadata={"state": agent.state})
        try:
            tools = await self.settle(agent)
        except Invalid:  # the runtime does not take it: it must not stand in the row and be tried for ever
            await self.settle(await self._parts.store.unmount_skill(agent.id, ref.name, None, actor))
            raise
        return agent, tools.get(ref.name, ())

    async def unmount(self, request: skill_service_pb2.UnmountSkillPackRequest, actor: str) -> model.AgentRow:
        """The agent without the pack. NotFound, Refused, Unavailable."""
        key = key_of(actor, "UnmountSkillPack", request.request_id, request)
        agent = await self._parts.store.unmount_skill(request.agent, request.name, key, actor)
        await self.settle(agent)
        return agent

    def settled(self, agent: model.AgentRow) -> None:
        """The instance was assumed with what this row says."""
        self._settled[agent.id] = _wish_of(agent)

    def start(self, group: asyncio.TaskGroup, agents: Iterable[model.AgentRow]) -> None:
        """See to those whose instance may not be as the row says: after a mount elsewhere, or a restart."""
        for agent in agents:
            if not agent.serves or agent.id in self._running:
                continue
            if self._settled.get(agent.id) != _wish_of(agent):
                task = spawn(group, self._settle_quietly(agent), f"skills {agent.id}")
                self._running[agent.id] = (agent.crew, task)

    def stop(self, crew: str) -> None:
        """The crew is not kept here any more."""
        for of, task in list(self._running.values()):
            if of == crew:
                task.cancel()
        for agent in [agent for agent, wish in self._settled.items() if wish[0] == crew]:
            del self._settled[agent]

    async def _settle_quietly(self, agent: model.AgentRow) -> None:
        try:
            await self.settle(agent)
        except FactoryError as error:  # tried again at the next look
            self._parts.measures.trouble.labels("skills").inc()
            log.warning("cannot settle skill packs", extra={"agent": agent.id, "error": str(error)})
        finally:
            self._running.pop(agent.id, None)

    async def settle(self, agent: model.AgentRow) -> Mapping[str, Sequence[agent_service_pb2.Tool]]:
        """Make the instance have exactly the row's packs; the tools of each."""
        async with self._locks.setdefault(agent.id, asyncio.Lock()):
            row = await thawed(self._parts, await self._parts.store.get_agent(agent.id))
            if row.state not in SERVING or row.instance is None:
                raise Refused(f"agent '{row.name}' is {row.state}", metadata={"state": row.state})
            wished = {ref.name for ref in skills.pins(row.spec.skills, "skills")}
            shown = await self._parts.driver.mounts(row.instance.id)
            tools: dict[str, Sequence[agent_service_pb2.Tool]] = {}
            if not shown and not wished:
                self._settled[row.id] = _wish_of(row)
                return tools
            async with self._sessions.lend(row) as line:
                for name in shown:
                    if name not in wished:
                        await line.unmount_skill(name, deadline_s=UNMOUNT_S)
                        await self._parts.driver.unmount(row.instance.id, name)
                for told in await lay_out(self._parts, row):
                    tools[told.name] = await line.mount_skill(told, deadline_s=MOUNT_S)
            self._settled[row.id] = _wish_of(row)
            return tools


def _wish_of(agent: model.AgentRow) -> tuple[str, int, tuple[str, ...]]:
    return agent.crew, agent.generation, tuple(agent.spec.skills)
