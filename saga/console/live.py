"""When open pages are to be brought up to date, and at what cost.

Every open page listens to one stream of ticks and then asks for itself again. What they ask for
within a tick is made once per address, however many tabs show it. The time between ticks grows with
what the last ones took, so that watching a busy machine takes no more than a small share of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TICK_SECONDS: Final = 2.0
TICK_MAX_SECONDS: Final = 30.0
SHARE_MAX: Final = 0.02
"""Of one core, what bringing pages up to date may take."""
RETRY_MS: Final = 2_000
"""After how long a browser looks for a console that has gone."""
HEADER: Final = "x-live"
"""Sent by a page that asks for itself again."""
KEPT_MAX: Final = 200
"""Answers kept within a tick."""
LISTENERS_MAX: Final = 250
"""Pages that listen at once: each holds a connection for as long as it is seen."""
LISTENERS_OF_ONE_MAX: Final = 50
"""The same of one user."""


class Ticker:
    """Tells listeners when to look again. Belongs to one event loop."""

    def __init__(self, listeners_max: int = LISTENERS_MAX) -> None:
        self.tick = 0
        self._listeners_max = listeners_max
        self._spent_seconds = 0.0
        self._listeners: dict[asyncio.Queue[int | None], str] = {}
        """Each with who listens."""
        self._ticking: asyncio.Task[None] | None = None
        self._closed = False

    def spend(self, seconds: float) -> None:
        """Note processor time that was taken for pages since the last tick."""
        self._spent_seconds += seconds

    def has_room_for(self, whose: str) -> bool:
        """Whether one more page may listen. `whose` is the user; empty, where they are not told
        apart."""
        own = list(self._listeners.values()).count(whose) if whose else 0
        return len(self._listeners) < self._listeners_max and own < LISTENERS_OF_ONE_MAX

    async def stream(self, whose: str = "") -> AsyncGenerator[bytes]:
        """Server-sent events, one per tick, until the console stops; none where there is no room.
        https://html.spec.whatwg.org/multipage/server-sent-events.html"""
        queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)
        if self._closed or not self.has_room_for(whose):
            return
        self._listeners[queue] = whose
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._run())
        try:
            yield f"retry: {RETRY_MS}\nevent: tick\ndata: {self.tick}\n\n".encode()
            while (tick := await queue.get()) is not None:
                yield f"event: tick\ndata: {tick}\n\n".encode()
        finally:
            del self._listeners[queue]

    async def _run(self) -> None:
        while self._listeners:
            pause = min(TICK_MAX_SECONDS, max(TICK_SECONDS, self._spent_seconds / SHARE_MAX))
            self._spent_seconds = 0.0
            await asyncio.sleep(pause)
            self.tick += 1
            self._tell(self.tick)

    def _tell(self, tick: int | None) -> None:
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(tick)

    async def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._tell(None)
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait({self._ticking})


class Sharing:
    """Middleware: what several open pages ask for at the same address within one tick is made
    once, for each of those whom it is made for. It is collected before it is sent, so what has no
    end must be `apart`, by its path. A stranger's answer is never shared: it may set a cookie."""

    def __init__(
        self,
        app: ASGIApp,
        ticker: Ticker,
        apart: Collection[str] = (),
        made_for: Callable[[Request], str | None] = lambda _: "all",
    ) -> None:
        """`made_for` tells apart those to whom the same address shows something else; None is a
        stranger."""
        self._app = app
        self._ticker = ticker
        self._made_for = made_for
        self._apart = apart
        self._tick = -1
        self._answers: dict[tuple[str, bytes], asyncio.Future[list[Message]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whom = self._sharing_with(scope)
        if whom is None:
            await self._app(scope, receive, send)
            return
        if self._tick != self._ticker.tick or len(self._answers) >= KEPT_MAX:
            self._tick, self._answers = self._ticker.tick, {}
        address = whom, scope["raw_path"] + b"?" + scope["query_string"]
        answer = self._answers.get(address)
        if answer is None:
            making = asyncio.ensure_future(_collected(self._app, scope, receive, self._ticker))
            answer = self._answers[address] = making
        # One tab that is closed must not take the answer from the others.
        for message in await asyncio.shield(answer):
            await send(message)

    def _sharing_with(self, scope: Scope) -> str | None:
        """Whom the answer is made for; None where it is for this request alone."""
        fetched = scope["type"] == "http" and scope["method"] == "GET"
        if not fetched or scope["path"] in self._apart or not is_live(Request(scope)):
            return None
        return self._made_for(Request(scope))


def is_live(request: Request) -> bool:
    """Whether a page asks for itself again."""
    return HEADER in request.headers


async def _collected(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
    scope: Scope,
    receive: Receive,
    ticker: Ticker,
) -> list[Message]:
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    started = time.process_time()
    try:
        await app(scope, receive, keep)
    finally:
        ticker.spend(time.process_time() - started)
    return messages
