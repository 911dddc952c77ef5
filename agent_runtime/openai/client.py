"""A model behind an OpenAI-compatible endpoint: streamed answers and embeddings, repeated where that may help.

What may pass (429, 5xx, a lost connection, an answer that is no JSON) is repeated while nothing of the answer was
passed on; later it is an error, since what was said cannot be taken back. The key is in no message and no log.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from agent_runtime.models import Prompt
from agent_runtime.openai import bodies, sse
from agent_runtime.openai.http import Endpoint, LinkBroken, NotLed, Response, WayOut, post
from agent_runtime.profile import ChatPiece
from wire.errors import DeadlineExceeded, Exhausted, FactoryError, Refused, Unavailable

BODY_MAX_BYTES: Final = 16 * 1024 * 1024
ERROR_MAX_BYTES: Final = 64 * 1024
PAUSE_FIRST_S: Final = 0.5
PAUSE_MAX_S: Final = 8.0
RETRY_AFTER_SPREAD: Final = 0.1
PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})

T = TypeVar("T")


class _Passing(Exception):
    """A failure that may not come again; `pause_s` is what the endpoint asked for."""

    def __init__(self, error: FactoryError, pause_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True)
class Settings:
    """What the profile says of its model."""

    to: Endpoint
    model: str
    embedding_model: str
    timeout_s: float
    max_retries: int
    way: WayOut
    key: str = field(default="", repr=False)


class OpenAIModel:
    """`models.Model` over the network."""

    def __init__(self, settings: Settings) -> None:
        self._s = settings
        self.embeds = settings.embedding_model

    async def answer(self, prompt: Prompt) -> AsyncGenerator[ChatPiece, None]:
        """See the protocol. `Unavailable`, `Exhausted`, `Refused`, `DeadlineExceeded`."""
        ends_s = asyncio.get_running_loop().time() + self._s.timeout_s
        body = bodies.chat_body(self._s.model, prompt)
        attempt, begun = 0, False
        while True:
            try:
                async with aclosing(self._answer(body)) as pieces:
                    while (piece := await self._timely(anext(pieces, None), ends_s)) is not None:
                        begun = True
                        yield piece
            except _Passing as trouble:
                if begun:
                    raise trouble.error from trouble
                await self._pause(attempt, trouble, ends_s)
                attempt += 1
            else:
                return

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """A vector for each text."""
        ends_s = asyncio.get_running_loop().time() + self._s.timeout_s
        body = {"model": self._s.embedding_model, "input": list(texts), "encoding_format": "float"}
        attempt = 0
        while True:
            try:
                return await self._timely(self._embed(body, len(texts)), ends_s)
            except _Passing as trouble:
                await self._pause(attempt, trouble, ends_s)
                attempt += 1

    async def _timely(self, work: Awaitable[T], ends_s: float) -> T:
        """One step of the exchange: time runs over the whole answer, its repeats included."""
        try:
            async with asyncio.timeout_at(ends_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"the model did not answer within {self._s.timeout_s:g} s") from error

    async def _pause(self, attempt: int, trouble: _Passing, ends_s: float) -> None:
        """Wait before the next attempt; the trouble itself where there is none, or no time for it."""
        if attempt >= self._s.max_retries:
            raise trouble.error from trouble
        if trouble.pause_s is not None:
            pause_s = trouble.pause_s * (1 + random.random() * RETRY_AFTER_SPREAD)
        else:
            pause_s = min(PAUSE_FIRST_S * 2**attempt, PAUSE_MAX_S) * (0.5 + random.random() / 2)
        if asyncio.get_running_loop().time() + pause_s >= ends_s:
            raise trouble.error from trouble
        await asyncio.sleep(pause_s)

    async def _answer(self, body: Any) -> AsyncGenerator[ChatPiece, None]:
        """One attempt."""
        try:
            async with self._post("/chat/completions", body) as response:
                async for piece in bodies.pieces(_events(response)):
                    yield piece
        except (LinkBroken, NotLed) as error:
            raise self._trouble(error) from error

    async def _embed(self, body: Any, count: int) -> Sequence[Sequence[float]]:
        try:
            async with self._post("/embeddings", body) as response:
                return bodies.vectors(bodies.parsed(await response.body(BODY_MAX_BYTES)), count)
        except (LinkBroken, NotLed) as error:
            raise self._trouble(error) from error

    @asynccontextmanager
    async def _post(self, path: str, body: Any) -> AsyncIterator[Response]:
        """A request whose answer is 200, or an error that says why not."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if self._s.key:
            headers["Authorization"] = f"Bearer {self._s.key}"
        data = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        async with post(self._s.to, path, headers, data, self._s.way) as response:
            if response.status != 200:
                raise await self._refusal(response)
            yield response

    def _trouble(self, error: LinkBroken | NotLed) -> Exception:
        text = f"the model's endpoint: {self._clean(str(error))}"
        if isinstance(error, NotLed):
            return Refused(text)
        return _Passing(Unavailable(text))

    def _clean(self, text: str) -> str:
        """Endpoints repeat keys in their errors; we do not."""
        return text.replace(self._s.key, "[key]") if self._s.key else text

    async def _refusal(self, response: Response) -> Exception:
        """What an answer that is not 200 means."""
        text = f"the model's endpoint answers {response.status}"
        try:
            told = json.loads(await response.body(ERROR_MAX_BYTES))
        except (ValueError, LinkBroken):
            told = None
        if isinstance(told, dict) and (words := bodies.said(told)):
            text += f": {self._clean(words)}"
        if response.status not in PASSING:
            return Refused(text, metadata={"state": str(response.status)})
        wait_s = retry_after_s(response.headers.get("retry-after", ""), datetime.now(UTC))
        if response.status == 429:
            return _Passing(Exhausted(text, quota="model requests", retry_after_s=wait_s or 1.0), wait_s)
        return _Passing(Unavailable(text), wait_s)


async def _events(response: Response) -> AsyncIterator[str]:
    """The answer's events; one that is not streamed is one event."""
    if "text/event-stream" in response.headers.get("content-type", ""):
        async for event in sse.events(response.pieces()):
            yield event
    else:
        yield (await response.body(BODY_MAX_BYTES)).decode(errors="replace")
        yield bodies.DONE


def retry_after_s(text: str, now: datetime) -> float | None:
    """Seconds that a Retry-After asks for, as a number or a date; None where it does not say."""
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime  # seldom needed, and dear to import

    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds(), 0.0)
