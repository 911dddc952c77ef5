"""Skill packs at /skills: their scripts as tools, their files as resources, and what MCP is told of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent_runtime.capabilities import Capabilities
from agent_runtime.limits import SKILL_CALLS_END_S, SKILLS_MAX
from agent_runtime.offers import Resource
from agent_runtime.process import Completed, Runner
from agent_runtime.structs import to_dict
from agent_runtime.tools.registry import Call, Outcome, Tool
from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import AlreadyExists, Exhausted, FieldViolation, Invalid
from wire.mcp.skills import ENTRY, SCHEME, entry, mime_type

LINK: Final = Path(".agents/skills")
"""Below the workspace: where programs look that know skills from elsewhere."""
STARTUP_SPARE_S: Final = 0.2

InThread = Callable[..., Awaitable[Any]]


def entry_of(skill: pb.MountedSkill) -> dict[str, Any]:
    """A pack as MCP's skills extension lists it: frontmatter, and every file with digest and size."""
    return entry(f"{SCHEME}{skill.name}/", to_dict(skill.frontmatter), skill.files)


@dataclass(eq=False)
class Mounted:
    """One pack, and the calls of its tools that are on the way."""

    message: pb.MountedSkill
    root: Path
    runner: Runner
    in_thread: InThread
    ended: bool = False
    _calls: set[asyncio.Task[Any]] = field(default_factory=set)

    def tools(self) -> list[Tool]:
        """Its scripts that declare one."""
        return [
            Tool(
                declared.tool.name,
                declared.tool.description,
                to_dict(declared.tool.input_schema),
                _Script(self, self.root / declared.script).call,
                read_only=declared.tool.read_only,
                title=declared.tool.title,
                scope=declared.scope,
            )
            for declared in self.message.tools
        ]

    def resources(self) -> list[Resource]:
        """Its files; SKILL.md has the pack's own name and description."""
        about = to_dict(self.message.frontmatter)
        found = []
        for file in self.message.files:
            of_pack = file.path == ENTRY
            found.append(
                Resource(
                    f"{SCHEME}{self.message.name}/{file.path}",
                    self.message.name if of_pack else file.path,
                    self._reader(file.path),
                    description=str(about.get("description", "")) if of_pack else "",
                    mime_type=mime_type(file.path),
                )
            )
        return found

    def _reader(self, path: str) -> Callable[[Mapping[str, str]], Awaitable[str | bytes]]:
        async def read(_variables: Mapping[str, str]) -> str | bytes:
            data: bytes = await self.in_thread((self.root / path).read_bytes)
            try:
                return data.decode()
            except UnicodeDecodeError:
                return data

        return read

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A call that unmounting waits for."""
        task = asyncio.current_task()
        if self.ended or task is None:
            raise Invalid(f"the skill pack '{self.message.name}' is not mounted any more")
        self._calls.add(task)
        try:
            yield
        finally:
            self._calls.discard(task)

    async def end(self) -> None:
        """Let the calls on the way end; those that take too long are cut off."""
        self.ended = True
        if self._calls:
            await asyncio.wait(self._calls, timeout=SKILL_CALLS_END_S)
        for call in list(self._calls):
            call.cancel()


class _Script:
    """Carries out the calls of one tool: arguments go in as JSON, what is printed comes back."""

    def __init__(self, pack: Mounted, path: Path) -> None:
        self._pack = pack
        self._path = path

    async def call(self, call: Call) -> Outcome:
        with self._pack.at_work():
            completed = await self._pack.runner.run(
                [*_interpreter(self._path), str(self._path)],
                timeout_s=max(call.timeout_s - STARTUP_SPARE_S, call.timeout_s / 2),
                stdin=json.dumps(call.arguments).encode(),
            )
        return _outcome(completed)


def _interpreter(path: Path) -> list[str]:
    match path.suffix:
        case ".py":
            return [sys.executable, "-E", "-s"]  # a script finds the modules beside it
        case ".sh":
            return ["/bin/sh"]
        case _:
            return []


def _outcome(completed: Completed) -> Outcome:
    """What it printed; one JSON object is structured, too."""
    text = completed.stdout.strip()
    if completed.timed_out:
        return Outcome(f"{text}\n[killed: it did not end in time]".strip(), is_error=True)
    if completed.code:
        said = completed.stderr.strip() or text or f"the script ended with {completed.code}"
        return Outcome(said, {"exit_code": completed.code}, is_error=True)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return Outcome(text, found if isinstance(found, dict) else {})


class Skills:
    """The packs of one agent, by name."""

    def __init__(
        self, root: Path, workspace: Path, runner: Runner, offered: Capabilities, in_thread: InThread
    ) -> None:
        self._root = root
        self._workspace = workspace
        self._runner = runner
        self._offered = offered
        self._in_thread = in_thread
        self._mounted: dict[str, Mounted] = {}

    def entries(self) -> list[dict[str, Any]]:
        """What `skills/list` shows, by name."""
        return [entry_of(self._mounted[name].message) for name in sorted(self._mounted)]

    async def mount(self, message: pb.MountedSkill) -> list[Tool]:
        """Offer a pack that lies there; its tools. The same again is harmless, another of its name replaces it."""
        known = self._mounted.get(message.name)
        if known is not None and known.message == message:
            return known.tools()
        if known is not None:
            await self.unmount(message.name)
        if len(self._mounted) >= SKILLS_MAX:
            raise Exhausted(f"cannot mount more than {SKILLS_MAX} skill packs", quota="skill packs")
        pack = Mounted(message, self._root / message.name, self._runner, self._in_thread)
        tools = self._offer(pack)
        self._mounted[message.name] = pack
        await self._in_thread(_link, self._workspace / LINK, self._root)
        return tools

    def _offer(self, pack: Mounted) -> list[Tool]:
        source = _source(pack.message.name)
        try:
            tools = pack.tools()
            self._offered.tools.replace(source, tools)
        except (AlreadyExists, ValueError) as error:
            violation = FieldViolation("mounted.tools", str(error))
            text = f"cannot mount skill pack '{pack.message.name}': {error}"
            raise Invalid(text, violations=[violation]) from error
        self._offered.resources.replace(source, pack.resources())
        return tools

    async def unmount(self, name: str) -> None:
        """Offer it no more; returns when the calls of its tools have ended. It may not be there."""
        source = _source(name)
        self._offered.tools.replace(source, ())
        self._offered.resources.replace(source, ())
        pack = self._mounted.pop(name, None)
        if pack is not None:
            await pack.end()


def _source(name: str) -> str:
    return f"skill {name}"


def _link(link: Path, root: Path) -> None:
    """Best effort, and nothing that is there is replaced: the workspace is the agent's own."""
    try:
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root)
    except OSError:
        return
