"""Who may read what: the one place that decides which resources and prompts of servers a caller sees and uses.

MCP has resources and prompts read without effect, so whoever may use the agent may read them, unless the profile
keeps them for those who may write. But a server's `file:` resource may be any file that its process can open, and
who may not write reads below the workspace alone, as with the agent's own tools. What the profile's own code and
skill packs offer is the agent's word.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote

from agent_runtime.assumed import AssumedAgent
from agent_runtime.limits import TOOL_DEFAULT_S
from agent_runtime.mcp.limits import ASK_MAX_S, URI_MAX_CHARS
from agent_runtime.offers import Prompt, Resource
from agent_runtime.tools.registry import CODER, WRITERS
from wire.errors import DeadlineExceeded, Denied
from wire.mcp.errors import INVALID_PARAMS, McpError

LOCAL: Final = ("", "localhost")
# Some parsers leave these out: `fi\tle:///etc/passwd` is a file to them.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
# Where a path ends at one of these, and what one means, differs from server to server.
_UNCLEAR: Final = re.compile(r"[%?#\\]")
_INNER_FILE: Final = re.compile(r"(?<![a-z0-9+.-])file:")
DECODED_MAX: Final = 4  # times that a path may be encoded on top of itself

Found = TypeVar("Found")


class Reader(NamedTuple):
    """What one caller may read of an agent."""

    agent: AssumedAgent
    scopes: frozenset[str]

    @property
    def writer(self) -> bool:
        return self.agent.parts.reach(self.scopes)["writer"]

    def resources(self) -> list[Resource]:
        """What it sees in lists."""
        return [one for one in self.agent.offered.resources if self._may(one, one.uri)]

    def prompts(self) -> list[Prompt]:
        return [one for one in self.agent.offered.prompts if one.scope != CODER or self.writer]

    def hears_of(self, uri: str) -> bool:
        """Whether it may know that a resource has changed."""
        found = self.agent.offered.find(uri) if len(uri) <= URI_MAX_CHARS else None
        return found is not None and self._may(found, uri)

    def find(self, uri: str) -> Resource | None:
        """The resource that a URI means; `Denied` for one beyond the scope."""
        found = self.agent.offered.find(uri) if len(uri) <= URI_MAX_CHARS else None
        if found is not None and not self._may(found, uri):
            raise _beyond("resource", uri)
        return found

    def prompt(self, name: str) -> Prompt:
        """The prompt of a name; `NotFound` without one, `Denied` for one beyond the scope."""
        found = self.agent.offered.prompts.require(name)
        if found.scope == CODER and not self.writer:
            raise _beyond("prompt", name)
        return found

    async def check_links(self, uri: str) -> None:
        """Refuse a file that lies below the workspace by name alone: a link there may lead anywhere."""
        path = _path(uri)
        if path is None or self.writer:
            return
        real = await self.agent.parts.context.in_thread(os.path.realpath, path)
        root = await self.agent.parts.context.in_thread(os.path.realpath, self.agent.parts.context.workspace)
        if not Path(real).is_relative_to(root):
            raise _beyond("resource", uri)

    def _may(self, one: Resource, uri: str) -> bool:
        if one.fetch is None or self.writer:
            return True
        return one.scope != CODER and ((one.template and uri == one.uri) or self._below_workspace(uri))

    def _below_workspace(self, uri: str) -> bool:
        """Whether a URI is no file's, or one's that lies there by name."""
        path = _path(uri)
        return path is None or Path(path).is_relative_to(self.agent.parts.context.workspace)


def _path(uri: str) -> str | None:
    """The path of a `file:` URI, as whoever decodes most would read it; None for another URI. What could lead some
    server to a file by another way is said to be the root's."""
    plain = uri
    for _ in range(DECODED_MAX):
        plain = unquote(plain)
    lower = plain.strip().lower()
    if _CONTROLS.search(plain) or ".." in plain.split("/"):
        return "/"
    if not lower.startswith("file:"):
        return "/" if _INNER_FILE.search(lower) else None
    host, _, path = plain.strip()[len("file:") :].removeprefix("//").partition("/")
    return "/" if _UNCLEAR.search(path) or host.lower() not in LOCAL else os.path.normpath(f"/{path}")


def _beyond(kind: str, name: str) -> Denied:
    return Denied(
        f"the scope does not reach {kind} '{name[:200]}'",
        reason="SCOPE_MISSING",
        metadata={"scope": " ".join(sorted(WRITERS))},
    )


async def in_time(agent: AssumedAgent, work: Awaitable[Found], *, asking: bool) -> Found:
    """What a server answers, counted as the agent's work. Who may be asked has time to answer."""
    within_s = TOOL_DEFAULT_S + (ASK_MAX_S if asking else 0.0)
    with agent.gate.pass_through():
        try:
            async with asyncio.timeout(within_s):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(f"the server did not answer within {within_s:g} s") from None


def not_found(uri: str, code: int = INVALID_PARAMS) -> McpError:
    return McpError(code, "resource not found", {"uri": uri[:URI_MAX_CHARS]})
