"""A profile with all that the official MCP conformance suite wants to find: tools, prompts, resources."""

from __future__ import annotations

import base64
import json
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from agent_runtime.profile import (
    Agent,
    Call,
    Outcome,
    Prompt,
    PromptArgument,
    Prompted,
    Resource,
    Round,
    Tool,
)

STEP_S: Final = 0.02
PNG: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
WAV: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
NOTHING: Final = {"type": "object", "properties": {}}
IMAGE: Final = {"type": "image", "data": PNG, "mimeType": "image/png"}
Handler = Callable[[Call], Awaitable[Outcome]]


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def embedded(uri: str, said: str, mime_type: str = "text/plain") -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": said}}


def elicit(message: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def one_text(name: str, *more: str, kind: str = "string") -> dict[str, Any]:
    """A form with these required fields."""
    names = [name, *more]
    return {"type": "object", "properties": {each: {"type": kind} for each in names}, "required": names}


def sample(prompt: str, tokens: int) -> dict[str, Any]:
    message = {"role": "user", "content": text(prompt)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": tokens}}


ROOTS: Final = {"method": "roots/list", "params": {}}

# What each tool answers without further ado.
SIMPLE: Final[dict[str, Sequence[Mapping[str, Any]]]] = {
    "test_simple_text": [text("This is a simple text response for testing.")],
    "test_image_content": [IMAGE],
    "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
    "test_embedded_resource": [embedded("test://embedded-resource", "This is an embedded resource content.")],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        embedded("test://mixed-content-resource", '{"test": "data", "value": 123}', "application/json"),
    ],
}

CONFIRM: Final = elicit("Please confirm", one_text("ok", kind="boolean"))
# What each tool asks before it answers, and with which state.
ASKING: Final[dict[str, tuple[Mapping[str, Any], str]]] = {
    "test_input_required_result_elicitation": (
        {"user_name": elicit("What is your name?", one_text("name"))},
        "",
    ),
    "test_input_required_result_sampling": (
        {"capital_question": sample("What is the capital of France?", 100)},
        "",
    ),
    "test_input_required_result_list_roots": ({"client_roots": ROOTS}, ""),
    "test_input_required_result_request_state": ({"confirm": CONFIRM}, "asked once"),
    "test_input_required_result_tampered_state": ({"confirm": CONFIRM}, "asked once"),
    "test_input_required_result_multiple_inputs": (
        {
            "user_name": elicit("What is your name?", one_text("name")),
            "greeting": sample("Generate a greeting", 50),
            "client_roots": ROOTS,
        },
        "asked for three",
    ),
    "test_streaming_elicitation": ({"confirm": CONFIRM}, ""),
}

DEFAULTS: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}
OPTIONS: Final = ["option1", "option2", "option3"]
TITLED: Final = [{"const": f"value{number}", "title": f"Option {number}"} for number in (1, 2, 3)]
ENUMS: Final = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": OPTIONS},
        "titledSingle": {"type": "string", "oneOf": TITLED},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
        "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
    },
}
RICH_SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
MIRRORED_SCHEMA: Final = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    "required": ["region"],
}


class Fixture(Agent):
    """Answers as the suite's descriptions of its scenarios say."""

    def __init__(self) -> None:
        self._changes = 0

    def tools(self) -> Sequence[Tool]:
        own: dict[str, Handler] = {
            "test_tool_with_logging": self._logs,
            "test_logging_tool": self._logs,
            "test_tool_with_progress": self._progress,
            "test_error_handling": self._fails,
            "test_missing_capability": self._needs_sampling,
            "test_input_required_result_multi_round": self._two_rounds,
            "test_input_required_result_capabilities": self._asks_what_it_may,
            "test_elicitation_sep1034_defaults": _form(DEFAULTS),
            "test_elicitation_sep1330_enums": _form(ENUMS),
            "test_trigger_tool_change": self._change_tools,
            "test_trigger_prompt_change": self._change_prompts,
        }
        own |= {name: _content(content) for name, content in SIMPLE.items()}
        own |= {name: _asks(requests, state) for name, (requests, state) in ASKING.items()}
        tools = [Tool(name, f"Conformance: {name}.", NOTHING, handler) for name, handler in own.items()]
        return [
            *tools,
            Tool("test_sampling", "Asks the client's model.", one_text("prompt"), self._samples),
            Tool("test_elicitation", "Asks the user.", one_text("message"), self._elicits),
            Tool("json_schema_2020_12_tool", "Has a rich schema.", RICH_SCHEMA, _content([text("fits")])),
            Tool(
                "test_custom_header", "Has a mirrored argument.", MIRRORED_SCHEMA, _content([text("heard")])
            ),
        ]

    def resources(self) -> Sequence[Resource]:
        async def static(_variables: Mapping[str, str]) -> str:
            return "This is the content of the static text resource."

        async def binary(_variables: Mapping[str, str]) -> bytes:
            return base64.b64decode(PNG)

        async def data(variables: Mapping[str, str]) -> str:
            found = {"id": variables["id"], "templateTest": True, "data": f"Data for ID: {variables['id']}"}
            return json.dumps(found)

        return [
            Resource("test://static-text", "Static text", static, "A text."),
            Resource("test://static-binary", "Static binary", binary, "An image.", mime_type="image/png"),
            Resource("test://watched-resource", "Watched", static, "A text that may change."),
            Resource("test://template/{id}/data", "Template", data, "By id.", mime_type="application/json"),
        ]

    def prompts(self) -> Sequence[Prompt]:
        async def parks(_begun: str) -> Sequence[str]:
            return ["paris", "park", "party"]

        first = PromptArgument("arg1", "First.", required=True, complete=parks)
        second = PromptArgument("arg2", "Second.", required=True)
        uri = PromptArgument("resourceUri", "What to embed.", required=True)
        image = _user(IMAGE), _user(text("Please analyze the image above."))
        return [
            Prompt(
                "test_simple_prompt", _says(_user(text("This is a simple prompt for testing."))), "Simple."
            ),
            Prompt("test_prompt_with_arguments", _arguments, "With arguments.", arguments=[first, second]),
            Prompt("test_prompt_with_embedded_resource", _embeds, "With a resource.", arguments=[uri]),
            Prompt("test_prompt_with_image", _says(*image), "With an image."),
            Prompt("test_input_required_result_prompt", _context, "Asks first."),
        ]

    async def _logs(self, call: Call) -> Outcome:
        for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            call.log("info", said)
            await sleep(STEP_S)
        return Outcome("Tool with logging executed successfully")

    async def _progress(self, call: Call) -> Outcome:
        for percent in (0, 50, 100):
            await call.report(percent / 100, f"Completed step {percent} of 100", {})
            await sleep(STEP_S)
        return Outcome("done")

    async def _fails(self, _call: Call) -> Outcome:
        raise RuntimeError("This tool intentionally returns an error for testing")

    async def _needs_sampling(self, call: Call) -> Outcome:
        if call.round.answers:
            return Outcome("the client can sample")
        return Outcome("", asks={"sample": sample("Say hello", 10)})

    async def _two_rounds(self, call: Call) -> Outcome:
        match call.round.state:
            case "":
                return Outcome(
                    "", asks={"step1": elicit("Step 1: What is your name?", one_text("name"))}, state="1"
                )
            case "1":
                asks = {"step2": elicit("Step 2: What is your favorite color?", one_text("color"))}
                return Outcome("", asks=asks, state="2")
            case _:
                return Outcome("both steps are done")

    async def _asks_what_it_may(self, call: Call) -> Outcome:
        if call.round.answers:
            return Outcome("asked and answered")
        may = {"sampling": sample("Say hello", 10), "elicitation": CONFIRM}
        return Outcome("", asks={name: may[name] for name in may if name in call.round.capabilities})

    async def _samples(self, call: Call) -> Outcome:
        if not (answer := call.round.answers.get("answer")):
            return Outcome("", asks={"answer": sample(call.arguments["prompt"], 100)})
        return Outcome(f"LLM response: {answer['content']['text']}")

    async def _elicits(self, call: Call) -> Outcome:
        schema = one_text("username", "email")
        return await _form(schema, call.arguments["message"])(call)

    async def _change_tools(self, _call: Call) -> Outcome:
        self._changes += 1
        handler = _content([text("new")])
        fresh = Tool(f"test_changing_{self._changes}", "Came a moment ago.", NOTHING, handler)
        self.ctx.capabilities.tools.replace("fixture", [fresh])
        return Outcome("changed")

    async def _change_prompts(self, _call: Call) -> Outcome:
        self._changes += 1
        fresh = Prompt(f"test_changing_{self._changes}", _says(_user(text("new"))), "Came a moment ago.")
        self.ctx.capabilities.prompts.replace("fixture", [fresh])
        return Outcome("changed")


def _content(blocks: Sequence[Mapping[str, Any]]) -> Handler:
    async def answer(_call: Call) -> Outcome:
        return Outcome("", content=blocks)

    return answer


def _asks(requests: Mapping[str, Any], state: str) -> Handler:
    """Asks until all is answered by objects."""

    async def answer(call: Call) -> Outcome:
        answers = call.round.answers
        if not all(isinstance(answers.get(name), Mapping) for name in requests):
            return Outcome("", asks=requests, state=state)
        return Outcome(
            f"state-ok: {sorted(answers)}" if call.round.state == state else "the state is another"
        )

    return answer


def _form(schema: Mapping[str, Any], message: str = "Please provide information") -> Handler:
    async def answer(call: Call) -> Outcome:
        if not (found := call.round.answers.get("form")):
            return Outcome("", asks={"form": elicit(message, schema)})
        said = json.dumps(found.get("content"))
        return Outcome(f"Elicitation completed: action={found['action']}, content={said}")

    return answer


def _user(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _says(*messages: Mapping[str, Any]) -> Callable[[Mapping[str, str], Round], Awaitable[Prompted]]:
    async def answer(_arguments: Mapping[str, str], _round: Round) -> Prompted:
        return Prompted(messages)

    return answer


async def _arguments(given: Mapping[str, str], _round: Round) -> Prompted:
    said = f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"
    return Prompted([_user(text(said))])


async def _embeds(given: Mapping[str, str], _round: Round) -> Prompted:
    block = embedded(given["resourceUri"], "Embedded resource content for testing.")
    return Prompted([_user(block), _user(text("Please process the embedded resource above."))])


async def _context(_given: Mapping[str, str], answered: Round) -> Prompted:
    if "user_context" not in answered.answers:
        return Prompted(
            asks={"user_context": elicit("What context should the prompt use?", one_text("context"))}
        )
    return Prompted([_user(text("Here is the prompt with its context."))])
