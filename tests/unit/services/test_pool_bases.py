"""Which pools may be set: those of bases that are there, and to nothing also those of bases that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from service_parts import parts

from factory_server.core.errors import Invalid
from factory_server.core.model import PoolRow
from factory_server.drivers.namespaces.driver import NamespacesDriver
from factory_server.services.pool import update_pool
from hyperfactory.v1 import factory_service_pb2 as pb

ID = "6f1c1d1e-3a51-4c69-9f4e-3f6c0a1f0b11"


class Pools:
    """A store that knows one pool."""

    def __init__(self) -> None:
        self.rows = {"gone": PoolRow("gone", 3, 0, 0, 0, 0)}

    async def get_pools(self) -> Sequence[PoolRow]:
        return list(self.rows.values())

    async def set_pool(self, base: str, target: int, _key: Any, _actor: str) -> PoolRow:
        self.rows[base] = PoolRow(base, target, 0, 0, 0, 0)
        return self.rows[base]


@pytest.fixture
def driver(tmp_path: Path) -> NamespacesDriver:
    """One that has the base `office`, as an operator lays it down."""
    (tmp_path / "bases" / "office").mkdir(parents=True)
    return NamespacesDriver(tmp_path / "sandboxes", factory="f1", bases_dir=tmp_path / "bases")


@pytest.mark.parametrize(("base", "target"), [("", 2), ("python", 2), ("office", 2), ("gone", 0)])
async def test_a_base_that_is_there_or_is_given_up_is_taken(
    driver: NamespacesDriver, base: str, target: int
) -> None:
    store = Pools()
    row = await update_pool(parts(store=store, driver=driver), request(base, target), "operator/me")
    assert (row.base, row.target) == (base or "python", target)


@pytest.mark.parametrize(("base", "target"), [("gone", 1), ("nowhere", 1), ("nowhere", 0)])
async def test_another_is_refused_and_makes_no_pool(driver: NamespacesDriver, base: str, target: int) -> None:
    store = Pools()
    with pytest.raises(Invalid) as refused:
        await update_pool(parts(store=store, driver=driver), request(base, target), "operator/me")
    assert [wrong.field for wrong in refused.value.violations] == ["base"]
    assert store.rows.keys() == {"gone"}
    assert store.rows["gone"].target == 3


def request(base: str, target: int) -> pb.UpdatePoolRequest:
    return pb.UpdatePoolRequest(request_id=ID, base=base, target=target)
