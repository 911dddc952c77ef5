"""The workspace's tools: what they do, what they refuse, and that nothing leads out of the workspace."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.calling import Caller
from agent_runtime.limits import FILE_MAX_BYTES, FILES_LISTED_MAX
from agent_runtime.process import Runner
from agent_runtime.tools import beneath
from agent_runtime.tools.files import FileTools
from agent_runtime.tools.registry import Call, Outcome, Registry, Tool
from agent_runtime.tools.schema import check_schema, problems
from wire.errors import Denied, Invalid, NotFound

Use = Callable[..., Any]


async def ignore(_fraction: float, _message: str, _detail: Mapping[str, Any]) -> None:
    return None


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "w"


@pytest.fixture
def use(workspace: Path) -> Iterator[Use]:
    caller = Caller()
    registry = Registry(FileTools(workspace, Runner(workspace), caller.in_thread).tools())

    async def call(name: str, timeout_s: float = 20, **arguments: Any) -> Outcome:
        return await registry.call(registry.require(name, writer=True), arguments, timeout_s, ignore)

    yield call
    caller.close()


async def test_what_is_written_can_be_read_and_listed(use: Use) -> None:
    assert (await use("write_file", path="a/b/c.txt", content="héllo")).structured["bytes"] == 6
    assert (await use("read_file", path="a/b/c.txt")).text == "héllo"
    assert (await use("list_files")).text == "a/"
    assert (await use("list_files", recursive=True)).text == "a/\na/b/\na/b/c.txt"


async def test_a_shorter_text_replaces_a_longer_one(use: Use) -> None:
    await use("write_file", path="a", content="long text")
    await use("write_file", path="a", content="x")
    assert (await use("read_file", path="a")).text == "x"


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/passwd", "a/../../secret.txt", "a\0b", "", "."])
async def test_paths_that_lead_out_are_refused(use: Use, path: str) -> None:
    for name, more in (("read_file", {}), ("write_file", {"content": "x"}), ("run_python", {})):
        assert (await use(name, path=path, **more)).is_error


@pytest.mark.parametrize("link", ["file", "directory"])
async def test_links_are_not_followed(use: Use, workspace: Path, link: str) -> None:
    target, path = (
        (workspace.parent / "secret.txt", "l") if link == "file" else (workspace.parent, "l/secret.txt")
    )
    (workspace / "l").symlink_to(target)
    for name, more in (("read_file", {}), ("write_file", {"content": "x"}), ("run_python", {})):
        outcome = await use(name, path=path, **more)
        assert outcome.is_error and "secret" not in outcome.text.replace("l/secret.txt", "")
    assert (workspace.parent / "secret.txt").read_text() == "secret"
    assert (await use("list_files", path="l")).is_error


async def test_special_files_neither_hang_nor_open(use: Use, workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    assert (await use("read_file", path="pipe", timeout_s=5)).is_error
    assert (await use("write_file", path="pipe", content="x", timeout_s=5)).is_error
    assert (await use("list_files")).text == ""


async def test_large_files_and_long_lists_are_bounded(use: Use, workspace: Path) -> None:
    (workspace / "large").write_bytes(bytes(FILE_MAX_BYTES + 1))
    assert (await use("read_file", path="large")).is_error
    assert (await use("write_file", path="x", content="x" * (FILE_MAX_BYTES + 1))).is_error
    for number in range(FILES_LISTED_MAX + 5):
        (workspace / f"f{number}").touch()
    outcome = await use("list_files")
    assert len(outcome.structured["files"]) == FILES_LISTED_MAX
    assert outcome.structured["truncated"]


async def test_python_runs_with_arguments_and_input(use: Use) -> None:
    await use("write_file", path="p.py", content="import sys; print(sys.argv[1], sys.stdin.read())")
    assert (await use("run_python", path="p.py", args=["a"], stdin="b")).text == "a b"
    outcome = await use("run_python", code="import sys; sys.exit('no')")
    assert outcome.is_error
    assert outcome.structured["exit_code"] == 1
    assert "no" in outcome.text


async def test_a_program_that_does_not_end_is_killed_with_its_output_kept(use: Use) -> None:
    code = "import time; print('begun', flush=True); time.sleep(1000)"
    outcome = await use("run_python", code=code, timeout_s=0.6)
    assert outcome.is_error
    assert outcome.structured["timed_out"]
    assert outcome.structured["stdout"] == "begun\n"


async def test_a_programs_memory_and_output_are_bounded(use: Use) -> None:
    assert "MemoryError" in (await use("run_python", code="bytearray(10**9)")).text
    outcome = await use("run_python", code="print('x' * 10**6)")
    assert outcome.structured["truncated"]
    assert len(outcome.structured["stdout"]) == 64 * 1024


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("read_file", {}, "path is required"),
        ("read_file", {"path": 7}, "must be of type string"),
        ("read_file", {"path": "a", "mode": "r"}, "mode is unknown"),
        ("run_python", {}, "either code or path"),
        ("run_python", {"code": "1", "args": [1]}, "args[0] must be"),
        ("list_files", {"recursive": 1}, "must be of type boolean"),
    ],
)
async def test_bad_arguments_come_back_as_text(
    use: Use, name: str, arguments: dict[str, Any], word: str
) -> None:
    outcome = await use(name, **arguments)
    assert outcome.is_error
    assert word in outcome.text


def registry(workspace: Path) -> Registry:
    return Registry(FileTools(workspace, Runner(workspace), Caller().in_thread).tools())


def test_scope_decides_list_and_call(workspace: Path) -> None:
    tools = registry(workspace)
    assert [tool.name for tool in tools.visible(writer=False)] == ["list_files", "read_file"]
    with pytest.raises(Denied):
        tools.require("write_file", writer=False)
    with pytest.raises(NotFound):
        tools.require("nothing", writer=False)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def number_in(file: Path) -> int:
    return int(file.read_text().strip() or 0) if file.exists() else 0


def lives(pid: int) -> bool:
    try:
        return pid != 0 and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_cancelled_call_kills_the_programs_group(workspace: Path) -> None:
    script, mark = "sleep 1000 & echo $! > pid; wait", workspace / "pid"
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Runner(workspace).run(["/bin/sh", "-c", script]))
        await until(lambda: number_in(mark))
        running.cancel()
    await until(lambda: not lives(number_in(mark)))


@pytest.mark.parametrize("moments", range(12))
async def test_a_call_cancelled_at_any_moment_of_its_start_leaves_nothing(
    workspace: Path, moments: int
) -> None:
    script, mark = "sleep 1000 & echo $! > pid; wait", workspace / "pid"
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Runner(workspace).run(["/bin/sh", "-c", script]))
        for _ in range(moments):
            await asyncio.sleep(0)
        running.cancel()
    await until(lambda: not lives(number_in(mark)))


async def test_a_daemon_that_keeps_the_pipes_does_not_hold_the_call(workspace: Path) -> None:
    script = "setsid sh -c 'echo $$ > pid; exec sleep 60' & while ! [ -s pid ]; do :; done; echo done"
    began = asyncio.get_running_loop().time()
    done = await Runner(workspace).run(["/bin/sh", "-c", script], timeout_s=20)
    os.kill(number_in(workspace / "pid"), signal.SIGKILL)
    assert (done.code, done.stdout) == (0, "done\n")
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_program_that_does_not_exist_is_the_callers_mistake(workspace: Path) -> None:
    with pytest.raises(Invalid):
        await Runner(workspace).run(["/no/such/program"])


def test_a_schema_that_is_not_enforced_is_refused() -> None:
    async def never(_call: Call) -> Outcome:
        raise AssertionError

    with pytest.raises(ValueError, match="unevaluatedItems"):
        check_schema({"type": "object", "unevaluatedItems": False})
    with pytest.raises(ValueError, match="named"):
        Tool("no good", "", {}, never)


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 5},
        "s": {"type": "string", "minLength": 1, "maxLength": 3},
        "l": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
        "e": {"enum": ["a", 1, None]},
        "b": {"type": "boolean"},
    },
    "required": ["n"],
    "additionalProperties": False,
}
LEAVES = st.none() | st.booleans() | st.integers(-2, 8) | st.floats(-2, 8) | st.text(max_size=4)
VALUES = st.dictionaries(
    st.sampled_from(["n", "s", "l", "e", "b", "x"]), LEAVES | st.lists(LEAVES, max_size=3), max_size=4
)


@given(VALUES)
def test_our_checks_agree_with_a_real_json_schema_validator(value: dict[str, Any]) -> None:
    import jsonschema

    assert (not list(problems(SCHEMA, value))) == jsonschema.Draft202012Validator(SCHEMA).is_valid(value)


@given(st.text(max_size=40))
def test_no_path_leaves_the_workspace(path: str) -> None:
    try:
        parts = beneath.parts_of(path)
    except Invalid:
        return
    assert ".." not in parts
    assert not any("/" in part or "\0" in part for part in parts)
