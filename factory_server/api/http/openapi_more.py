"""What `/openapi.json` says of the paths that speak others' protocols, written by hand: no descriptor has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from factory_server.api.a2a.policy import OPERATORS, READERS
from factory_server.api.http import a2a, chat, mcp
from factory_server.api.http.answers import EVENTS
from factory_server.api.http.failures import JSON
from wire import completions
from wire.policy import Principal
from wire.tokens import SCOPES

Json = dict[str, Any]

TAGS: Final = (
    {"name": "MCP", "description": "Model Context Protocol, Streamable HTTP."},
    {"name": "OpenAI", "description": "Agents as models, for OpenAI's clients."},
    {"name": "A2A", "description": "Agent2Agent; its methods are served over gRPC."},
)
_STATUS: Final = {"$ref": "#/components/schemas/Status"}


def components() -> dict[str, Json]:
    """Schemas beside those of our messages."""
    text, number = {"type": "string"}, {"type": "integer"}
    return {
        "JsonRpcMessage": _object(
            "A request, a notification or an answer.",
            ["jsonrpc"],
            jsonrpc={"const": "2.0"},
            id={"type": ["string", "integer", "null"]},
            method=text,
            params={"type": "object"},
            result={"type": "object"},
            error=_object("What is wrong.", ["code", "message"], code=number, message=text),
        ),
        "ChatCompletionRequest": _chat_request(),
        "ChatCompletion": _object(
            "The answer in one piece.",
            ["id", "object", "created", "model", "choices", "usage"],
            id=text,
            object={"const": "chat.completion"},
            created=number,
            model=text,
            choices=_list({"type": "object"}),
            usage={"type": "object"},
        ),
        "ModelList": _object(
            "The agents that the caller may talk with.",
            ["object", "data"],
            object={"const": "list"},
            data=_list(_named("Model")),
        ),
        "Model": _object("An agent.", ["id", "object"], id=text, object={"const": "model"}, owned_by=text),
        "OpenAIError": _object(
            "What went wrong; `code` is our reason.",
            ["error"],
            error=_object(
                "",
                ["message", "type"],
                message=text,
                type=text,
                param={"type": ["string", "null"]},
                code=text,
            ),
        ),
        "AgentCard": _object(
            "A card of A2A 1.0, in proto3 JSON.",
            ["name", "version", "skills"],
            name=text,
            version=text,
            skills=_list({"type": "object"}),
        ),
    }


def paths() -> dict[str, Json]:
    """The path items."""
    card = _answer("The card.", _named("AgentCard"))
    return {
        mcp.AGENT_PATH: _mcp("agent", "one agent's tools, resources, prompts and skills"),
        mcp.CREW_PATH: _mcp("crew", "those of all agents of a crew, under names prefixed with the agent's"),
        completions.PATH: {"post": _chat()},
        completions.MODELS_PATH: {
            "get": _operation(
                "OpenAI", "ListModels", "The agents that the caller may talk with, as models", chat.TALKERS
            )
            | _results({"200": _answer("The models.", _named("ModelList"))}, _named("OpenAIError"))
        },
        chat.MODEL_PATH: {
            "get": _operation("OpenAI", "GetModel", "One of them", chat.TALKERS)
            | {"parameters": [_parameter("model")]}
            | _results({"200": _answer("The model.", _named("Model"))}, _named("OpenAIError"))
        },
        a2a.PATH: {
            "get": _operation("A2A", "GetAgentCard", "The card of an agent", OPERATORS, READERS)
            | {"parameters": [_parameter("agent")]}
            | _results({"200": card}, _STATUS)
        },
    }


def _mcp(whose: str, what: str) -> Json:
    """Both endpoints are alike."""
    name = f"{whose.capitalize()}Mcp"
    message = _named("JsonRpcMessage")
    wrong = {"anyOf": [message, _STATUS]}
    called = _operation("MCP", f"Call{name}", f"Say something to MCP: {what}", mcp.CALLERS)
    heard = _operation("MCP", f"Hear{name}", "Listen to what the server says by itself", mcp.CALLERS)
    ended = _operation("MCP", f"End{name}", "End a session", mcp.CALLERS)
    stream = {EVENTS: {"schema": {"type": "string"}}}
    answered = {
        "description": "The answer, or a stream that ends with it.",
        "content": _content(message) | stream,
    }
    place = {"parameters": [_parameter(whose)]}
    return {
        "post": called
        | place
        | {"requestBody": {"required": True, "content": _content(message)}}
        | _results({"200": answered, "202": {"description": "Taken; nothing is answered."}}, wrong),
        "get": heard
        | place
        | {"x-stream": True}
        | _results({"200": {"description": "A stream.", "content": stream}}, wrong),
        "delete": ended
        | place
        | _results({code: {"description": "It is gone."} for code in ("200", "204")}, wrong),
    }


def _chat() -> Json:
    done = {
        "description": "The answer; with `stream` in pieces, as events.",
        "content": _content(_named("ChatCompletion")) | {EVENTS: {"schema": {"type": "string"}}},
    }
    return (
        _operation("OpenAI", "CreateChatCompletion", "Talk with an agent", chat.TALKERS)
        | {"requestBody": {"required": True, "content": _content(_named("ChatCompletionRequest"))}}
        | _results({"200": done}, _named("OpenAIError"))
    )


def _chat_request() -> Json:
    text: Json = {"type": "string"}
    message = _object(
        "One message.",
        ["role"],
        role={"enum": sorted(completions.ROLES)},
        content={"anyOf": [text, _list({"type": "object"}), {"type": "null"}]},
        tool_calls=_list({"type": "object"}),
        tool_call_id=text,
    )
    return _object(
        "What is asked; hints of OpenAI's that have no effect here may stand in it, too.",
        ["model", "messages"],
        model=text | {"description": "`<crew id>/<agent name>`, or an agent's id."},
        messages=_list(message) | {"minItems": 1, "maxItems": completions.MESSAGES_MAX},
        tools=_list({"type": "object"}) | {"description": "The caller's own: calls of them end the answer."},
        tool_choice={"anyOf": [{"enum": list(completions.CHOICES)}, {"type": "object"}]},
        response_format={"type": "object", "properties": {"type": {"enum": list(completions.FORMATS)}}},
        stream={"type": "boolean"},
        stream_options={"type": "object"},
        temperature={"type": "number"},
        top_p={"type": "number"},
        max_completion_tokens={"type": "integer"},
        stop={"anyOf": [text, _list(text)]},
        seed={"type": "integer"},
    )


def _operation(
    tag: str, name: str, summary: str, who: Collection[Principal], scopes: Collection[str] = SCOPES
) -> Json:
    return {
        "operationId": f"{tag}_{name}",
        "tags": [tag],
        "summary": summary,
        "description": f"{summary}.",
        "parameters": [],
        "x-principals": sorted(principal.name.lower() for principal in who),
        "x-scopes": sorted(scopes),
    }


def _results(good: Json, wrong: Json) -> Json:
    refused = {"description": "Refused.", "content": _content(wrong)}
    failed = {"description": "Failed; nothing is said of the effect.", "content": _content(wrong)}
    return {"responses": {**good, "4XX": refused, "5XX": failed}}


def _answer(description: str, schema: Json) -> Json:
    return {"description": description, "content": _content(schema)}


def _content(schema: Json) -> Json:
    return {JSON: {"schema": schema}}


def _named(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str) -> Json:
    text = f"The {name}'s id."
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}


def _object(description: str, required: list[str], **properties: Json) -> Json:
    return {"type": "object", "description": description, "required": required, "properties": properties}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}
