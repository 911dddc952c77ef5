"""What a server says on its standard error: to the agent's log, bounded, without secrets; its last words kept."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

log = logging.getLogger(__name__)

LINE_MAX_CHARS: Final = 1000
BURST_MAX_BYTES: Final = 64 * 1024
RATE_BYTES_PER_S: Final = 4 * 1024
# What a line costs beside its text, in the agent's log and in the warning that lines are missing before it.
ENTRY_BYTES: Final = 200
KEPT_LINES: Final = 12
LAST_WORDS_MAX_CHARS: Final = 160
HIDDEN: Final = "[secret]"
_TELLING: Final = re.compile(r"error|cannot|not found|denied|fatal|killed", re.IGNORECASE)


def conceal(text: str, hidden: Sequence[str]) -> str:
    """The text without secrets."""
    for value in hidden:
        text = text.replace(value, HIDDEN)
    return text


class Words:
    """The lines of one server's standard error."""

    def __init__(self, server: str, hidden: Sequence[str]) -> None:
        self._server = server
        self._hidden = hidden
        self._rest = b""
        self._cut = False
        self._kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._room = float(BURST_MAX_BYTES)
        self._looked_at_s = time.monotonic()
        self._dropped = 0

    def take(self, data: bytes) -> None:
        """Log whole lines; keep the rest, cut where it grows beyond a line's size."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(lines) > KEPT_LINES and self._spent():
            # A flood: what would neither be logged nor kept is not even looked at.
            self._dropped += len(lines) - KEPT_LINES
            lines = lines[-KEPT_LINES:]
        for line in lines:
            self._say(line)
        if len(rest) > LINE_MAX_CHARS and not self._cut:
            self._say(rest)
        self._cut = self._cut or len(rest) > LINE_MAX_CHARS
        self._rest = rest[: LINE_MAX_CHARS + 1]

    def last(self) -> str:
        """The line that tells most about an end: the last that speaks of an error, or the last at all."""
        if self._rest and not self._cut:
            self._say(self._rest)
            self._rest = b""
        telling = [line for line in self._kept if _TELLING.search(line)]
        return (telling or list(self._kept) or [""])[-1][:LAST_WORDS_MAX_CHARS]

    def say(self, line: bytes) -> None:
        """Log a line that came by another way than standard error, within the same bounds."""
        if self._spent():
            self._dropped += 1
        else:
            self._keep(line[:LINE_MAX_CHARS])

    def _say(self, raw: bytes) -> None:
        if self._cut:
            self._cut = False  # the head of this line has been said already
            return
        self._keep(raw)

    def _keep(self, raw: bytes) -> None:
        line = conceal(raw.decode(errors="replace").strip(), self._hidden)[:LINE_MAX_CHARS]
        if not line:
            return
        self._kept.append(line)
        if self._may_log(len(raw) + ENTRY_BYTES):
            log.info("server says", extra={"server": self._server, "line": line})

    def _spent(self) -> bool:
        """Whether there is no room for another line."""
        now = time.monotonic()
        self._room = min(self._room + (now - self._looked_at_s) * RATE_BYTES_PER_S, BURST_MAX_BYTES)
        self._looked_at_s = now
        return self._room < LINE_MAX_CHARS

    def _may_log(self, size: int) -> bool:
        self._spent()
        if size > self._room:
            self._dropped += 1
            return False
        self._room -= size
        if self._dropped:
            log.warning(
                "server said too much", extra={"server": self._server, "lines_dropped": self._dropped}
            )
            self._dropped = 0
        return True
