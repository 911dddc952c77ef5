"""Put a method's result into bytes; what cannot be said is an error, whose cause is the agent's own code."""

from __future__ import annotations

import logging

from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.limits import ANSWER_MAX_BYTES
from agent_runtime.mcp.methods import server_info
from wire.errors import AgentCodeFailed
from wire.mcp import forms, messages
from wire.mcp.messages import Json
from wire.mcp.revisions import STATELESS

log = logging.getLogger(__name__)


def answered(asked: Asked, value: Json) -> bytes:
    """The response. A tool's result that is no JSON or too large is an error that a model can read."""
    try:
        return _encoded(asked, value)
    except AgentCodeFailed as error:
        log.warning("an answer cannot be said", extra={"method": asked.request.method, "why": error.message})
        if asked.request.method != "tools/call":
            raise
        return _encoded(asked, forms.called([forms.text(error.message)], is_error=True))


def _encoded(asked: Asked, value: Json) -> bytes:
    try:
        data = messages.encode(messages.result(asked.request.id, _typed(asked, value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise AgentCodeFailed(f"the answer is no JSON: {error}"[:200]) from error
    if len(data) > ANSWER_MAX_BYTES:
        raise AgentCodeFailed(f"the answer has more than {ANSWER_MAX_BYTES} bytes")
    return data


def _typed(asked: Asked, value: Json) -> Json:
    if "resultType" in value or not asked.client.stateless:
        return value
    return forms.complete(value, STATELESS, server_info(asked.agent))
