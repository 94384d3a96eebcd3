"""`/readyz` for programs that have no HTTP server: who starts them waits for it."""

from __future__ import annotations

import asyncio
import os
import signal

_READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


async def serve_until_stopped() -> None:
    """Answer every request that all is well, on `HTTP_PORT`, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_READY)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", int(os.environ["HTTP_PORT"])):
        await stop.wait()
