"""Guard every call: who calls, whether they may, whether the request is sound; errors become statuses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from wire.errors import Denied
from wire.guarded import Audit, CallMetrics, GuardedMethod, Guards, Own
from wire.peers import GenerationCheck, PeerReader, Verifier
from wire.policy import Caller, PolicyTable, Row
from wire.requests import Validator
from wire.status import abort

LOG = logging.getLogger("hyperfactory.wire")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_SHAPES: Final[dict[tuple[bool, bool], Callable[..., Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class GuardInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """The one interceptor of every server of ours.

    `validator` is `wire.validation.RequestValidator()` where constraints are to be checked, `audit` is told of
    every refusal and of audited methods, `generation_check(crew, agent, generation)` raises for an agent whose
    successor exists, `trusted_caller` is who calls on a port without TLS, and `own()` says which crew and
    agent this server is, for the rules about an agent's own crew.
    """

    def __init__(
        self,
        policy: PolicyTable,
        verifier: Verifier | None,
        *,
        validator: Validator | None = None,
        audit: Audit | None = None,
        generation_check: GenerationCheck | None = None,
        trusted_caller: Caller | None = None,
        metrics: CallMetrics | None = None,
        own: Own | None = None,
    ) -> None:
        self._policy = policy
        peers = PeerReader(verifier, generation_check=generation_check, trusted_caller=trusted_caller)
        self._guards = Guards(peers, validator, audit, metrics, own)
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    @property
    def guards(self) -> Guards:
        """What its methods share: another face of the same server guards by it, too."""
        return self._guards

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        if handler is None:
            return None
        row = self._policy.row(method)
        if row is None:
            return _reshape(handler, _refuse(method), None)
        wrapped = self._wrap(handler, row)
        self._wrapped[method] = (handler, wrapped)  # bounded by the rows of the table
        return wrapped

    def _wrap(self, handler: Handler, row: Row) -> Handler:
        behaviour = _behaviour(handler)
        if not _is_async(behaviour) and not row.planned:
            # A plain function would hang the server on a cancelled call (and a generated stub raises anyhow).
            LOG.warning("method is not served", extra={"action": "method_not_served", "method": row.method})
        guarded = GuardedMethod(
            row,
            behaviour if _is_async(behaviour) and not row.planned else None,
            handler.request_deserializer,
            self._guards,
            request_streaming=handler.request_streaming,
        )
        return _reshape(handler, guarded.call, guarded.stream_deserializer)


def _behaviour(handler: Handler) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _is_async(behaviour: Any) -> bool:
    function = behaviour if inspect.isroutine(behaviour) else getattr(behaviour, "__call__", behaviour)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _reshape(
    handler: Handler,
    call: Callable[[Any, Any], Awaitable[Any]],
    deserializer: Callable[[bytes], Any] | None,
) -> Handler:
    make = _SHAPES[handler.request_streaming, handler.response_streaming]
    return make(call, request_deserializer=deserializer, response_serializer=handler.response_serializer)


def _refuse(method: str) -> Callable[[Any, Any], Awaitable[Any]]:
    async def refuse(_request: Any, context: Any) -> None:
        await abort(context, Denied(f"{method} has no policy row", metadata={"method": method}))

    return refuse
