"""The methods of the endpoint by name, and what the agent declares that it can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from agent_runtime import __version__
from agent_runtime.assumed import AssumedAgent
from agent_runtime.mcp import library, skills, tools
from agent_runtime.mcp.asked import Asked
from wire.mcp.errors import invalid_params, unknown_method
from wire.mcp.messages import Json
from wire.mcp.revisions import LOG_LEVELS, SUPPORTED

Method = Callable[[Asked], Awaitable[Json]]


def server_info(agent: AssumedAgent) -> Json:
    return {"name": agent.facts.name, "title": agent.facts.authority, "version": __version__}


def capabilities(agent: AssumedAgent) -> Json:
    """What the agent offers now: nothing is declared that it would not answer."""
    found: Json = {"tools": {"listChanged": True}}
    if _has(agent, "resources"):
        found["resources"] = {"listChanged": True, "subscribe": True}
    if _has(agent, "prompts"):
        found["prompts"] = {"listChanged": True}
    if found.keys() & {"resources", "prompts"}:
        found["completions"] = {}
    if agent.parts.skills.entries():
        found["extensions"] = {skills.EXTENSION: {}}
    return found


def _has(agent: AssumedAgent, kind: str) -> bool:
    """Whether there are any, or a server may bring some: who has asked once does not ask again."""
    mine = agent.offered.resources if kind == "resources" else agent.offered.prompts
    return len(mine) > 0 or agent.parts.servers.promises(kind)


async def discover(asked: Asked) -> Json:
    return {
        "supportedVersions": list(SUPPORTED),
        "capabilities": capabilities(asked.agent),
        "ttlMs": 0,
        "cacheScope": "private",
    }


async def ping(_asked: Asked) -> Json:
    return {}


async def set_level(asked: Asked) -> Json:
    level = asked.text("level")
    if level not in LOG_LEVELS:
        raise invalid_params(f"params.level is one of {', '.join(LOG_LEVELS)}")
    if asked.session is not None:
        asked.session.level = level
    return {}


BOTH_ERAS: Final[dict[str, Method]] = {
    "tools/list": tools.list_tools,
    "tools/call": tools.call_tool,
    "resources/list": library.list_resources,
    "resources/templates/list": library.list_templates,
    "resources/read": library.read_resource,
    "prompts/list": library.list_prompts,
    "prompts/get": library.get_prompt,
    "completion/complete": library.complete,
    "skills/list": skills.list_skills,
    "skills/get": skills.get_skill,
}
STATELESS_ONLY: Final[dict[str, Method]] = {"server/discover": discover}
HANDSHAKE_ONLY: Final[dict[str, Method]] = {
    "ping": ping,
    "logging/setLevel": set_level,
    "resources/subscribe": library.subscribe,
    "resources/unsubscribe": library.unsubscribe,
}
# What a group of methods needs to be declared.
_NEEDS: Final = {"resources": "resources", "prompts": "prompts", "completion": "completions"}


def method(asked: Asked) -> Method:
    """The method that a request names; `McpError` where the era or this agent has none such."""
    name = asked.request.method
    era = STATELESS_ONLY if asked.client.stateless else HANDSHAKE_ONLY
    found = BOTH_ERAS.get(name) or era.get(name)
    needed = _NEEDS.get(name.partition("/")[0])
    if found is None or (needed is not None and needed not in capabilities(asked.agent)):
        raise unknown_method(name)
    return found
