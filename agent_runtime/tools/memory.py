"""The agent's memory as tools, for models and for whoever calls from outside: put, get, search, delete.

With `shared` they mean the crew's shared context instead of the agent's own memory.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from agent_runtime.bus import Bus
from agent_runtime.limits import MEMORY_KEY_MAX_CHARS
from agent_runtime.memory import Memory
from agent_runtime.models import Model
from agent_runtime.profile import Context
from agent_runtime.recall import Hit, Recall
from agent_runtime.tools.registry import Call, Outcome, Registry, Tool
from wire.errors import FactoryError

# Where the registry has them from.
MEMORY: Final = "memory"
SEARCH_DEFAULT: Final = 10
SEARCH_MAX: Final = 100
QUERY_MAX_CHARS: Final = 4096
_LENGTH: Final = struct.Struct(">I")
_KEY: Final = {"type": "string", "minLength": 1, "maxLength": MEMORY_KEY_MAX_CHARS}
_SHARED: Final = {
    "type": "boolean",
    "description": "The crew's shared memory, instead of this agent's own.",
}


def _schema(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**properties, "shared": _SHARED},
        "required": required,
        "additionalProperties": False,
    }


__all__ = ["MEMORY", "Hit", "MemoryTools"]


class MemoryTools:
    """The four tools of one agent."""

    def __init__(self, memory: Memory, bus: Bus, own: Recall, shared: Recall) -> None:
        self._memory = memory
        self._bus = bus
        self._own = own
        self._shared = shared

    @classmethod
    def of(cls, context: Context, model: Model) -> MemoryTools:
        """Those of an agent: each collection has vectors of its own, made by the agent's model where it can."""
        own, shared = Recall(model, context.in_thread), Recall(model, context.in_thread)
        return cls(context.memory, context.bus, own, shared)

    def offer(self, registry: Registry) -> None:
        """Offer them beside the others; what the profile's code has under the same name is left to it."""
        taken = {tool.name for tool in registry.visible(writer=True)}
        registry.replace(MEMORY, [tool for tool in self.tools() if tool.name not in taken])

    def tools(self) -> list[Tool]:
        query = {"type": "string", "minLength": 1, "maxLength": QUERY_MAX_CHARS}
        limit = {"type": "integer", "minimum": 1, "maximum": SEARCH_MAX}
        return [
            Tool(
                "memory_put",
                "Remember a value (any JSON) under a key, in place of what was there.",
                _schema(["key", "value"], key=_KEY, value={}),
                self._put,
            ),
            Tool(
                "memory_get",
                "What is remembered under a key.",
                _schema(["key"], key=_KEY),
                self._get,
                read_only=True,
            ),
            Tool(
                "memory_search",
                "What is remembered that is most like the query, best first.",
                _schema(["query"], query=query, limit=limit),
                self._search,
                read_only=True,
            ),
            Tool("memory_delete", "Forget a key.", _schema(["key"], key=_KEY), self._delete),
        ]

    def snapshot(self, most_bytes: int) -> bytes:
        """The vectors of both collections, its own first, in at most so many bytes."""
        own = self._own.snapshot(most_bytes - _LENGTH.size)
        shared = self._shared.snapshot(most_bytes - _LENGTH.size - len(own))
        return _LENGTH.pack(len(own)) + own + shared if own or shared else b""

    def restore(self, snapshot: bytes) -> None:
        """Take them back. ValueError for what is no snapshot."""
        length = _LENGTH.unpack_from(snapshot)[0] if len(snapshot) >= _LENGTH.size else 0
        self._own.restore(snapshot[_LENGTH.size : _LENGTH.size + length])
        self._shared.restore(snapshot[_LENGTH.size + length :])

    async def search(self, query: str, limit: int) -> list[Hit]:
        """The agent's own memory, best first."""
        return list(await self._own.search(self._memory.texts(), query, limit))

    async def _put(self, call: Call) -> Outcome:
        key, value = call.arguments["key"], call.arguments["value"]
        try:
            if call.arguments.get("shared"):
                version = await self._bus.put(key, value)
                return Outcome(f"shared '{key}'", {"key": key, "version": version})
            self._memory.put(key, value)
        except FactoryError as error:
            return Outcome(error.message, is_error=True)
        return Outcome(f"remembered '{key}'", {"key": key})

    async def _get(self, call: Call) -> Outcome:
        key, shared = call.arguments["key"], call.arguments.get("shared")
        if shared:
            found = await self._bus.get(key)
            known, value = found.version > 0, found.value
        else:
            known, value = key in self._memory, self._memory.get(key)
        if not known:
            return Outcome(f"nothing is remembered under '{key}'", {"found": False}, is_error=True)
        return Outcome(_text(value), {"found": True, "value": value})

    async def _search(self, call: Call) -> Outcome:
        query, limit = call.arguments["query"], int(call.arguments.get("limit", SEARCH_DEFAULT))
        if call.arguments.get("shared"):
            hits = await self._shared.search(await self._bus.texts(), query, limit)
        else:
            hits = await self.search(query, limit)
        found = [{"key": hit.key, "value": hit.value, "score": round(hit.score, 4)} for hit in hits]
        lines = [f"{hit.key}: {_text(hit.value)}" for hit in hits]
        return Outcome("\n".join(lines) or "nothing is remembered", {"hits": found})

    async def _delete(self, call: Call) -> Outcome:
        key = call.arguments["key"]
        if call.arguments.get("shared"):
            await self._bus.remove(key)
            return Outcome(f"took '{key}' back", {"key": key})
        known = key in self._memory
        self._memory.forget(key)
        return Outcome(f"forgot '{key}'" if known else f"'{key}' was not known", {"key": key, "known": known})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
