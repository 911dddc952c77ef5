"""What every driver must do with skill packs: show them at once, read-only, and take them away when asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from factory_server.core.errors import Invalid, NotFound
from factory_server.core.sandbox import Sandbox
from tests.contract.small_agent import ask

WRITING = """
import errno, json, os, pathlib, time
written, refused, seen = [], set(), set()
began = time.monotonic()
def enough():  # on a machine that is busy, packs come late
    return time.monotonic() - began > ({for_s} if "SKILL.md" in seen and "EROFS" in refused else {at_most_s})
while not enough():
    for root, folders, files in os.walk("/skills"):
        for name in (*files, *folders, "new"):
            seen.add(name)
            try:
                with open(os.path.join(root, name), "ab") as file:
                    file.write(b"x")
                written.append(name)
            except OSError as error:
                refused.add(errno.errorcode[error.errno])
    for verb in (lambda: os.mkdir("/skills/made"), lambda: os.chmod("/skills/counting", 0o777),
                 lambda: os.unlink("/skills/counting/SKILL.md")):
        try:
            verb()
            written.append("verb")
        except OSError as error:
            refused.add(errno.errorcode[error.errno])
flags = os.statvfs("/skills").f_flag
print(json.dumps(dict(written=written, refused=sorted(refused), seen=sorted(seen),
    flags=[bool(flags & f) for f in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV)])))
"""
SEALED = [True, True, True]


def pack(directory: Path, text: str = "one") -> str:
    """A directory as the factory keeps a pack."""
    (directory / "scripts").mkdir(parents=True)
    (directory / "SKILL.md").write_text(text)
    (directory / "scripts/run.sh").write_text("#!/bin/sh\necho ran\n")
    (directory / "scripts/run.sh").chmod(0o555)
    return str(directory)


class PacksSuite:
    """Mixed into the drivers' suites; `make` and `rig` are theirs."""

    async def make(self, rig: Any, name: str = "a-g1", **labels: str) -> Sandbox:
        raise NotImplementedError

    async def see(self, sandbox: Sandbox) -> dict[str, str]:
        found: dict[str, str] = (await ask(sandbox.control, {"do": "skills"}))["files"]
        return found

    async def test_a_pack_appears_in_a_running_instance_and_vanishes(self, rig: Any, tmp_path: Path) -> None:
        sandbox, other = await self.make(rig), await self.make(rig, "b-g1")
        assert await self.see(sandbox) == {}
        source = pack(tmp_path / "p")
        for _ in range(2):
            await rig.driver.mount("a-g1", "counting", source)
            found = await self.see(sandbox)
            assert found == {
                "counting/SKILL.md": "one",
                "counting/scripts/run.sh": "#!/bin/sh\necho ran\n",
            }
        assert await self.see(other) == {}
        assert list(await rig.driver.mounts("a-g1")) == ["counting"]
        for _ in range(2):
            await rig.driver.unmount("a-g1", "counting")
            assert await self.see(sandbox) == {}
        assert list(await rig.driver.mounts("a-g1")) == []

    async def test_another_pack_takes_the_name(self, rig: Any, tmp_path: Path) -> None:
        sandbox = await self.make(rig)
        await rig.driver.mount("a-g1", "counting", pack(tmp_path / "p"))
        await rig.driver.mount("a-g1", "counting", pack(tmp_path / "q", "two"))
        assert (await self.see(sandbox))["counting/SKILL.md"] == "two"
        assert (tmp_path / "p/SKILL.md").read_text() == "one"

    async def test_packs_go_with_the_instance(self, rig: Any, tmp_path: Path) -> None:
        before = rig.leftovers()
        await self.make(rig)
        await rig.driver.mount("a-g1", "counting", pack(tmp_path / "p"))
        await rig.driver.destroy("a-g1")
        assert rig.leftovers() == before
        assert (tmp_path / "p/SKILL.md").read_text() == "one"
        assert await self.see(await self.make(rig)) == {}

    async def test_packs_outlive_the_factory(self, rig: Any, tmp_path: Path) -> None:
        sandbox = await self.make(rig)
        await rig.driver.mount("a-g1", "counting", pack(tmp_path / "p"))
        await rig.driver.close()
        rig.driver = rig.reopen()
        await rig.driver.start()
        assert list(await rig.driver.mounts("a-g1")) == ["counting"]
        assert (await self.see(sandbox))["counting/SKILL.md"] == "one"
        await rig.driver.unmount("a-g1", "counting")
        assert await self.see(sandbox) == {}

    async def test_what_is_no_pack_is_refused(self, rig: Any, tmp_path: Path) -> None:
        sandbox = await self.make(rig)
        source = pack(tmp_path / "p")
        for name in ("", "..", "a/b", ".hidden", "UPPER"):
            with pytest.raises(Invalid):
                await rig.driver.mount("a-g1", name, source)
        (tmp_path / "p/link").symlink_to("/etc/passwd")
        with pytest.raises(Invalid):
            await rig.driver.mount("a-g1", "counting", source)
        assert await self.see(sandbox) == {}
        with pytest.raises(NotFound):
            await rig.driver.mount("nobody-g1", "counting", source)
        with pytest.raises(NotFound):
            await rig.driver.unmount("nobody-g1", "counting")


class SealedPacksSuite:
    """What real sandboxes can be asked beyond it."""

    async def make(self, rig: Any, name: str = "a-g1", **labels: str) -> Sandbox:
        raise NotImplementedError

    async def test_nothing_of_a_pack_can_be_written_at_any_moment(self, rig: Any, tmp_path: Path) -> None:
        """An agent that tries without end, while packs come and go beside it."""
        sandbox = await self.make(rig)
        sources = [pack(tmp_path / "p"), pack(tmp_path / "q", "two")]
        source = WRITING.format(for_s=1.0, at_most_s=15.0)
        writing = ask(sandbox.control, {"do": "run", "source": source}, deadline_s=30.0)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(writing)
            while not task.done():
                for pack_dir in sources:
                    await rig.driver.mount("a-g1", "counting", pack_dir)
                await rig.driver.unmount("a-g1", "counting")
                await asyncio.sleep(0.005)
        answer = task.result()
        found = json.loads(answer["out"])
        assert found["written"] == []
        assert "SKILL.md" in found["seen"]
        assert set(found["refused"]) <= {"EROFS", "ENOENT", "EPERM", "EACCES", "EISDIR"}
        assert "EROFS" in found["refused"]
        assert found["flags"] == SEALED
        assert [Path(s, "SKILL.md").read_text() for s in sources] == ["one", "two"]

    async def test_scripts_of_a_pack_run(self, rig: Any, tmp_path: Path) -> None:
        sandbox = await self.make(rig)
        await rig.driver.mount("a-g1", "counting", pack(tmp_path / "p"))
        source = "import subprocess; subprocess.run(['/skills/counting/scripts/run.sh'], check=True)"
        answer = await ask(sandbox.control, {"do": "run", "source": source})
        assert (answer["code"], answer["out"]) == (0, "ran\n"), answer["err"]
