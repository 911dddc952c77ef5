"""A small MCP server over stdio that misbehaves on request: run as a program by the tests of servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any, TextIO

WAYS = set(sys.argv[1:])
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"annotations": {"readOnlyHint": True}},
    **{
        name: {} for name in ("slow", "grow", "child", "env", "die", "refuse", "wrong", "large", "structured")
    },
    **({"misbehave": {}, "count": {}} if "bad" in sys.argv else {}),
}
PROMISES = {
    "honest": {"type": "object", "properties": {"cancelled": {"type": "integer"}}, "required": ["cancelled"]},
    "liar": {"type": "object", "properties": {"cancelled": {"type": "string"}}},
    "vague": {"type": "object", "unevaluatedProperties": False},
}
for way in WAYS & PROMISES.keys():
    TOOLS["structured"] = {"outputSchema": PROMISES[way]}
CANCELLED: list[Any] = []
LISTS: list[str] = []
LISTENER: list[Any] = []
LOCK = threading.Lock()
DEAF = threading.Event()
MODERN = "2026-07-28"


def send(message: dict[str, Any]) -> None:
    with LOCK:
        say(sys.stdout, json.dumps({"jsonrpc": "2.0", **message}))


def say(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def main() -> None:
    if "crash" in WAYS:
        say(sys.stderr, "error: it cannot work like this")
        sys.exit(3)
    if "silent" in WAYS:
        say(sys.stderr, "waiting for godot")
        pause(3600)
    if "noisy" in WAYS:
        say(sys.stdout, "Server running on stdio\n[1, {]\n42")
        say(sys.stderr, "secret is " + os.environ.get("TOKEN", ""))
    if "rubbish" in WAYS:
        sys.stdout.write(("no message at all" * 4 + "\n") * 64 * 1024)
    if "flood" in WAYS:
        sys.stdout.write("x" * (8 * 1024 * 1024))
        sys.stdout.flush()
    for line in sys.stdin:
        if DEAF.is_set():
            break
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        params = message.get("params", {})
        if method == "notifications/cancelled":
            CANCELLED.append(params["requestId"])
        elif method == "tools/call" and number is not None:
            threading.Thread(target=call, args=(number, params), daemon=True).start()
        elif method is not None and number is not None:
            request(number, method, params)
    if DEAF.is_set():
        os.close(0)
        pause(3600)
    if "stubborn" in WAYS:
        pause(3600)


def request(number: Any, method: str, params: dict[str, Any]) -> None:
    modern = "modern" in WAYS
    if modern and "io.modelcontextprotocol/protocolVersion" not in params.get("_meta", {}):
        send({"id": number, "error": {"code": -32022, "message": "unsupported protocol version"}})
    elif method == "initialize" and not modern:
        revision = next((way for way in WAYS if way[:2] == "20"), params["protocolVersion"])
        send({"id": 900, "method": "ping"})
        send({"id": 901, "method": "sampling/createMessage", "params": {}})
        info = {"name": "small", "version": "1"}
        send({"id": number, "result": {"protocolVersion": revision, "capabilities": {}, "serverInfo": info}})
    elif method == "server/discover" and modern:
        send({"id": number, "result": {"resultType": "complete", "supportedVersions": [MODERN]}})
    elif method == "subscriptions/listen" and modern:
        LISTENER.append(number)
        send({"method": "notifications/subscriptions/acknowledged", "params": {}})
    elif method == "tools/list":
        LISTS.append(method)
        send({"id": number, "result": page(params.get("cursor"))})
    else:
        send({"id": number, "error": {"code": -32601, "message": f"no method {method}"}})


def page(cursor: str | None) -> dict[str, Any]:
    """One tool a page, so that whoever does not turn pages sees one."""
    names = sorted(TOOLS)
    if "endless" in WAYS:
        return {"tools": [], "nextCursor": str(int(cursor or 0) + 1)}
    at = int(cursor or 0)
    tool = {"name": names[at], "description": "a tool", "inputSchema": {"type": "object"}, **TOOLS[names[at]]}
    odd = [{"name": ["x"]}, {"name": {}}, {"name": "no-schema"}, {}, 5, None] if "bad" in WAYS else []
    return {"tools": [tool, *odd]} | ({"nextCursor": str(at + 1)} if at + 1 < len(names) else {})


def call(number: Any, params: dict[str, Any]) -> None:
    name, given = params["name"], params.get("arguments", {})
    token = params.get("_meta", {}).get("progressToken")
    said: dict[str, Any] = {"text": name}
    match name:
        case "echo":
            said["text"] = given.get("text", "")
        case "slow":
            for step in range(given.get("steps", 1000)):
                if number in CANCELLED:
                    return
                progress = {
                    "progressToken": token,
                    "progress": step + 1,
                    "total": 10,
                    "message": f"step {step}",
                }
                send({"method": "notifications/progress", "params": progress})
                pause(0.01)
            said["text"] = f"cancelled: {len(CANCELLED)}"
        case "grow":
            TOOLS["new.one"] = {}
            if "modern" not in WAYS or LISTENER:
                send({"method": "notifications/tools/list_changed"})
        case "child":
            apart = given.get("apart", False)
            child = subprocess.Popen(
                ["sleep", "3600"], start_new_session=apart
            )  # its end is the test's matter
            said["text"] = str(child.pid)
        case "env":
            said["text"] = json.dumps({"TOKEN": os.environ.get("TOKEN"), "PLAIN": os.environ.get("PLAIN")})
        case "die":
            os._exit(7)
        case "refuse":
            wrong = {"code": -32602, "message": "arguments are wrong", "data": {"which": "all"}}
            send({"id": number, "error": wrong})
            return
        case "large":
            said["text"] = "x" * given.get("bytes", 0)
        case "count":
            said["text"] = str(len(LISTS))
        case "misbehave":
            misbehave(number, given["way"])
    result = {"content": [{"type": "text", **said}], "isError": name == "wrong"}
    if name == "structured":
        result["structuredContent"] = {"cancelled": len(CANCELLED)}
    send({"id": number, "result": result})


def misbehave(number: Any, way: str) -> None:
    """What a client must survive; it is answered as any call afterwards."""
    match way:
        case "answers":
            send({"id": 4_000_000, "result": {}})
            send({"id": True, "result": {"content": [{"type": "text", "text": "for whom"}]}})
            send({"id": None, "error": "no object"})
            send({"id": [number], "result": 5})
            send({"id": {"method": 1}, "method": "roots/list"})
            send({"id": 77, "method": "no/such/method", "params": []})
            send({"method": "notifications/progress", "params": {"progressToken": "none", "progress": "x"}})
            send({"method": "notifications/cancelled", "params": {"requestId": {}}})
        case "deep":
            text = '{"id": %s, "result": {"content": [], "structuredContent": {"a": %s}}}'
            say(sys.stdout, text % (number, "[" * 900 + "]" * 900))
        case "nan":
            send({"id": number, "result": {"content": [], "structuredContent": {"a": float("nan")}}})
        case "twice":
            send({"id": number, "result": {"content": [{"type": "text", "text": "first"}]}})
        case "stderr":
            chunk = "e" * 70 + "\n"
            for _ in range(16):
                sys.stderr.write(chunk * 16 * 1024)
        case "stdout":
            sys.stdout.write("just saying\n" * 10_000)
        case "restless":
            for _ in range(200):
                send({"method": "notifications/tools/list_changed"})
                pause(0.001)
        case "deaf":
            DEAF.set()
        case "mute":
            os.close(1)
            pause(3600)


if __name__ == "__main__":
    main()
