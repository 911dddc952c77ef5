"""Resources, prompts and the completion of their arguments."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.limits import SUBSCRIPTIONS_MAX, URI_MAX_CHARS
from agent_runtime.mcp.pages import page
from agent_runtime.mcp.rounds import round_of, until_complete
from agent_runtime.offers import Complete, Prompt, Prompted, Resource
from agent_runtime.tools.registry import Round
from wire.errors import NotFound
from wire.mcp import forms
from wire.mcp.errors import HANDSHAKE_RESOURCE_NOT_FOUND, INVALID_PARAMS, McpError, invalid_params
from wire.mcp.messages import Json

COMPLETIONS_MAX = 100


async def list_resources(asked: Asked) -> Json:
    found = [one for one in asked.agent.offered.resources if not one.template]
    shown, cursor = page(found, lambda one: one.uri, asked.params.get("cursor"))
    return forms.cached({"resources": [{"uri": one.uri, **_about(one)} for one in shown], **cursor})


async def list_templates(asked: Asked) -> Json:
    found = [one for one in asked.agent.offered.resources if one.template]
    shown, cursor = page(found, lambda one: one.uri, asked.params.get("cursor"))
    return forms.cached(
        {"resourceTemplates": [{"uriTemplate": one.uri, **_about(one)} for one in shown], **cursor}
    )


def _about(one: Resource) -> Json:
    said = {"name": one.name, "title": one.title, "description": one.description, "mimeType": one.mime_type}
    return {key: value for key, value in said.items() if value}


async def read_resource(asked: Asked) -> Json:
    uri = asked.text("uri")
    one, variables = _find(asked, uri)
    data = await asked.agent.read(one.read, variables)
    content: Json = {"uri": uri, "mimeType": one.mime_type}
    if isinstance(data, str):
        content["text"] = data
    else:
        content["blob"] = base64.b64encode(data).decode()
    return forms.cached({"contents": [content]}, ttl_ms=0)


def _find(asked: Asked, uri: str) -> tuple[Resource, Mapping[str, str]]:
    for one in asked.agent.offered.resources if len(uri) <= URI_MAX_CHARS else ():
        variables = one.match(uri)
        if variables is not None:
            return one, variables
    code = INVALID_PARAMS if asked.client.stateless else HANDSHAKE_RESOURCE_NOT_FOUND
    raise McpError(code, "resource not found", {"uri": uri[:URI_MAX_CHARS]})


async def subscribe(asked: Asked) -> Json:
    uri = asked.text("uri")
    _find(asked, uri)
    if asked.session is None:
        raise invalid_params("subscriptions belong to a session, and there is none")
    if len(asked.session.subscriptions) >= SUBSCRIPTIONS_MAX:
        raise invalid_params(f"a session may subscribe to {SUBSCRIPTIONS_MAX} resources")
    asked.session.subscriptions.add(uri)
    return {}


async def unsubscribe(asked: Asked) -> Json:
    if asked.session is not None:
        asked.session.subscriptions.discard(asked.text("uri"))
    return {}


async def list_prompts(asked: Asked) -> Json:
    shown, cursor = page(list(asked.agent.offered.prompts), lambda one: one.name, asked.params.get("cursor"))
    return forms.cached({"prompts": [_shape(one) for one in shown], **cursor})


def _shape(one: Prompt) -> Json:
    arguments = [
        {"name": each.name, "description": each.description, "required": each.required}
        for each in one.arguments
    ]
    said = {"name": one.name, "title": one.title, "description": one.description, "arguments": arguments}
    return {key: value for key, value in said.items() if value}


async def get_prompt(asked: Asked) -> Json:
    name = asked.text("name")
    prompt = _prompt(asked, name)
    arguments = asked.object("arguments")
    _check(prompt, arguments)

    async def once(answered: Round) -> Prompted:
        found: Prompted = await asked.agent.read(prompt.get, arguments, answered)
        return found

    found = await until_complete(asked, once, round_of(asked, name), name)
    if isinstance(found, dict):
        return found
    about = {"description": found.description} if found.description else {}
    return {**about, "messages": list(found.messages)}


def _prompt(asked: Asked, name: str) -> Prompt:
    try:
        return asked.agent.offered.prompts.require(name)
    except NotFound as error:
        raise invalid_params(error.message) from error


def _check(prompt: Prompt, arguments: Mapping[str, Any]) -> None:
    missing = [each.name for each in prompt.arguments if each.required and each.name not in arguments]
    if missing:
        raise invalid_params(f"prompt '{prompt.name}' needs {', '.join(missing)}")
    if wrong := [key for key, value in arguments.items() if not isinstance(value, str)]:
        raise invalid_params(f"arguments of prompts are strings: {', '.join(wrong)[:200]}")


async def complete(asked: Asked) -> Json:
    """What an argument may go on with."""
    argument = asked.object("argument")
    name, value = argument.get("name"), argument.get("value")
    if not isinstance(name, str) or not isinstance(value, str):
        raise invalid_params("params.argument has a name and a value")
    way = _way(asked, name)
    values = [] if way is None else list(await asked.agent.read(way, value))
    return {
        "completion": {
            "values": values[:COMPLETIONS_MAX],
            "total": len(values),
            "hasMore": len(values) > COMPLETIONS_MAX,
        }
    }


def _way(asked: Asked, name: str) -> Complete | None:
    reference = asked.object("ref")
    match reference.get("type"):
        case "ref/prompt":
            prompt = _prompt(asked, str(reference.get("name")))
            return next((each.complete for each in prompt.arguments if each.name == name), None)
        case "ref/resource":
            uri = str(reference.get("uri"))
            found = [one for one in asked.agent.offered.resources if one.uri == uri]
            if not found:
                raise invalid_params(f"there is no resource '{uri[:200]}'")
            return found[0].completes.get(name)
        case _:
            raise invalid_params("params.ref.type is ref/prompt or ref/resource")
