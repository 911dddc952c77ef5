"""What was said in each context, so that later messages see the earlier ones: bounded, the oldest go first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from agent_runtime.profile import ChatTurn

CONVERSATIONS_MAX: Final = 256
CONVERSATION_MAX_BYTES: Final = 64 * 1024
"""About 16,000 tokens: what most models read beside their tools."""
CONVERSATIONS_MAX_BYTES: Final = 1024 * 1024
"""Goes into the state blob, beside the memory."""

Exchange = tuple[str, str]


class Conversations:
    """Exchanges (what was asked, what was answered) by context; the least lately used go first."""

    def __init__(self) -> None:
        self._exchanges: dict[str, list[Exchange]] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._exchanges)

    def turns(self, context: str) -> Sequence[ChatTurn]:
        """What was said in a context, as a model reads it; nothing in an unknown one."""
        return [
            ChatTurn(role, text)
            for exchange in self._exchanges.get(context, ())
            for role, text in zip(("user", "assistant"), exchange, strict=True)
            if text  # many endpoints refuse an assistant's turn without any
        ]

    def add(self, context: str, asked: str, answered: str) -> None:
        """Remember an exchange. What does not fit is forgotten: this one, too, where it alone is too long."""
        if not context:
            return
        kept = [*self._exchanges.get(context, ()), (asked, answered)]
        while kept and _size_bytes(context, kept) > CONVERSATION_MAX_BYTES:
            del kept[0]
        self._forget(context)
        if kept:
            self._exchanges[context] = kept
            self._size_bytes += _size_bytes(context, kept)
        while len(self._exchanges) > CONVERSATIONS_MAX or self._size_bytes > CONVERSATIONS_MAX_BYTES:
            self._forget(next(iter(self._exchanges)))

    def _forget(self, context: str) -> None:
        self._size_bytes -= _size_bytes(context, self._exchanges.pop(context, []))

    def snapshot(self) -> bytes:
        """Everything, least lately used first."""
        return (
            json.dumps(self._exchanges, separators=(",", ":"), ensure_ascii=False).encode() if self else b""
        )

    def restore(self, snapshot: bytes) -> None:
        """Replace everything by a snapshot. ValueError where it is none."""
        fresh = Conversations()
        found = json.loads(snapshot or b"{}")
        try:
            for context, exchanges in found.items():
                for asked, answered in exchanges:
                    fresh.add(context, str(asked), str(answered))
        except (AttributeError, TypeError) as error:
            raise ValueError("the conversations have another form") from error
        self._exchanges, self._size_bytes = fresh._exchanges, fresh._size_bytes


def _size_bytes(context: str, exchanges: Sequence[Exchange]) -> int:
    if not exchanges:
        return 0
    return len(context.encode()) + sum(len(text.encode()) for exchange in exchanges for text in exchange)
