"""HTTP clients for the services. Over HTTPS, they trust the authority in `HTTP_CA_FILE`."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpx

from saga.runtime.tls import trusted

_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Reading the system's takes tens of milliseconds; clients of plain HTTP need none."""


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
    No proxy of the environment's is used. Raises `SettingsError` for an `HTTP_CA_FILE` that cannot
    be used.
    """
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_seconds,
        limits=httpx.Limits(max_connections=1),
        verify=trusted() if url.startswith("https:") else _NO_CERTIFICATES,
        trust_env=False,
    )


def said_by(error: httpx.HTTPError) -> str:
    """Why a service cannot be asked, with the way out where that is ours to know."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}; name the authority of its certificate in HTTP_CA_FILE"
    if "WRONG_VERSION_NUMBER" in text:
        return f"{text}; it does not speak TLS: ask it as http://"
    return text
