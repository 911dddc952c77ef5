"""JSON lines on stderr, from structlog and from stdlib logging alike, with secrets taken out."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

REDACTED: Final = "[redacted]"
VALUE_MAX_CHARS: Final = 8192
DEPTH_MAX: Final = 6

_SECRET_KEYS: Final = re.compile(
    r"token|secret|passw|authorization|api_?key|private_?key|key_pem|credential|dsn|cookie", re.IGNORECASE
)
# Words that contain one of the above and are no secrets.
_OPEN_KEYS: Final = frozenset({"token_id", "page_token", "next_page_token", "tokens_used"})
_SECRET_VALUES: Final = re.compile(
    r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*"
    r"|(?i:bearer\s+)[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",
    re.DOTALL,
)


def configure(process: str, *, level: int = logging.INFO) -> None:
    """Send every log line of this process to stderr as one JSON object, with the process's name."""

    def name_process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("process", process)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        name_process,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take secrets out of a line: by the name of a field, and by the look of a value."""
    return {key: _clean(key, value, DEPTH_MAX) for key, value in event.items()}


def _clean(key: str, value: Any, depth: int) -> Any:
    if value and _SECRET_KEYS.search(key) and key not in _OPEN_KEYS:
        return REDACTED
    if isinstance(value, Mapping):
        if depth == 0:
            return REDACTED
        return {str(name): _clean(str(name), inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", inner, depth - 1) for inner in value] if depth else REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    return _SECRET_VALUES.sub(REDACTED, str(value)[:VALUE_MAX_CHARS])
