"""What skill packs need from outside, as Protocols: the store's part, and who signs packs and lays them out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from factory_server.core import model
from factory_server.core.skills import Pack, PackRow, SkillRef


class SkillStore(Protocol):
    """Packs by content, and which of them agents have."""

    async def publish_skill(
        self, row: PackRow, content: bytes, request: model.RequestKey | None
    ) -> tuple[PackRow, bool]:
        """Store a pack; second value: the same content was there before, and has this row's signature now.
        Exhausted where no more is kept."""

    async def get_skill(self, name: str, digest: str) -> PackRow:
        """A pack, or without a digest the newest of the name. NotFound."""

    async def get_skills(self, refs: Sequence[SkillRef]) -> Mapping[SkillRef, PackRow]:
        """Those that exist."""

    async def skill_content(self, digest: str) -> bytes:
        """The bytes of a pack's files, one after the other by path. NotFound."""

    async def skill_entry(self, pack: Pack) -> bytes:
        """The bytes that are kept of its SKILL.md; empty where there are none."""

    async def list_skills(self, page: model.Page) -> Sequence[PackRow]:
        """By name, newest first within a name, at most page.size + 1; `page.after` is a row's `place`."""

    async def mount_skill(
        self, agent: str, skill: SkillRef, request: model.RequestKey | None, actor: str
    ) -> model.AgentRow:
        """Note down in the agent's row that it has a pack, with a SKILL event; no change where it has it already.
        NotFound, Refused (it does not serve, or has another pack of the name), Exhausted."""

    async def unmount_skill(
        self, agent: str, name: str, request: model.RequestKey | None, actor: str
    ) -> model.AgentRow:
        """Note down that it has no pack of this name any more; no change where it has none."""


class SkillVault(Protocol):
    """Signs packs, and keeps those that are mounted as directories of this host."""

    def sign(self, digest: str) -> tuple[str, bytes]:
        """The key's id and the signature of a digest."""

    def verify(self, digest: str, key_id: str, signature: bytes) -> bool:
        """Whether a key of ours has signed this digest."""

    async def place(self, pack: Pack, content: Callable[[], Awaitable[bytes]]) -> str:
        """The directory that holds exactly this pack: made once for a digest, and looked through each time.
        DigestMismatch where it, or the content, is another one; Unavailable."""
