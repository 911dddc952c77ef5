"""The skills extension of MCP: what packs are mounted, with their frontmatter and the digests of their files."""

from __future__ import annotations

from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.pages import page
from wire.mcp import forms
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Json

EXTENSION = "io.modelcontextprotocol/skills"


async def list_skills(asked: Asked) -> Json:
    found = asked.agent.parts.skills.entries()
    shown, cursor = page(found, lambda entry: str(entry["uri"]), asked.params.get("cursor"))
    return forms.cached({"skills": list(shown), **cursor})


async def get_skill(asked: Asked) -> Json:
    uri = asked.text("uri")
    for entry in asked.agent.parts.skills.entries():
        if entry["uri"] == uri:
            return forms.cached({"skill": entry})
    raise invalid_params(f"there is no skill '{uri[:200]}'")
