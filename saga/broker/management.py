"""The broker's management API: what it holds, and who may do what. For operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
import yarl

from saga.runtime.messaging.connection import BrokerError
from saga.runtime.messaging.definitions import (
    HASHING,
    Definitions,
    password_hash,
    permission,
)
from saga.runtime.messaging.permissions import User, name_on_broker
from saga.runtime.urls import printable, unambiguous

TIMEOUT_SECONDS: Final = 30.0

_REFUSED: Final = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


class Management:
    """One broker's management API, asked as the user in its URL: http://user:password@host:port.

    Every method raises `BrokerError`. For one task at a time.
    """

    def __init__(self, url: str) -> None:
        self._printable = printable(url)
        try:
            parsed = yarl.URL(unambiguous(url))
            if parsed.scheme not in ("http", "https") or not parsed.host:
                raise ValueError
        except ValueError:
            raise BrokerError(
                f"{self._printable!r} is no address of a management API; "
                f"write http://user:password@host:15672, with special characters as %XX"
            ) from None
        self._client = httpx.AsyncClient(
            base_url=str(parsed.with_user(None)),
            auth=(parsed.user or "guest", parsed.password or "guest"),
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def export(self, virtual_host: str) -> Definitions:
        """What the broker holds; users and permissions only if the user asking may see them."""
        response = await self._ask("GET", "/api/definitions")
        if response.status_code in _REFUSED:
            response = await self._ask("GET", f"/api/definitions/{_part(virtual_host)}")
        self._check(response, "read the definitions")
        document: Definitions = response.json()
        return document

    async def running_nodes(self) -> int:
        """How many nodes of its cluster run."""
        response = await self._ask("GET", "/api/nodes?columns=running")
        self._check(response, "count the nodes")
        return sum(1 for node in response.json() if node.get("running"))

    async def put_virtual_host(self, virtual_host: str) -> None:
        """Make a virtual host that is not there."""
        path = f"/api/vhosts/{_part(virtual_host)}"
        response = await self._ask("GET", path)
        if response.status_code == httpx.codes.NOT_FOUND:
            await self._put(path, {})
        else:
            self._check(response, f"look at the virtual host {virtual_host}")

    async def put_users(
        self, users: Sequence[User], passwords: Mapping[str, str], virtual_host: str
    ) -> None:
        """Create the users that are missing and give all of them their permissions.

        One without a password here keeps the one it has; a new one cannot log in before it has one.
        They are called as `name_on_broker` says; `passwords` are keyed by their names without that.
        """
        for user in users:
            name = name_on_broker(user.name, virtual_host)
            path = f"/api/users/{_part(name)}"
            response = await self._ask("GET", path)
            missing = response.status_code == httpx.codes.NOT_FOUND
            if not missing:
                self._check(response, f"read the user {name}")
            if missing or user.name in passwords:
                await self._put(path, _credentials(passwords.get(user.name)))
            here = f"{_part(virtual_host)}/{_part(name)}"
            await self._put(f"/api/permissions/{here}", permission(user))
            for topic in user.topics:
                await self._put(
                    f"/api/topic-permissions/{here}",
                    {"exchange": topic.exchange, "write": topic.write, "read": topic.read},
                )

    async def _put(self, path: str, body: Mapping[str, Any]) -> None:
        self._check(await self._ask("PUT", path, body), f"change {path.removeprefix('/api/')}")

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            return await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise BrokerError(
                f"cannot reach the management API at {self._printable}: "
                f"{str(error) or type(error).__name__}; is the plugin rabbitmq_management enabled?"
            ) from error

    def _check(self, response: httpx.Response, what: str) -> None:
        if response.status_code in _REFUSED:
            raise BrokerError(
                f"the management API at {self._printable} does not let its user {what}; "
                f"name an administrator in the URL"
            )
        if not response.is_success:
            raise BrokerError(
                f"the management API at {self._printable} would not {what}: "
                f"{response.status_code} {response.text[:200]}"
            )


def _part(name: str) -> str:
    return quote(name, safe="")


def _credentials(password: str | None) -> dict[str, str]:
    hashed = "" if password is None else password_hash(password)
    return {"password_hash": hashed, "hashing_algorithm": HASHING, "tags": ""}
