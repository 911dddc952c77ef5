"""Which packs a crew has follows its agents' rows; what is read of a pack is what its digest says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core.errors import DigestMismatch, NotFound
from factory_server.core.lifecycle import AgentState
from factory_server.core.skill_archive import read_entries
from factory_server.core.skills import Pack, PackRow, SkillRef, make_pack
from factory_server.services import tools_packs
from factory_server.services.tools_packs import CrewPacks, Library
from hyperfactory.v1 import types_pb2
from tests.support.packs import archive, skill_md
from tests.unit.services.service_parts import agent, parts

REFS = [f"{name}@sha256:{digit * 64}" for name in ("one", "two") for digit in "ab"]


def row(name: str, *skills: str, state: AgentState = AgentState.READY) -> Any:
    return agent(name, state, spec=types_pb2.ProfileSpec(skills=skills))


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from(REFS)), st.booleans()), max_size=20)
)
def test_a_change_is_one_of_the_crews_packs(steps: list[tuple[str, set[str], bool]]):
    packs = CrewPacks()
    rows: dict[str, set[str]] = {}
    for name, skills, gone in steps:
        before = set(itertools.chain(*rows.values()))
        rows[name] = set() if gone else skills
        now = set(itertools.chain(*rows.values()))
        state = AgentState.DRAINING if gone else AgentState.READY
        assert packs.take(row(name, *skills, state=state)) == (before != now)
        found = packs.of_crew("c1")
        assert {str(ref): list(names) for ref, names in found.items()} == {
            text: sorted(each for each in rows if text in rows[each]) for text in sorted(now)
        }
    for name in rows:
        packs.take(row(name, state=AgentState.STOPPED))
    assert not packs._of
    assert not packs._counts


class Store:
    """Keeps packs, and counts what is read of them."""

    def __init__(self, *packs: tuple[Pack, bytes]) -> None:
        self.rows = {pack.ref: PackRow(pack, b"signed", "k", "ada") for pack, _ in packs}
        self.contents = {pack.digest: content for pack, content in packs}
        self.reads = 0

    async def get_skills(self, refs: list[SkillRef]) -> dict[SkillRef, PackRow]:
        self.reads += 1
        return {ref: self.rows[ref] for ref in refs if ref in self.rows}

    async def skill_content(self, digest: str) -> bytes:
        self.reads += 1
        return self.contents[digest]


class Vault:
    """Trusts one signature."""

    def verify(self, digest: str, key_id: str, signature: bytes) -> bool:
        return signature == b"signed"


def pack(name: str, data: bytes = b"x") -> tuple[Pack, bytes]:
    files = {"SKILL.md": skill_md(name), "a/first": b"1", "z": data}
    return make_pack(read_entries(archive(files)))


def library(store: Store) -> Library:
    return Library(replace(parts(store=store), skills=Vault()))


async def test_packs_are_read_once_and_only_those_that_we_signed():
    one, two = pack("one"), pack("two")
    store = Store(one, two)
    store.rows[two[0].ref] = PackRow(two[0], b"forged", "k", "eve")
    books = library(store)
    refs = [one[0].ref, two[0].ref, SkillRef("three", one[0].digest)]
    assert list(await books.packs(refs)) == [one[0].ref]
    assert list(await books.packs([one[0].ref])) == [one[0].ref]
    assert store.reads == 1


async def test_a_file_is_what_its_digest_says_or_nothing(monkeypatch: pytest.MonkeyPatch):
    one, two = pack("one", b"the last"), pack("two", b"a" * 100)
    store = Store(one, two)
    books = library(store)
    assert await books.file(one[0], "a/first") == b"1"
    assert await books.file(one[0], "z") == b"the last"
    assert store.reads == 1
    with pytest.raises(NotFound):
        await books.file(one[0], "a")
    monkeypatch.setattr(tools_packs, "CONTENT_BYTES_MAX", 10)
    await books.file(two[0], "z")
    await books.file(one[0], "z")
    assert store.reads == 3
    store.contents[two[0].digest] = two[1].replace(b"aaaa", b"aaab")
    with pytest.raises(DigestMismatch):
        await books.file(two[0], "z")
