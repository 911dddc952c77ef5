"""Put weather between a factory and its ports: whatever happens at a real port may happen at any call."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from factory_server.drivers.fakenet import FakeNetworks

Happens = Callable[[str, tuple[Any, ...]], Awaitable[None]]
"""Given `port.verb` and its arguments; may wait, raise, or end the world."""


async def nothing(verb: str, arguments: tuple[Any, ...]) -> None:
    """Calm."""


class Weathered:
    """A port behind weather: `before` each call, and `after` its effect but before its answer."""

    def __init__(self, name: str, port: Any, before: Happens = nothing, after: Happens = nothing) -> None:
        self._name = name
        self._port = port
        self._before = before
        self._after = after

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._port, verb)
        if inspect.iscoroutinefunction(found):
            return self._call(f"{self._name}.{verb}", found)
        if inspect.isasyncgenfunction(found):
            return self._stream(f"{self._name}.{verb}", found)
        if isinstance(found, FakeNetworks):
            return Weathered(verb, found, self._before, self._after)
        return found

    def _call(self, verb: str, found: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            await self._before(verb, arguments)
            answer = await found(*arguments, **named)
            await self._after(verb, arguments)
            return answer

        return call

    def _stream(
        self, verb: str, found: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def stream(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            await self._before(verb, arguments)
            async with aclosing(found(*arguments, **named)) as items:  # type: ignore[type-var]
                async for item in items:
                    yield item

        return stream


def on(verbs: dict[str, Happens]) -> Happens:
    """Weather for some verbs only."""

    async def happens(verb: str, arguments: tuple[Any, ...]) -> None:
        if verb in verbs:
            await verbs[verb](verb, arguments)

    return happens


def wrapped(before: Happens = nothing, after: Happens = nothing) -> Callable[[str, Any], Any]:
    """For `Site.plant`: the same weather at every port."""
    return lambda name, port: Weathered(name, port, before, after)
