"""One guarded method: admit the caller, read the request, bound the time, translate what goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from wire.errors import DeadlineExceeded, Denied, FactoryError, Internal, Unimplemented
from wire.peers import PeerReader
from wire.policy import Caller, Principal, Resource, Row, authorize, set_caller
from wire.requests import RequestReader, Validator
from wire.status import abort, code_of

LOG = logging.getLogger("hyperfactory.wire")

AUDIT_MAX_S: Final = 2.0
RESOURCE_FIELDS: Final = ("agent", "crew", "profile", "name", "broadcast", "manifest")
REFUSALS: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what, on what, from where, and how it ended."""

    method: str
    caller: Caller | None
    peer: str
    resource: str
    request_id: str
    code: str
    reason: str
    message: str


class CallMetrics(Protocol):
    """Counts calls; labels are the method and the code."""

    def observe(self, method: str, code: str, seconds: float) -> None: ...


Audit = Callable[[AuditRecord], Awaitable[None]]
Own = Callable[[], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Guards:
    """What the methods of one server share."""

    peers: PeerReader
    validator: Validator | None
    audit: Audit | None
    metrics: CallMetrics | None
    own: Own | None


class _Call:
    """What is known of one call so far."""

    __slots__ = ("caller", "request", "started")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.caller: Caller | None = None
        self.request: Any = None


class GuardedMethod:
    """`call` replaces the handler's behaviour; without a behaviour the method is not served yet."""

    def __init__(
        self,
        row: Row,
        behaviour: Callable[[Any, Any], Any] | None,
        deserializer: Callable[[Any], Any] | None,
        guards: Guards,
        *,
        request_streaming: bool,
    ) -> None:
        self._row = row
        self._behaviour = behaviour
        self._guards = guards
        self._generates = behaviour is not None and inspect.isasyncgenfunction(behaviour)
        self._reader = RequestReader(row.method, deserializer, guards.validator, strict=row.ours)
        self._request_streaming = request_streaming
        # Messages of a stream are read while the handler iterates: what is wrong with one is raised there.
        self.stream_deserializer = self._reader if request_streaming else None

    async def call(self, arrived: Any, context: Any) -> Any:
        call = _Call()
        try:
            call.caller = self._guards.peers.caller(context, self._row)
            authorize(self._row, call.caller)
            call.request = arrived if self._request_streaming else self._reader(arrived)
            self._check_resource(call)
            set_caller(call.caller)
            response = await self._behave(call.request, context)
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(call, context, error)
            raise
        await self._settle(call, context, grpc.StatusCode.OK, None)
        return response

    def _check_resource(self, call: _Call) -> None:
        caller, rule = call.caller, self._row.resource
        if caller is None or caller.principal is not Principal.AGENT or rule is Resource.ANY:
            return
        crew, agent = self._target(call.request)
        if crew != caller.crew or not crew or (rule is Resource.SELF and agent != caller.agent):
            raise Denied(
                f"agent '{caller.agent}' may call {self._row.method} within its own crew only",
                metadata={"method": self._row.method},
            )

    def _target(self, request: Any) -> tuple[str, str]:
        if self._guards.own is not None:
            return self._guards.own()
        return _text(request, "crew"), _text(request, "agent")

    async def _behave(self, request: Any, context: Any) -> Any:
        limit_s = self._row.default_deadline_s
        if not limit_s or context.time_remaining() is not None:
            return await self._run(request, context)
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._run(request, context)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"{self._row.method} took longer than {limit_s:g} s") from error

    async def _run(self, request: Any, context: Any) -> Any:
        if self._behaviour is None:
            raise Unimplemented(
                f"{self._row.method} is not served yet",
                metadata={"method": self._row.method, "planned": self._row.planned},
            )
        if not self._generates:
            return await self._behaviour(request, context)
        async with aclosing(self._behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)
        return None

    async def _fail(self, call: _Call, context: Any, error: BaseException) -> None:
        """End the call with the error's status; returns only for what has to be raised again as it is."""
        if isinstance(error, FactoryError):
            known = error
        elif isinstance(error, grpc.aio.AbortError):
            await self._settle(call, context, context.code() or grpc.StatusCode.UNKNOWN, None)
            return
        elif isinstance(error, asyncio.CancelledError) or context.cancelled():
            # A stream cut off in a write ends with an error of grpc's own.
            await self._settle(call, context, grpc.StatusCode.CANCELLED, None)
            return
        else:
            known = self._incident(call, error)
        await self._settle(call, context, code_of(known), known)
        await abort(context, known)

    def _incident(self, call: _Call, error: BaseException) -> Internal:
        incident = secrets.token_hex(6)
        LOG.error(
            "cannot finish call",
            exc_info=error,
            extra={
                "action": "call_failed",
                "incident": incident,
                "method": self._row.method,
                "caller": call.caller.spiffe if call.caller else "",
            },
        )
        return Internal(f"internal error, incident {incident}", metadata={"incident": incident})

    async def _settle(
        self, call: _Call, context: Any, code: grpc.StatusCode, error: FactoryError | None
    ) -> None:
        """Count the call, and audit it where that is due."""
        guards = self._guards
        if guards.metrics is not None:
            guards.metrics.observe(self._row.method, code.name, time.perf_counter() - call.started)
        if guards.audit is None:
            return
        if self._row.audited or code in REFUSALS or (error and error.reason == "STALE_GENERATION"):
            await self._audit(guards.audit, call, context, code, error)

    async def _audit(
        self, audit: Audit, call: _Call, context: Any, code: grpc.StatusCode, error: FactoryError | None
    ) -> None:
        record = AuditRecord(
            method=self._row.method,
            caller=call.caller,
            peer=context.peer(),
            resource=_resource(call.request),
            request_id=_text(call.request, "request_id"),
            code=code.name,
            reason=error.reason if error else "",
            message=error.message if error else "",
        )
        try:
            async with asyncio.timeout(AUDIT_MAX_S):
                await audit(record)
        except Exception:
            # The deed is done, and a refusal stands: a lost audit line must not change the answer.
            LOG.exception("cannot audit call", extra={"action": "audit_failed", "method": record.method})


def _resource(request: Any) -> str:
    for name in RESOURCE_FIELDS:
        value = _text(request, name)
        if value:
            return f"{name}/{value}"
    manifest = getattr(request, "manifest", None)
    return f"crew/{_text(manifest, 'name')}" if manifest is not None else ""


def _text(message: Any, name: str) -> str:
    value = getattr(message, name, "")
    return value if isinstance(value, str) else ""
