"""A small MCP server over stdio with resources, prompts, completions and questions, run as a program by tests.

Arguments: its name, by which its texts can be told from another's, then `modern` for the stateless revision.
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

NAME = sys.argv[1]
MODERN = "modern" in sys.argv[2:]
REVISION = "2026-07-28" if MODERN else "2025-11-25"
ANSWER_MAX_S = 20.0
FORM = {"type": "object", "properties": {"name": {"type": "string"}}}
CAPABILITIES = {
    "tools": {},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {"listChanged": True},
    "completions": {},
    "logging": {},
}
TOOLS = ["ask", "ask_twice", "link", "log", "roots", "sample", "state", "touch", "grow"]
RESOURCES = {
    "memo://shared": "shared",
    f"memo://{NAME}": NAME,
    "file:///etc/hostname": "outside",
    (Path.cwd() / "notes.txt").as_uri(): "inside",
    (Path.cwd() / "link.txt").as_uri(): "led astray",
}
PROMPTS = {"greet": [{"name": "who", "required": True, "title": "Whom"}], "confide": []}
SUBSCRIBED: set[str] = set()
LISTENER: list[Any] = []
WAITING: dict[str, tuple[threading.Event, list[Any]]] = {}
NUMBERS = itertools.count(1)
LOCK = threading.Lock()


class Refused(Exception):
    """An error for the client."""


def send(message: dict[str, Any]) -> None:
    with LOCK:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def put(method: str, params: dict[str, Any], given: dict[str, Any], key: str = "it") -> Any:
    """The answer to a question: at once where it has come with the request, else when the client answers."""
    if MODERN:
        if key in given.get("inputResponses", {}):
            return given["inputResponses"][key]
        raise Asking({key: {"method": method, "params": params}})
    number = f"{NAME}-{next(NUMBERS)}"
    arrived, answer = WAITING.setdefault(number, (threading.Event(), []))
    send({"id": number, "method": method, "params": params})
    if not arrived.wait(ANSWER_MAX_S):
        return {"error": "nobody answered"}
    return answer[0]


class Asking(Exception):
    """Wants answers first."""


def page(kind: str, items: list[dict[str, Any]], cursor: str | None) -> dict[str, Any]:
    """Two a page."""
    at = int(cursor or 0)
    return {kind: items[at : at + 2]} | ({"nextCursor": str(at + 2)} if at + 2 < len(items) else {})


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    cursor = params.get("cursor")
    match method:
        case "initialize" if not MODERN:
            info = {"name": NAME, "version": "1"}
            return {"protocolVersion": REVISION, "capabilities": CAPABILITIES, "serverInfo": info}
        case "server/discover" if MODERN:
            return {"supportedVersions": [REVISION], "capabilities": CAPABILITIES}
        case "tools/list":
            return page("tools", [{"name": n, "inputSchema": {"type": "object"}} for n in TOOLS], cursor)
        case "tools/call":
            return {"content": call(params["name"], params)}
        case "resources/list":
            odd = {"name": "of all", "description": 5, "annotations": {"priority": 1.0}}
            return page("resources", [{"uri": uri, **odd} for uri in RESOURCES], cursor)
        case "resources/templates/list":
            items = [{"uriTemplate": f"memo://{NAME}/{{name}}{{?part*}}", "name": "parts"}]
            return page("resourceTemplates", items, cursor)
        case "resources/read":
            return {"contents": [read(params["uri"])]}
        case "resources/subscribe" | "resources/unsubscribe":
            (SUBSCRIBED.add if method.endswith("/subscribe") else SUBSCRIBED.discard)(params["uri"])
            return {}
        case "prompts/list":
            return page("prompts", [{"name": n, "arguments": a} for n, a in PROMPTS.items()], cursor)
        case "prompts/get":
            return prompt(params)
        case "completion/complete":
            about = params["ref"].get("name") or params["ref"]["uri"]
            said = params.get("context", {}).get("arguments", {})
            values = [params["argument"]["value"] + "!", about, json.dumps(said)]
            return {"completion": {"values": values, "total": 7, "hasMore": True}}
    raise Refused(method)


def read(uri: str) -> dict[str, Any]:
    if uri == f"memo://{NAME}":
        return {"uri": uri, "blob": base64.b64encode(NAME.encode()).decode()}
    if uri in RESOURCES or uri.startswith(f"memo://{NAME}/") or uri == "memo://linked":
        return {"uri": uri, "mimeType": "text/plain", "text": f"{NAME} has {uri}"}
    raise Refused("resource not found")


def prompt(params: dict[str, Any]) -> dict[str, Any]:
    who = params.get("arguments", {}).get("who", "")
    if params["name"] == "confide":
        found = put("elicitation/create", {"message": "?", "requestedSchema": FORM}, params)
        who = found["content"]["name"]
    return {"description": "of use", "messages": [{"role": "user", "content": text(f"{NAME}: hello {who}")}]}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def call(name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    match name:
        case "ask":
            message = given["arguments"].get("message", "?")
            asked = {"message": message, "requestedSchema": FORM}
            return [text(json.dumps(put("elicitation/create", asked, given)))]
        case "ask_twice":
            asked = {"message": "?", "requestedSchema": FORM}
            found = [put("elicitation/create", asked, given, key) for key in ("one", "two")]
            return [text(json.dumps(found))]
        case "sample":
            hello = [{"role": "user", "content": text("hello")}]
            found = put("sampling/createMessage", {"messages": hello, "maxTokens": 5}, given)
            return [text(json.dumps(found))]
        case "roots":
            return [text(json.dumps(put("roots/list", {}, given)))]
        case "link":
            return [{"type": "resource_link", "uri": "memo://linked", "name": "linked"}]
        case "log":
            send({"method": "notifications/message", "params": {"level": "warning", "data": "mind this"}})
        case "state":
            return [text(json.dumps({"subscribed": sorted(SUBSCRIBED), "cwd": Path.cwd().as_uri()}))]
        case "touch":
            send({"method": "notifications/resources/updated", "params": {"uri": "memo://shared"}})
        case "grow":
            RESOURCES["memo://grown"] = "grown"
            PROMPTS["grown"] = []
            send({"method": "notifications/resources/list_changed"})
            send({"method": "notifications/prompts/list_changed"})
    return [text(name)]


def handle(number: Any, method: str, params: dict[str, Any]) -> None:
    if MODERN and "io.modelcontextprotocol/protocolVersion" not in params.get("_meta", {}):
        send({"id": number, "error": {"code": -32022, "message": "unsupported protocol version"}})
        return
    if method == "subscriptions/listen" and MODERN:
        SUBSCRIBED.clear()
        SUBSCRIBED.update(params["notifications"].get("resourceSubscriptions", []))
        send({"method": "notifications/subscriptions/acknowledged", "params": {}})
        return
    try:
        send({"id": number, "result": answer(method, params)})
    except Asking as asking:
        asks = {"resultType": "input_required", "inputRequests": asking.args[0], "requestState": "mine"}
        send({"id": number, "result": asks})
    except Refused as refusal:
        code = -32002 if "resource" in str(refusal) else -32601
        send({"id": number, "error": {"code": code, "message": str(refusal)}})


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message:
            arrived, found = WAITING[message["id"]]
            found.append(message.get("result", {"error": message.get("error")}))
            arrived.set()
        elif "id" in message:
            work = (message["id"], message["method"], message.get("params", {}))
            threading.Thread(target=handle, args=work, daemon=True).start()


if __name__ == "__main__":
    main()
