"""The HTTP server of every process: uvicorn, with limits on what a connection may take.

uvicorn limits neither how many connections there are, nor how long a client may take to send a
request or to read its answer; only how long it may be idle after one. So a client that sends
nothing, half a header or half a body would keep its connection for ever. Here

- a request has to arrive whole within `REQUEST_SECONDS`, else it is answered with 408;
- an answer has to be read within that time as well, else the connection is cut;
- a TLS handshake is part of the request, and its connection counts from the beginning;
- where there are as many connections as there may be, the one whose client has kept us waiting for
  longest makes room; if we are at work for all of them, a new one is answered with 503.

This rests on uvicorn's protocol for h11, which `tests/integration/test_server.py` pins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from saga.runtime.files import allow_open_files
from saga.runtime.headers import SECURITY_HEADERS
from saga.runtime.problem import Problem, headers_too_long, unavailable

REQUEST_SECONDS: Final = 10.0
"""How long a client may take to send a request, or to read its answer."""
LINGER_SECONDS: Final = 2.0
"""How long a client may take to close a connection that is at its end: were it closed at once, the
client might lose the answer."""
GRACEFUL_SECONDS: Final = 5
"""How long requests that are being answered may take when the server stops."""
TURNED_AWAY_MAX: Final = 100
"""Connections beyond the maximum that are told so; further ones are cut."""

HEADERS_MAX_BYTES: Final = 65_536
"""The longest line and headers of a request together, where nothing else is said."""
OPEN_FILES_BESIDE: Final = 256
"""Files that a process may have open beside its HTTP connections; a service has a few dozen."""

PAUSE_SECONDS: Final = 3.0
"""A longer time between two looks at connections is one in which this process did not run."""
_SWEEP_TICKS: Final = 10
"""How often connections are looked at, in ticks of uvicorn's clock, which are tenths of seconds."""


class Server(uvicorn.Server):
    """Serves an application until `should_exit` is set.

    Leaves signals to its owner: stopping HTTP is only one step of a drain.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        connections_max: int,
        headers_max_bytes: int = HEADERS_MAX_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises `OSError` where so many connections cannot be open. With `tls`, it speaks HTTPS
        only."""
        try:
            allow_open_files(connections_max + OPEN_FILES_BESIDE)
        except OSError as error:
            raise OSError(f"{error}, or lower HTTP_CONNECTIONS_MAX") from error
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                workers=1,  # else uvicorn reads WEB_CONCURRENCY
                timeout_graceful_shutdown=GRACEFUL_SECONDS,
                h11_max_incomplete_event_size=headers_max_bytes,
                server_header=False,
                reset_contextvars=True,  # Nothing of one request is known to the next.
                proxy_headers=False,  # `saga.runtime.doors` believes those that are named.
            )
        )
        # What is wrong with a request, its client is told.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self.server_state = self._state = _State(connections_max, headers_max_bytes, tls)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        if counter % _SWEEP_TICKS == 0:
            self._state.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


class _State(ServerState):
    """What the connections of a server have in common."""

    def __init__(
        self, connections_max: int, headers_max_bytes: int, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__()
        self._connections_max = connections_max
        self.headers_max_bytes = headers_max_bytes
        self.tls = tls
        self._swept_at: float | None = None

    def has_room_for(self, newcomer: _Connection) -> bool:
        """Whether one more connection may stay; makes room for it if need be."""
        if len(self.connections) <= self._connections_max:
            return True
        staying = [connection for connection in self._ours() if not connection.ended]
        if len(staying) <= self._connections_max:
            return True
        waiting = [c for c in staying if c is not newcomer and c.waits_for_client]
        if not waiting:
            return False
        min(waiting, key=lambda connection: connection.since).cut()
        return True

    def is_overrun(self) -> bool:
        """Whether so many are being turned away that clients cannot be told why any more."""
        return len(self.connections) > self._connections_max + TURNED_AWAY_MAX

    def sweep(self, now: float) -> None:
        """End the connections whose clients take too long. A pause of ours counts for no client:
        what it has sent meanwhile was not read yet."""
        if self._swept_at is not None and (paused := now - self._swept_at) > PAUSE_SECONDS:
            for connection in self._ours():
                connection.since += paused
        self._swept_at = now
        for connection in self._ours():
            connection.end_if_late(now)

    def _ours(self) -> list[_Connection]:
        return [c for c in self.connections if isinstance(c, _Connection)]


class _FirstStepMade:
    """A coroutine whose first step is made at once, and whose others when it is awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, asyncio.Transport | None]) -> None:
        self._coroutine = coroutine
        self._waits_for = coroutine.send(None)

    def __await__(self) -> Generator[Any, Any, asyncio.Transport | None]:
        while True:
            try:
                try:
                    yield self._waits_for
                except BaseException as error:
                    self._waits_for = self._coroutine.throw(error)
                else:
                    self._waits_for = self._coroutine.send(None)
            except StopIteration as end:
                found: asyncio.Transport | None = end.value
                return found


class _Unambiguous(h11.Connection):
    """Takes no request whose length a proxy may understand in another way (RFC 9112, section 6.1):
    what that takes for its body would be a request of its own here."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            chunked = b"transfer-encoding" in names
            if chunked and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of its body is said in two ways")
        return event


class _Connection(H11Protocol):
    """A connection that ends when its client takes too long."""

    since: float
    """The time from which on the client has had to send a request, or to read the last answer."""
    ended = False
    """Whether the last that is said on it was said."""
    greeting: asyncio.Task[None] | None = None
    """The TLS handshake, while there is one. Nothing can be told before its end."""
    early = b""
    """What came right behind the handshake."""
    lost = False

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn = _Unambiguous(
            h11.SERVER, config.h11_max_incomplete_event_size or HEADERS_MAX_BYTES
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.since = self.loop.time()
        tls = self._shared.tls
        if not self._shared.has_room_for(self):
            if tls is not None or self._shared.is_overrun():
                self.cut()
            else:
                self._end(unavailable("there are too many connections; try again later"))
        elif tls is not None:
            transport.pause_reading()  # What comes first is for TLS to read, which goes on reading.
            # Its first step is made here: on uvloop, data may come before a task has begun.
            handshake = _FirstStepMade(
                self.loop.start_tls(
                    transport,
                    self,
                    tls,
                    server_side=True,
                    ssl_handshake_timeout=REQUEST_SECONDS,
                    ssl_shutdown_timeout=LINGER_SECONDS,
                )
            )
            self.greeting = asyncio.ensure_future(self._greet(transport, handshake))

    async def _greet(self, plain: asyncio.Transport, handshake: _FirstStepMade) -> None:
        """Speak TLS on the connection from now on.

        uvicorn would know of a connection only when its handshake is over, for which asyncio gives
        a minute; so any number of clients could begin one and stay.
        """
        try:
            secured = await handshake
        except OSError:  # TLS errors, a time-out and lost connections are all of its kind.
            secured = None
        self.greeting = None
        if secured is None or self.lost:
            plain.abort()
            self.connections.discard(self)
            return
        self.transport = secured
        self.flow = FlowControl(secured)
        self.scheme = "https"
        if self.early:
            self.data_received(self.early)

    @property
    def _shared(self) -> _State:
        assert isinstance(self.server_state, _State)  # noqa: S101 - only `Server` makes us
        return self.server_state

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send a request, to read the answer, or to go."""
        if self.ended or self.transport.is_closing() or self.flow.write_paused:
            return True
        cycle = self._cycle()
        return cycle is None or cycle.response_complete or cycle.more_body

    def end_if_late(self, now: float) -> None:
        """End it, if the client has taken too long."""
        waited_seconds = now - self.since
        if self.ended:
            if waited_seconds > LINGER_SECONDS:
                self.cut()
        elif self.greeting is not None:
            if waited_seconds > REQUEST_SECONDS:
                self.cut()
        elif waited_seconds > REQUEST_SECONDS and self.waits_for_client:
            if self.transport.get_write_buffer_size():
                self.cut()  # It does not read, so there is no use in telling it anything.
            else:
                self._end(Problem(408, f"no whole request within {REQUEST_SECONDS:g} s"))

    def _cycle(self) -> RequestResponseCycle | None:
        """The latest request; uvicorn's type leaves out that there may be none yet."""
        return self.cycle

    def cut(self) -> None:
        """End it now, without a word."""
        if self.greeting is not None:
            self.greeting.cancel()  # uvloop does not end a handshake because its connection did.
            self.connections.discard(self)
        self.transport.abort()

    def _end(self, problem: Problem) -> None:
        """Tell the client the problem, if an answer is due and has not begun; then read no more,
        and wait a moment for the client to close the connection."""
        self.ended = True
        self.since = self.loop.time()
        self._unset_keepalive_if_required()
        cycle = self._cycle()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = problem.response()
            headers = [*answer.raw_headers, *SECURITY_HEADERS.items(), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    # What uvicorn's own protocol does, with the ends above.

    def data_received(self, data: bytes) -> None:
        if self.greeting is not None:
            self.early += data
        elif not self.ended:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()  # uvicorn calls this where it handles one of h11's
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._end(headers_too_long(self._shared.headers_max_bytes))
        else:
            self._end(Problem(400, "what was sent is no HTTP request"))

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        if self.ended or self.greeting is not None:
            self.cut()
        else:
            super().shutdown()


def url_of(listener: socket.socket, scheme: str) -> str:
    """Where a client on this machine finds what listens there."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def listen(host: str, port: int, *, way_out: str) -> socket.socket:
    """A socket that listens there. Raises `OSError`, with a line that says the `way_out`."""
    # Named as TCP, or asyncio would leave Nagle's algorithm on, and an answer in two pieces would
    # wait for the other side's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # Now, or a second process could still bind the same port.
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what uses it, or choose "
            f"another {way_out}"
        ) from error
    return listener
