"""Resources, prompts and the completion of their arguments."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.limits import SUBSCRIPTIONS_MAX
from agent_runtime.mcp.pages import page
from agent_runtime.mcp.reading import Reader, in_time, not_found
from agent_runtime.mcp.rounds import round_of, until_complete
from agent_runtime.offers import Complete, Prompt, Prompted, Read, Resource
from agent_runtime.tools.registry import Round
from wire.errors import NotFound
from wire.mcp import forms
from wire.mcp.errors import HANDSHAKE_RESOURCE_NOT_FOUND, INVALID_PARAMS, McpError, invalid_params
from wire.mcp.messages import Json

COMPLETIONS_MAX = 100


async def list_resources(asked: Asked) -> Json:
    found = [one for one in _reader(asked).resources() if not one.template]
    shown, cursor = page(found, lambda one: one.uri, asked.params.get("cursor"))
    return forms.cached({"resources": [{"uri": one.uri, **_about(one)} for one in shown], **cursor})


async def list_templates(asked: Asked) -> Json:
    found = [one for one in _reader(asked).resources() if one.template]
    shown, cursor = page(found, lambda one: one.uri, asked.params.get("cursor"))
    return forms.cached(
        {"resourceTemplates": [{"uriTemplate": one.uri, **_about(one)} for one in shown], **cursor}
    )


def _reader(asked: Asked) -> Reader:
    return Reader(asked.agent, asked.caller.scopes)


def _about(one: Resource) -> Json:
    if one.shown:
        return dict(one.shown)
    said = {"name": one.name, "title": one.title, "description": one.description, "mimeType": one.mime_type}
    return {key: value for key, value in said.items() if value}


async def read_resource(asked: Asked) -> Json:
    uri = asked.text("uri")
    one = _find(asked, uri)
    if one.fetch is not None:
        return await _fetch(asked, one, uri)
    assert one.read is not None
    data = await asked.agent.read(one.read, one.match(uri) or {})
    content: Json = {"uri": uri, "mimeType": one.mime_type}
    if isinstance(data, str):
        content["text"] = data
    else:
        content["blob"] = base64.b64encode(data).decode()
    return forms.cached({"contents": [content]}, ttl_ms=0)


async def _fetch(asked: Asked, one: Resource, uri: str) -> Json:
    """Have a server read."""
    await _reader(asked).check_links(uri)

    async def once(answered: Round) -> Read:
        assert one.fetch is not None
        return await in_time(asked.agent, one.fetch(uri, answered), asking=bool(asked.client.capabilities))

    try:
        found = await until_complete(asked, once, round_of(asked, uri), uri)
    except McpError as error:
        if error.code == HANDSHAKE_RESOURCE_NOT_FOUND:
            raise not_found(uri, _missing_code(asked)) from error
        raise
    return found if isinstance(found, dict) else forms.cached({"contents": list(found.contents)}, ttl_ms=0)


def _find(asked: Asked, uri: str) -> Resource:
    found = _reader(asked).find(uri)
    if found is None:
        raise not_found(uri, _missing_code(asked))
    return found


def _missing_code(asked: Asked) -> int:
    return INVALID_PARAMS if asked.client.stateless else HANDSHAKE_RESOURCE_NOT_FOUND


async def subscribe(asked: Asked) -> Json:
    uri = asked.text("uri")
    _find(asked, uri)
    if asked.session is None:
        raise invalid_params("subscriptions belong to a session, and there is none")
    if len(asked.session.subscriptions) >= SUBSCRIPTIONS_MAX:
        raise invalid_params(f"a session may subscribe to {SUBSCRIPTIONS_MAX} resources")
    asked.session.subscriptions.add(uri)
    asked.agent.offered.wishes_changed()
    return {}


async def unsubscribe(asked: Asked) -> Json:
    if asked.session is not None:
        asked.session.subscriptions.discard(asked.text("uri"))
        asked.agent.offered.wishes_changed()
    return {}


async def list_prompts(asked: Asked) -> Json:
    shown, cursor = page(_reader(asked).prompts(), lambda one: one.name, asked.params.get("cursor"))
    return forms.cached({"prompts": [_shape(one) for one in shown], **cursor})


def _shape(one: Prompt) -> Json:
    arguments = [
        {"name": each.name, "description": each.description, "required": each.required}
        | ({"title": each.title} if each.title else {})
        for each in one.arguments
    ]
    said = {"name": one.name, "title": one.title, "description": one.description, "arguments": arguments}
    return {key: value for key, value in said.items() if value} | dict(one.shown)


async def get_prompt(asked: Asked) -> Json:
    name = asked.text("name")
    prompt = _prompt(asked, name)
    arguments = asked.object("arguments")
    _check(prompt, arguments)

    async def once(answered: Round) -> Prompted:
        if prompt.suggest is not None:
            work = prompt.get(arguments, answered)
            return await in_time(asked.agent, work, asking=bool(asked.client.capabilities))
        found: Prompted = await asked.agent.read(prompt.get, arguments, answered)
        return found

    found = await until_complete(asked, once, round_of(asked, name), name)
    if isinstance(found, dict):
        return found
    about = {"description": found.description} if found.description else {}
    return {**about, "messages": list(found.messages)}


def _prompt(asked: Asked, name: str) -> Prompt:
    try:
        return _reader(asked).prompt(name)
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
    behind = _reference(asked)
    if behind.suggest is not None:
        work = behind.suggest({"name": name, "value": value}, asked.object("context"))
        return {"completion": _bounded(await in_time(asked.agent, work, asking=False))}
    way = _way(behind, name)
    values = [] if way is None else list(await asked.agent.read(way, value))
    return {
        "completion": {
            "values": values[:COMPLETIONS_MAX],
            "total": len(values),
            "hasMore": len(values) > COMPLETIONS_MAX,
        }
    }


def _bounded(completion: Mapping[str, Any]) -> Json:
    """What a server suggests, in the form that clients rely on."""
    given = completion.get("values")
    values = [value for value in given if isinstance(value, str)] if isinstance(given, list) else []
    said: Json = {
        "values": values[:COMPLETIONS_MAX],
        "hasMore": completion.get("hasMore") is True or len(values) > COMPLETIONS_MAX,
    }
    total = completion.get("total")
    return said | {"total": total} if isinstance(total, int) and total >= 0 else said


def _reference(asked: Asked) -> Prompt | Resource:
    """Whose argument is to be completed."""
    reference = asked.object("ref")
    match reference.get("type"):
        case "ref/prompt":
            return _prompt(asked, str(reference.get("name")))
        case "ref/resource":
            uri = str(reference.get("uri"))
            for one in _reader(asked).resources():
                if one.uri == uri:
                    return one
            raise invalid_params(f"there is no resource '{uri[:200]}'")
        case _:
            raise invalid_params("params.ref.type is ref/prompt or ref/resource")


def _way(one: Prompt | Resource, name: str) -> Complete | None:
    if isinstance(one, Resource):
        return one.completes.get(name)
    return next((each.complete for each in one.arguments if each.name == name), None)
