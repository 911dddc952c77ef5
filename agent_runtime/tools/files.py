"""The built-in tools on the agent's workspace: read, write, list, and run Python there."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from agent_runtime.limits import FILE_MAX_BYTES, PATH_MAX_CHARS
from agent_runtime.process import Completed, Runner
from agent_runtime.tools import beneath
from agent_runtime.tools.registry import Call, Outcome, Tool
from wire.errors import Invalid

_PATH: Final = {"type": "string", "minLength": 1, "maxLength": PATH_MAX_CHARS}
_STARTUP_SPARE_S: Final = (
    0.2  # the subprocess ends before the tool's own deadline, so that its output is kept
)


def _schema(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


class FileTools:
    """The workspace's tools; file access happens in the agent's threads, programs in subprocesses."""

    def __init__(self, workspace: Path, runner: Runner, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._workspace = workspace
        self._runner = runner
        self._in_thread = in_thread

    def tools(self) -> list[Tool]:
        text = {"type": "string", "maxLength": FILE_MAX_BYTES}
        arguments = {"type": "array", "items": {"type": "string", "maxLength": 4096}, "maxItems": 64}
        return [
            Tool(
                "read_file",
                "Read a text file of the workspace.",
                _schema(["path"], path=_PATH),
                self._read,
                read_only=True,
            ),
            Tool(
                "list_files",
                "List the files of a directory of the workspace.",
                _schema([], path=_PATH, recursive={"type": "boolean"}),
                self._list,
                read_only=True,
            ),
            Tool(
                "write_file",
                "Create or replace a text file in the workspace.",
                _schema(["path", "content"], path=_PATH, content=text),
                self._write,
            ),
            Tool(
                "run_python",
                "Run Python code, or a Python file of the workspace, and return what it prints.",
                _schema(
                    [], code=text, path=_PATH, args=arguments, stdin={"type": "string", "maxLength": 65536}
                ),
                self._run_python,
            ),
        ]

    async def _read(self, call: Call) -> Outcome:
        path = call.arguments["path"]
        data: bytes = await self._file(beneath.read, path)
        text = data.decode(errors="replace")
        return Outcome(text, {"path": path, "bytes": len(data)})

    async def _list(self, call: Call) -> Outcome:
        path, recursive = call.arguments.get("path", "."), bool(call.arguments.get("recursive", False))
        found, more = await self._file(beneath.listing, path, recursive=recursive)
        files = [{"path": name, "bytes": size} for name, size in found]
        return Outcome("\n".join(name for name, _ in found), {"files": files, "truncated": more})

    async def _write(self, call: Call) -> Outcome:
        path, data = call.arguments["path"], call.arguments["content"].encode()
        await self._file(beneath.write, path, data)
        return Outcome(f"wrote {len(data)} bytes to {path}", {"path": path, "bytes": len(data)})

    async def _run_python(self, call: Call) -> Outcome:
        code, path = call.arguments.get("code"), call.arguments.get("path")
        if (code is None) == (path is None):
            raise Invalid("give either code or path")
        program = ["-c", str(code)]
        if path is not None:
            program = [str(await self._file(beneath.require_file, path))]
        completed = await self._runner.run(
            [sys.executable, "-I", *program, *call.arguments.get("args", ())],
            timeout_s=max(call.timeout_s - _STARTUP_SPARE_S, call.timeout_s / 2),
            stdin=call.arguments.get("stdin", "").encode(),
        )
        return _outcome(completed)

    async def _file(self, work: Callable[..., Any], path: str, *rest: Any, **options: Any) -> Any:
        try:
            return await self._in_thread(work, self._workspace, path, *rest, **options)
        except OSError as error:
            raise Invalid(f"cannot use '{path}': {error.strerror}") from error


def _outcome(completed: Completed) -> Outcome:
    text = completed.stdout
    if completed.stderr:
        text += f"\n[stderr]\n{completed.stderr}"
    if completed.timed_out:
        text += "\n[killed: it did not end in time]"
    structured = {
        "exit_code": completed.code,
        "stdout": completed.stdout,
        "stderr": completed.stderr,
        "timed_out": completed.timed_out,
        "truncated": completed.truncated,
    }
    return Outcome(text.strip(), structured, is_error=completed.code != 0)
