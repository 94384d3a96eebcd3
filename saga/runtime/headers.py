"""What every answer says of how it may be used, whichever part writes it: a route, a middleware
before the routes, or the server itself."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = b"content-security-policy"

SECURITY_HEADERS: Final = {
    # JSON and text: a page that shows one may load nothing, run nothing and be put in no frame.
    POLICY: b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",  # What `frame-ancestors` is to old browsers.
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    # Most answers hold data of people; what does not says itself how long it may be kept.
    b"cache-control": b"no-store",
}
"""Keyed by name in lower case. There is no `Strict-Transport-Security`: it is for a host with all
its ports, and so for the owner of the name to say."""


class SecurityHeaders:
    """Adds them to every answer; one that the answer has already stays.

    `own` replaces some for all answers of an application.
    """

    def __init__(self, app: ASGIApp, own: dict[bytes, bytes] | None = None) -> None:
        self._app = app
        self._headers = [*(SECURITY_HEADERS | (own or {})).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [*message.get("headers", ())]
                names = {name.lower() for name, _ in given}
                missing = [header for header in self._headers if header[0] not in names]
                message = {**message, "headers": given + missing}
            await send(message)

        await self._app(scope, receive, with_headers)
