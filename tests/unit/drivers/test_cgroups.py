"""Cgroup detection and layout on a directory tree like the kernel's, for the versions this host may not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_server.drivers.namespaces.cgroups import Bounds, Cgroups, Hierarchy, detect

BOUNDS = Bounds(memory_bytes=1 << 20, pids_max=10, cpu_millis=250)


def machine(tmp_path: Path, cgroup: str, mounts: list[tuple[str, str, str]]) -> tuple[Path, Path]:
    """A fake /proc/self and /sys/fs/cgroup."""
    root, proc = tmp_path / "cg", tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    lines = []
    for place, fstype, options in mounts:
        (root / place).mkdir(parents=True, exist_ok=True)
        lines.append(f"1 2 0:3 / {root / place} rw shared:1 - {fstype} {fstype} {options}")
    lines.append("9 2 0:4 / /elsewhere rw - ext4 /dev/sda rw")
    (proc / "mountinfo").write_text("\n".join(lines))
    return root, proc


def test_v2_alone(tmp_path: Path) -> None:
    root, proc = machine(tmp_path, "0::/user/me\n", [("", "cgroup2", "rw")])
    (root / "user/me").mkdir(parents=True)
    (root / "user/me/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert detect(root, proc) == [Hierarchy(2, frozenset({"cpu", "memory", "pids"}), "user/me")]


def test_hybrid_uses_v1_when_v2_carries_nothing(tmp_path: Path) -> None:
    cgroup = "8:pids:/\n6:freezer:/\n4:memory:/slice/x\n1:cpu,cpuacct:/\n0::/\n"
    mounts = [(name, "cgroup", f"rw,{name}") for name in ("pids", "freezer", "memory")]
    mounts += [("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"), ("unified", "cgroup2", "rw")]
    root, proc = machine(tmp_path, cgroup, mounts)
    found = {hierarchy.base: hierarchy for hierarchy in detect(root, proc)}
    assert set(found) == {"pids", "freezer", "memory/slice/x", "cpu,cpuacct"}
    assert found["cpu,cpuacct"].controllers == {"cpu", "cpuacct"}
    assert all(hierarchy.version == 1 for hierarchy in found.values())


def test_v2_limits_are_delegated_and_written(tmp_path: Path) -> None:
    (tmp_path / "me").mkdir()
    groups = Cgroups([Hierarchy(2, frozenset({"cpu", "memory", "pids"}), "me")], "f1", root=tmp_path)
    (group,), missing = groups.create("a-g1", BOUNDS)
    where = tmp_path / "me/hf-f1/a-g1"
    assert group.path == "me/hf-f1/a-g1"
    assert missing == {}
    assert (tmp_path / "me/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tmp_path / "me/hf-f1/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (where / "memory.max").read_text() == str(1 << 20)
    assert (where / "memory.swap.max").read_text() == "0"
    assert (where / "pids.max").read_text() == "10"
    assert (where / "cpu.max").read_text() == "25000 100000"
    (where / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert groups.oom_kills([group]) == 1


def test_a_group_that_cannot_be_made_is_a_reason_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("not a directory")
    hierarchy = Hierarchy(1, frozenset({"memory"}), "memory")
    groups, missing = Cgroups([hierarchy], "f1", root=tmp_path).create("a-g1", BOUNDS)
    assert groups == []
    assert set(missing) == {"memory", "pids", "cpu"}
    assert "cannot make a cgroup" in missing["memory"]
    assert missing["pids"] == "no cgroup hierarchy carries this controller"


@pytest.mark.parametrize(("version", "door"), [(1, "tasks"), (2, "cgroup.procs")])
def test_joining_uses_the_door_without_the_great_lock(tmp_path: Path, version: int, door: str) -> None:
    groups = Cgroups([Hierarchy(version, frozenset(), "h")], "f1", root=tmp_path)
    (tmp_path / "h").mkdir()
    made, _ = groups.create("a-g1", BOUNDS)
    groups.join(made)
    assert (tmp_path / made[0].path / door).read_text() == "0"
