"""HTTP clients for the services, which speak plain HTTP."""

from __future__ import annotations

import ssl
from typing import Final

import httpx

_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loading the system's certificates takes tens of milliseconds per client; these need none."""


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
