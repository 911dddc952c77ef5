"""Turn what a server lists into tools of the agent: named after the server, scoped, called over its session."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.servers.asking import Ears
from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import SERVER_SCHEMA_MAX_BYTES
from agent_runtime.servers.peer import Answered
from agent_runtime.servers.session import Session
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.tools.registry import Call, Outcome, Tool
from agent_runtime.tools.schema import check_schema
from wire.errors import Unavailable
from wire.mcp.names import public_name

log = logging.getLogger(__name__)

DESCRIPTION_MAX_CHARS: Final = 8192
TITLE_MAX_CHARS: Final = 256
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")

Object = Mapping[str, Any]
Saw = Callable[[Iterable[Object]], None]
"""Takes the content of each result."""


def tools_of(
    spec: ServerSpec, session: Session, listed: Sequence[Object], saw: Saw
) -> tuple[list[Tool], str]:
    """What the agent offers of a server's list, and a remark about what it cannot offer."""
    offered: dict[str, Tool] = {}
    unfit: list[str] = []
    for item in listed:
        own = item.get("name")
        if not isinstance(own, str) or not spec.may_offer(own):
            continue
        tool = _tool(spec, own, item, _Caller(spec.name, session, own, saw))
        if tool is None or tool.name in offered:
            unfit.append(own)
        else:
            offered[tool.name] = tool
    known = {name for item in listed if isinstance(name := item.get("name"), str)}
    return list(offered.values()), _remark(unfit, sorted(spec.allowed - known))


def _remark(unfit: Sequence[str], absent: Sequence[str]) -> str:
    said = []
    if absent:
        said.append(f"it has no tool {', '.join(absent)}")
    if unfit:
        said.append(f"cannot offer {', '.join(unfit)}")
    return "; ".join(said)


def _tool(spec: ServerSpec, own: str, item: Object, caller: _Caller) -> Tool | None:
    """One tool; None where its schema is none, or too large to be passed around, or it wants to be a task."""
    schema, execution = item.get("inputSchema"), item.get("execution")
    if not isinstance(schema, dict) or not _fits(schema):
        return None
    if isinstance(execution, dict) and execution.get("taskSupport") == "required":
        return None
    hints = item.get("annotations")
    hints = hints if isinstance(hints, dict) else {}
    try:
        return Tool(
            public_name(spec.name, _UNFIT.sub("_", own)),
            str(item.get("description") or "")[:DESCRIPTION_MAX_CHARS],
            schema,
            caller,
            read_only=own in spec.read_only or hints.get("readOnlyHint") is True,
            title=str(item.get("title") or hints.get("title") or "")[:TITLE_MAX_CHARS],
            output_schema=_promise(spec, own, item.get("outputSchema")),
            destructive=_flag(hints, "destructiveHint"),
            idempotent=_flag(hints, "idempotentHint"),
            open_world=_flag(hints, "openWorldHint"),
            foreign=True,
        )
    except ValueError as error:
        log.info("cannot offer a tool", extra={"server": spec.name, "tool": own, "error": str(error)})
        return None


def _promise(spec: ServerSpec, own: str, schema: Any) -> Object | None:
    """What results will be like, as the server says; None where we could not hold it to that."""
    if not isinstance(schema, dict) or not _fits(schema):
        return None
    try:
        check_schema(schema)
    except ValueError as error:
        log.info("no output schema", extra={"server": spec.name, "tool": own, "error": str(error)})
        return None
    return schema


def _fits(schema: Object) -> bool:
    return len(json.dumps(schema)) <= SERVER_SCHEMA_MAX_BYTES


def _flag(hints: Object, name: str) -> bool | None:
    value = hints.get(name)
    return value if isinstance(value, bool) else None


@dataclass(frozen=True)
class _Caller:
    """Carries out the calls of one tool. Equal to another where the tool is the same."""

    server: str
    session: Session
    own: str
    saw: Saw

    async def __call__(self, call: Call) -> Outcome:
        async def on_progress(step: Object) -> None:
            await call.report(_fraction(step), str(step.get("message") or ""), {})

        try:
            ears = Ears(on_progress, call.log)
            result = await self.session.call_tool(self.own, call.arguments, call.round, ears)
        except Answered as refusal:
            # Not an error of the call: a model can mend what the server says is wrong.
            told = {"code": refusal.code} | ({"data": refusal.data} if refusal.data else {})
            return Outcome(refusal.message, told, is_error=True)
        except Down as down:
            raise Unavailable(f"server '{self.server}' ended during the call: {down.message}") from down
        outcome = _outcome(result)
        self.saw(outcome.content)
        return outcome


def _fraction(step: Object) -> float:
    done, total = step.get("progress"), step.get("total")
    if not isinstance(done, int | float):
        return 0.0
    share = done / total if isinstance(total, int | float) and total > 0 else done
    return min(max(float(share), 0.0), 1.0)


def _outcome(result: Object) -> Outcome:
    if result.get("resultType") == "input_required":
        asks = result.get("inputRequests")
        return Outcome(
            "", asks=asks if isinstance(asks, dict) else {}, state=str(result.get("requestState") or "")
        )
    content = [block for block in result.get("content") or () if isinstance(block, dict)]
    structured = result.get("structuredContent")
    text = "\n".join(_text(block) for block in content)
    if structured is not None and not isinstance(structured, dict):
        structured = {"result": structured}
    return Outcome(text, structured or {}, result.get("isError") is True, content)


def _text(block: Object) -> str:
    """A block as text: what is none is named, with its type."""
    if block.get("type") == "text":
        return str(block.get("text") or "")
    resource = block.get("resource")
    if isinstance(resource, dict) and isinstance(resource.get("text"), str):
        return str(resource["text"])
    return f"[{block.get('type')} {block.get('mimeType') or block.get('uri') or ''}]".replace(" ]", "]")
