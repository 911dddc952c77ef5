"""`tools/list` and `tools/call`."""

from __future__ import annotations

import json
from contextlib import aclosing

from agent_runtime.assumed import AssumedAgent
from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.limits import CALL_MAX_S
from agent_runtime.mcp.pages import page
from agent_runtime.mcp.rounds import round_of, until_complete
from agent_runtime.tasks import Progress
from agent_runtime.tools.registry import Outcome, Round, Tool
from wire.errors import AgentCodeFailed
from wire.mcp import forms
from wire.mcp.checks import check_params
from wire.mcp.messages import Json


async def list_tools(asked: Asked) -> Json:
    tools = asked.agent.visible_tools(asked.caller.scopes)
    shown, cursor = page(tools, lambda tool: tool.name, asked.params.get("cursor"))
    return forms.cached({"tools": [shape(tool) for tool in shown], **cursor})


def shape(tool: Tool) -> Json:
    """A tool as lists show it."""
    return forms.tool(
        tool.name,
        tool.description,
        tool.input_schema,
        title=tool.title,
        output_schema=tool.output_schema,
        annotations=forms.hints(
            read_only=tool.read_only,
            destructive=tool.destructive,
            idempotent=tool.idempotent,
            open_world=tool.open_world,
        ),
    )


async def call_tool(asked: Asked) -> Json:
    """Call a tool; where it asks its caller, the way of the revision is gone."""
    name, arguments = asked.text("name"), asked.object("arguments")
    tool = asked.agent.require_tool(name, asked.caller.scopes)
    if asked.client.stateless:
        check_params(asked.headers, tool.input_schema, arguments)

    async def once(answered: Round) -> Outcome:
        return await _call(asked.agent, asked, name, answered)

    outcome = await until_complete(asked, once, round_of(asked, name), name)
    if isinstance(outcome, dict):
        return outcome
    return forms.complete(_called(outcome, tool), asked.client.revision)


async def _call(agent: AssumedAgent, asked: Asked, name: str, answered: Round) -> Outcome:
    """What the tool answers; what its code does wrong is a result, as a model may find another way."""
    updates = agent.call_tool(
        name,
        asked.object("arguments"),
        CALL_MAX_S,
        asked.caller.scopes,
        log=asked.exchange.log,
        answered=answered,
    )
    outcome = Outcome("the tool answered nothing", is_error=True)
    try:
        async with aclosing(updates):
            async for update in updates:
                if isinstance(update, Progress):
                    asked.exchange.progress(update)
                else:
                    outcome = update
    except AgentCodeFailed as error:
        return Outcome(error.message, is_error=True)
    return outcome


def _called(outcome: Outcome, tool: Tool) -> Json:
    # Who promised a structured result gives one, though there be nothing in it.
    promised = tool.output_schema is not None and not outcome.is_error
    structured = outcome.structured if outcome.structured or promised else None
    content = list(outcome.content)
    if not content:
        said = outcome.text or ("" if structured is None else json.dumps(structured, default=repr))
        content = [forms.text(said)] if said else []
    return forms.called(content, structured, is_error=outcome.is_error)
