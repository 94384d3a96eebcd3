"""HTTP clients for the services, which speak plain HTTP."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpx

_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading the system's certificates takes tens of milliseconds per client; these need none."""


async def post_to_one(
    urls: Iterable[str], path: str, document: Any, timeout_seconds: float
) -> httpx.Response | None:
    """The answer of the first of a service's replicas that runs; None if none does. Raises
    `httpx.HTTPError` where one was reached and did not answer: what was asked may be done."""
    for url in urls:
        async with client(url, timeout_seconds) as service:
            try:
                return await service.post(path, json=document)
            except httpx.ConnectError:
                continue  # Another replica may run.
    return None


def client(url: str, timeout_seconds: float) -> httpx.AsyncClient:
    """A client of the service at `url`, for one request at a time.

    Many at a time on one client are slow: its pool looks at every connection for every request.
    No proxy of the environment's is used.
    """
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_seconds,
        limits=httpx.Limits(max_connections=1),
        verify=_NO_CERTIFICATES,
        trust_env=False,
    )
