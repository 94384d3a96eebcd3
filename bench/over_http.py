"""Placing orders over HTTP on plain sockets: a client that takes as little of the cores of what it
measures as it can."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

CONNECTIONS: Final = 16


async def placed(port: int, requests: Iterable[bytes]) -> list[tuple[float, bytes]]:
    """Send the requests to a service on loopback, over so many connections; when each was sent, and
    the body of its answer. The clock is `time.monotonic`."""
    waiting = iter(requests)
    found: list[tuple[float, bytes]] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in waiting:
            sent = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 202"):
                raise RuntimeError(f"the answer is {head[:200]!r}")
            _, _, length = head.lower().partition(b"content-length: ")
            found.append((sent, await reader.readexactly(int(length.split(b"\r\n")[0]))))
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return found


def placing(order: Mapping[str, Any], key: str, token: str = "") -> bytes:
    """The request that places an order, once under this key; with an `Authorization` if there is a
    token."""
    body = json.dumps(order).encode()
    known = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\n{known}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
