"""Log lines are JSON, one a record, with the agent's own fields beside the line's."""

from __future__ import annotations

import io
import json
import logging

from agent_runtime.logs import AgentLogger, JsonLines


def test_a_line_says_what_happened_to_whom() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("agent.coder")
    logger.addHandler(handler)
    log = AgentLogger(logger, {"agent": "coder-1", "generation": 2})
    log.info("signal received", extra={"signal": "GO", "odd": object()})
    log.error("the agent's code failed", exc_info=ValueError("broken\nin two lines"))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["logger"]) == ("signal received", "info", "agent.coder")
    assert (first["agent"], first["generation"], first["signal"]) == ("coder-1", 2, "GO")
    assert "ValueError: broken" in second["exception"]
