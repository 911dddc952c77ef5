"""What nobody owns is counted, on the host and at the gateway; a part that is down is said to be skipped."""

from __future__ import annotations

import json
import os

import pytest

from factory_cli import belongings, leaks
from factory_server.drivers.namespaces import launcher
from factory_server.drivers.namespaces.records import Record, Records, start_time


@pytest.fixture
def home(tmp_path, monkeypatch):
    where = launcher.Places(tmp_path / "sandboxes", tmp_path / "s")
    monkeypatch.setattr(launcher, "places", lambda _state: where)
    where.make()
    return tmp_path


def counts_of(found):
    return {count.name: count.value for count in found if not count.skipped}


async def test_a_home_that_was_never_used_is_clean(tmp_path):
    found = await leaks.count(tmp_path)
    assert leaks.total(found) == 0
    assert {count.name for count in found if count.skipped} >= {"agent rows", "bus users", "routes"}


async def test_a_sandbox_without_an_owner_is_counted_with_its_files(home):
    pid = os.getpid()
    Records(home / "sandboxes" / "instances").write(Record("u1-g1", 0, {}, pid=pid, started=start_time(pid)))
    (home / "s" / "own" / "u1-g1").mkdir()
    (home / "s" / "ctl" / "u1-g1.sock").touch()
    (home / "sandboxes" / "logs" / "u1-g1.0.log").touch()
    found = counts_of(await leaks.count(home))
    assert (found["processes"], found["sandbox files"]) == (1, 4)


async def test_what_is_owned_is_not_counted(home):
    pid = os.getpid()
    Records(home / "sandboxes" / "instances").write(Record("u1-g1", 0, {}, pid=pid, started=start_time(pid)))
    seen = belongings._Host.see(home)
    found = belongings.Belongings(owned={"u1-g1"})
    seen.judge(found)
    assert (list(found.processes), list(found.files)) == ([], [])


async def test_a_way_out_is_owned_by_a_live_crew(home):
    (home / "s" / "egress").mkdir()
    (home / "s" / "egress" / "c1.sock").touch()
    seen = belongings._Host.see(home)
    for live, count in (({"c1"}, 0), (set(), 1)):
        found = belongings.Belongings(live_crews=live)
        seen.judge(found)
        assert len(found.files) == count


def test_only_names_of_ended_crews_are_routes_too_many():
    body = json.dumps({"a": "coder.crew-c1.svc", "b": r"^coder\.crew-c2\.svc$", "c": r"crew-[a-z0-9-]+\.svc"})
    named = {match.decode() for match in belongings._CREW_NAME.findall(body.encode())}
    assert named == {"c1", "c2"}


async def test_the_command_fails_when_something_is_left(tmp_path, cli):
    assert (await cli("check-leaks", "--json")).json["total"] == 0
    records = tmp_path / "sandboxes" / "instances"
    records.mkdir(parents=True)
    Records(records).write(Record("u1-g1", 0, {}, pid=os.getpid(), started=start_time(os.getpid())))
    ended = await cli("check-leaks", "--within", "0", "--json")
    assert ended.code == 1
    assert ended.json["counters"]["processes"]["examples"] == [f"u1-g1 (pid {os.getpid()})"]
