"""What every store must do with skill packs: keep them by content, list them, and note down who has which."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from support.packs import archive, with_tools
from support.plans import ready_agent, request

from factory_server.core.errors import Exhausted, Invalid, NotFound, Refused
from factory_server.core.model import Page
from factory_server.core.ports import Store
from factory_server.core.skill_archive import read_entries
from factory_server.core.skills import PackRow, SkillRef, make_pack
from factory_server.store import skills as kept
from hyperfactory.v1 import events_pb2

ALICE = "operator/alice"


def row_of(name: str = "counting", text: str = "") -> tuple[PackRow, bytes]:
    files = with_tools(name=name) | {"references/a.md": text.encode()}
    pack, content = make_pack(read_entries(archive(files)))
    return PackRow(pack, b"signed", "k1", ALICE), content


async def publish(store: Store, name: str = "counting", text: str = "") -> PackRow:
    row, content = row_of(name, text)
    return (await store.publish_skill(row, content, None))[0]


class SkillSuite:
    """Packs and mounts."""

    async def test_a_pack_is_kept_as_it_came(self, store: Store) -> None:
        row, content = row_of()
        stored, existed = await store.publish_skill(row, content, request())
        assert (stored.pack, stored.signature, stored.key_id, stored.publisher, existed) == (
            row.pack,
            b"signed",
            "k1",
            ALICE,
            False,
        )
        assert await store.skill_content(row.pack.digest) == content
        assert await store.get_skill("counting", row.pack.digest) == stored

    async def test_the_same_content_again_is_the_same_pack(self, store: Store) -> None:
        row, content = row_of()
        first, _ = await store.publish_skill(row, content, request())
        assert await store.publish_skill(row, content, request()) == (first, True)
        assert list(await store.list_skills(Page(10))) == [first]

    async def test_content_that_is_published_again_is_signed_anew(self, store: Store) -> None:
        row, content = row_of()
        first, _ = await store.publish_skill(row, content, request())
        renewed = dataclasses.replace(row, signature=b"signed anew", key_id="k2")
        found, existed = await store.publish_skill(renewed, content, request())
        assert (found, existed) == (dataclasses.replace(first, signature=b"signed anew", key_id="k2"), True)
        assert await store.get_skill("counting", row.pack.digest) == found

    async def test_a_request_id_is_of_one_content(self, store: Store) -> None:
        row, content = row_of()
        key = request()
        await store.publish_skill(row, content, key)
        assert (await store.publish_skill(row, content, key))[1]
        other = type(key)(key.actor, key.method, key.request_id, b"another")
        with pytest.raises(Invalid):
            await store.publish_skill(row, content, other)

    async def test_lists_go_by_name_and_newest_first(self, store: Store) -> None:
        made = [await publish(store, name, text) for text in "ab" for name in ("beta", "alpha")]
        wanted = [made[3], made[1], made[2], made[0]]
        seen: list[PackRow] = []
        page = Page(1)
        while found := await store.list_skills(page):
            seen.append(found[0])
            page = Page(1, found[0].place)
        assert seen == wanted
        assert await store.get_skill("alpha", "") == made[3]

    async def test_a_pack_is_found_under_its_own_name_only(self, store: Store) -> None:
        made = (await publish(store)).pack
        for name, digest in (("other", made.digest), ("counting", "sha256:" + "0" * 64), ("other", "")):
            with pytest.raises(NotFound):
                await store.get_skill(name, digest)
        wrong = SkillRef("other", made.digest)
        assert list(await store.get_skills([made.ref, wrong])) == [made.ref]

    async def test_what_is_kept_is_bounded(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        await publish(store)
        monkeypatch.setattr(kept, "PACKS_MAX", 1)
        with pytest.raises(Exhausted):
            await publish(store, "other")
        assert (await publish(store)).pack.name == "counting"

    async def test_mounts_are_of_the_agents_row(self, store: Store) -> None:
        agent = await ready_agent(store)
        pack = (await publish(store)).pack
        key = request()
        for _ in range(2):
            row = await store.mount_skill(agent.id, pack.ref, key, ALICE)
            assert list(row.spec.skills) == [str(pack.ref)]
        assert list((await store.get_agent(agent.id)).spec.skills) == [str(pack.ref)]
        for _ in range(2):
            assert not (await store.unmount_skill(agent.id, "counting", request(), ALICE)).spec.skills
        assert await self.changes_of(store, agent.crew) == [(str(pack.ref), True), (str(pack.ref), False)]

    async def test_another_version_needs_the_first_to_go(self, store: Store) -> None:
        agent = await ready_agent(store)
        first, second = [(await publish(store, text=text)).pack.ref for text in "ab"]
        await store.mount_skill(agent.id, first, None, ALICE)
        with pytest.raises(Refused) as caught:
            await store.mount_skill(agent.id, second, None, ALICE)
        assert caught.value.metadata["skill"] == str(first)
        await store.unmount_skill(agent.id, "counting", None, ALICE)
        assert list((await store.mount_skill(agent.id, second, None, ALICE)).spec.skills) == [str(second)]

    async def test_who_does_not_serve_is_given_nothing(self, store: Store) -> None:
        agent = await ready_agent(store)
        pack = (await publish(store)).pack
        await store.stop_agent(agent.id, None, ALICE, drain_s=1)
        with pytest.raises(Refused):
            await store.mount_skill(agent.id, pack.ref, None, ALICE)
        with pytest.raises(NotFound):
            await store.mount_skill(f"a_{uuid.uuid4().hex}", pack.ref, None, ALICE)

    async def changes_of(self, store: Store, crew: str) -> list[tuple[str, bool]]:
        events = [event.decode() for event in await store.read_events(crew, 0, 1000)]
        kind = events_pb2.EVENT_TYPE_SKILL
        return [(e.skill.skill, e.skill.mounted) for e in events if e.type == kind]
