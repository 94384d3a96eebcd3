"""A TCP proxy: the network between a service and its broker or database, which a test can cut,
silence or slow down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 65_536
SLOW_CHUNK_BYTES: Final = 4_096
CONNECT_SECONDS: Final = 5.0

_LOOPBACK: Final = "127.0.0.1"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends a reset, as a cut connection does sooner or later."""


Tap = Callable[[object, bytes], None]
"""Is shown what comes from one end of a connection, whatever is done to it then; the same end is
the same object."""


class Proxy:
    """Forwards what connects to `port` on loopback to `target()`'s port there.

    async with Proxy(lambda: node.port("amqp")) as proxy: ...

    Belongs to one event loop. What a fault does to open connections it does to new ones, until
    `heal`; `cut` and `strand` are over at once for new ones.
    """

    def __init__(self, target: Callable[[], int], tap: Tap | None = None) -> None:
        self._target = target
        self._tap = tap
        self._delay_seconds = 0.0
        self._trickling = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, _LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Reset every connection, and refuse new ones from now on. May be called again."""
        assert self._server is not None
        self._server.close()
        self.cut()
        # Not `wait_closed`: up to Python 3.11 it waits for nothing, later for handlers as well.
        await asyncio.gather(*(link.ended.wait() for link in self._links))

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every connection, at both ends."""
        for link in self._links:
            link.released.set()
            _reset(link.client)
            _reset(link.server)

    def strand(self) -> None:
        """Reset every connection at the server's end only: the client hears nothing of it, nor of
        anything else, until `heal` resets its end too."""
        for link in self._links:
            link.released.clear()
            _reset(link.server)

    def silence(self) -> None:
        """Let nothing through any more, and tell neither end. After `heal` it arrives after all."""
        self._flowing.clear()

    def slow(self, delay_seconds: float) -> None:
        """Hold up every few kilobytes for so long, each way."""
        self._delay_seconds = delay_seconds

    def trickle(self) -> None:
        """Send every byte by itself, each way, in packets of its own."""
        self._trickling = True

    def heal(self) -> None:
        """Forward everything at once again."""
        self._delay_seconds = 0.0
        self._trickling = False
        self._flowing.set()
        for link in self._links:
            if not link.released.is_set():
                link.released.set()
                _reset(link.client)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                server = await asyncio.open_connection(_LOOPBACK, self._target())
        except (OSError, TimeoutError):
            _reset(writer)
            return
        link = _Link(writer, server[1])
        self._links.add(link)
        try:
            await asyncio.gather(
                self._forward(reader, server[1], link), self._forward(server[0], writer, link)
            )
        finally:
            self._links.discard(link)
            for end in (link.client, link.server):
                if not end.is_closing():
                    _reset(end)
            link.ended.set()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        """Forward one way until that end closes, then close the other end."""
        with contextlib.suppress(OSError):
            while True:
                slow = self._delay_seconds > 0
                data = await reader.read(SLOW_CHUNK_BYTES if slow else CHUNK_BYTES)
                if not data:
                    break
                if self._tap is not None:
                    self._tap(reader, data)
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._flowing.wait()
                if self._trickling:
                    await self._trickle(data, writer)
                    continue
                writer.write(data)
                await writer.drain()
        await link.released.wait()
        writer.close()

    async def _trickle(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(0)  # Let the reader in this loop have its turn, and read one byte.
        await writer.drain()


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.released = asyncio.Event()
        """Whether a lost end is passed on to the other one."""
        self.released.set()
        self.ended = asyncio.Event()


def _reset(writer: asyncio.StreamWriter) -> None:
    transport = writer.transport
    if not transport.is_closing():
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
