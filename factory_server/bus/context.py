"""The crews' shared context: keyed values with versions, each change also in a log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import WatchError

from factory_server.bus import keys
from factory_server.core.errors import NotFound, Refused, Stale
from factory_server.core.model import ContextRow

ATTEMPTS_MAX = 32
READ_MAX = 500


def _decode(text: str) -> tuple[str | None, int]:
    entry = json.loads(text)
    value = json.dumps(entry["v"], separators=(",", ":")) if "v" in entry else None
    return value, int(entry["n"])


def _encode(value: str | None, version: int) -> str:
    """A removed key keeps its version, so that versions never repeat."""
    return f'{{"n": {version}}}' if value is None else f'{{"v": {value}, "n": {version}}}'


PUT = """
local entry = redis.call('HGET', KEYS[1], ARGV[1])
local version, shown = 0, 0
if entry then
  version = tonumber(string.match(entry, '"n": (%d+)}$'))
  if string.sub(entry, 1, 4) == '{"v"' then shown = version end
end
if ARGV[3] ~= '' and tonumber(ARGV[3]) ~= shown then return {0, shown} end
local after = string.format('%d', version + 1)
local written = '{"n": ' .. after .. '}'
if ARGV[2] ~= '' then written = '{"v": ' .. ARGV[2] .. ', "n": ' .. after .. '}' end
redis.call('HSET', KEYS[1], ARGV[1], written)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*',
  'key', ARGV[1], 'value', ARGV[2], 'version', after, 'actor', ARGV[4])
return {1, version + 1}
"""
"""The same write as the runtime's, whole on the server: writers of other keys of the hash are in nobody's way.
Agents themselves may run no scripts."""


async def put(redis: Any, crew: str, key: str, value: str | None, actor: str, if_version: int | None) -> int:
    """Set or remove a key; its new version. Refused (VERSION_MISMATCH)."""
    expected = "" if if_version is None else str(if_version)
    names = (keys.context(crew), keys.context_log(crew))
    done, version = await redis.eval(PUT, 2, *names, key, value or "", expected, actor, keys.CONTEXT_LOG_MAX)
    if not done:
        raise Refused(
            f"context key '{key}' has version {version}, not {if_version}",
            reason="VERSION_MISMATCH",
            metadata={"version": str(version)},
        )
    return int(version)


def _write(pipe: Any, crew: str, row: ContextRow) -> None:
    pipe.hset(keys.context(crew), row.key, _encode(row.value, row.version))
    pipe.xadd(
        keys.context_log(crew),
        {"key": row.key, "value": row.value or "", "version": row.version, "actor": row.actor},
        maxlen=keys.CONTEXT_LOG_MAX,
        approximate=True,
    )


async def get(redis: Any, crew: str, key: str) -> ContextRow:
    """One key. NotFound."""
    found = await redis.hget(keys.context(crew), key)
    value, version = _decode(found) if found else (None, 0)
    if value is None:
        raise NotFound(f"context key '{key}' is not set", resource_type="context key", resource_name=key)
    return ContextRow(key, value, version, "")


async def list_keys(redis: Any, crew: str, prefix: str) -> list[ContextRow]:
    """Keys that begin so and are set, by key."""
    found: Mapping[str, str] = await redis.hgetall(keys.context(crew))
    rows = [ContextRow(key, *_decode(text), "") for key, text in found.items() if key.startswith(prefix)]
    return sorted((r for r in rows if r.value is not None), key=lambda r: r.key)


async def restore(redis: Any, crew: str, rows: Sequence[ContextRow]) -> None:
    """Put back rows that are missing or older, with their versions."""
    name = keys.context(crew)
    for _ in range(ATTEMPTS_MAX):
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch(name)
            found: Mapping[str, str] = await pipe.hgetall(name)
            held = {key: _decode(text)[1] for key, text in found.items()}
            missing = [r for r in rows if r.version > held.get(r.key, 0)]
            if not missing:
                return
            pipe.multi()
            for row in missing:
                _write(pipe, crew, row)
            try:
                await pipe.execute()
            except WatchError:
                continue
            return
    raise Stale(f"cannot restore the context of crew '{crew}': too many writers")


async def tail(
    redis: Any, cursors: Mapping[str, str], *, block_s: float
) -> list[tuple[str, list[ContextRow], str]]:
    """Changes after each crew's cursor; waits up to block_s for the first."""
    streams: dict[Any, Any] = {keys.context_log(crew): cursor or "0-0" for crew, cursor in cursors.items()}
    block_ms = max(int(block_s * 1000), 1)
    replies: Any = await redis.xread(streams, count=READ_MAX, block=block_ms)
    out: list[tuple[str, list[ContextRow], str]] = []
    items = replies.items() if isinstance(replies, dict) else (replies or [])
    for stream, entries in items:
        flat = entries[0] if entries and isinstance(entries[0], list) else entries
        crew = stream.split(":")[1]
        rows = [ContextRow(f["key"], f["value"] or None, int(f["version"]), f["actor"]) for _, f in flat]
        out.append((crew, rows, flat[-1][0]))
    return out
