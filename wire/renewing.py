"""A channel that follows a renewed identity: new calls on a new connection, old calls end on the old one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from wire.identity import Identity


class RenewingChannel(grpc.aio.Channel):
    """Opens a fresh channel whenever the identity's certificates have changed.

    The old channel is let go of: grpc keeps its connection until its last call has ended.
    """

    def __init__(
        self, identity: Callable[[], Identity], open_with: Callable[[Identity], grpc.aio.Channel]
    ) -> None:
        self._identity = identity
        self._open_with = open_with
        self._shown = identity()
        self._live = open_with(self._shown)
        self._version = 0
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()

    def live(self) -> tuple[int, grpc.aio.Channel]:
        """The channel for new calls, and its version."""
        current = self._identity()
        shown = self._shown
        if current is not shown:
            self._shown = current
            if _differs(current, shown):
                self._live = self._open_with(current)
                self._version += 1
        return self._version, self._live

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._live.close(grace)
        for stream in list(self._streams):
            stream.cancel()  # one of an older channel

    def remember(self, stream: Any) -> None:
        """A stream may outlive its channel here; closing this one ends it."""
        self._streams.add(stream)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.live()[1].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.live()[1].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.live()[1].channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Multicallable(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Multicallable(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Multicallable(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Multicallable(self, "stream_stream", args, kwargs)


def _differs(current: Identity, shown: Identity) -> bool:
    """Whether a connection has to show something else, or calls on it to carry a token they did not carry."""
    return (
        current.certificate_pem != shown.certificate_pem
        or current.ca_pem != shown.ca_pem
        or bool(current.token) != bool(shown.token)
    )


class _Multicallable:
    """One method of a stub, made anew when the channel under it is."""

    __slots__ = ("_arguments", "_channel", "_inner", "_kind", "_options", "_version")

    def __init__(
        self, channel: RenewingChannel, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._version = -1
        self._inner: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        version, live = self._channel.live()
        if version != self._version:
            self._inner = getattr(live, self._kind)(*self._arguments, **self._options)
            self._version = version
        call = self._inner(*args, **kwargs)
        if self._kind != "unary_unary":
            self._channel.remember(call)
        return call
