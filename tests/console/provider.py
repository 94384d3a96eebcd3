"""A real OpenID Connect provider on loopback, and people who log in there by HTTP.

What it says can be meddled with, as an attacker between it and a console might.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
from oidc_provider_mock import User
from oidc_provider_mock import app as provider_app
from werkzeug.serving import make_server

from order_saga import SAGA
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.deployment import FILE_NAME, Deployment, dead_letters_url_in

CLIENT: Final = "console"
ROLES: Final = ("reader", "operator", "admin")
PEOPLE: Final = {f"{role}-1": role for role in ROLES} | {"nobody-1": "gardener"}
"""Keyed by subject: their role; the last one's is none that a console knows."""


@dataclass
class Provider:
    """Where people log in. `meddle` changes the id tokens that it gives out."""

    issuer: str
    meddle: Callable[[str], str] | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    """What its token endpoint was asked with."""

    async def code(self, address: str, person: str, **changed: str) -> str:
        """Log in, asked to by an address of the authorization endpoint, of which some parameters
        may be changed on the way; returns the address that the browser is sent back to."""
        parts = urlsplit(address)
        query = {**dict(parse_qsl(parts.query)), **changed}
        async with httpx.AsyncClient() as browser:
            answer = await browser.post(
                f"{address.partition('?')[0]}?{urlencode(query)}", data={"sub": person}
            )
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]


@contextmanager
def running_provider(max_age: timedelta = timedelta(hours=1)) -> Iterator[Provider]:
    """The provider, with all users in `PEOPLE`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    users = [
        User(sub=sub, claims={"roles": [role], "preferred_username": f"the {role}"})
        for sub, role in PEOPLE.items()
    ]
    app: Any = provider_app(user_claims=users, access_token_max_age=max_age)
    found = Provider("")

    def meddled(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/oauth2/token":
            return app(environ, start)  # type: ignore[no-any-return] # WSGI has no types here
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = BytesIO(body)
        found.asked.append(dict(parse_qsl(body.decode())))
        if found.meddle is None:
            return app(environ, start)  # type: ignore[no-any-return]
        started: list[Any] = []
        document = json.loads(b"".join(app(environ, lambda *said: started.append(said))))
        document["id_token"] = found.meddle(document["id_token"])
        content = json.dumps(document).encode()
        headers = [h for h in started[0][1] if h[0].lower() != "content-length"]
        start(started[0][0], [*headers, ("Content-Length", str(len(content)))])
        return [content]

    server = make_server("127.0.0.1", 0, meddled, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    found.issuer = f"http://127.0.0.1:{server.server_port}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings_of(provider: Provider | None, folder: Path, **more: Any) -> ConsoleSettings:
    """Of a console at which people log in at the provider, if there is one."""
    given: dict[str, Any] = {"auth": "on", "data_dir": folder, "http_port": 0}
    if provider is not None:
        given |= {
            "auth_issuer": provider.issuer,
            "auth_client_id": CLIENT,
            "auth_client_secret": "a secret",
        }
    return ConsoleSettings(**given | more)


@asynccontextmanager
async def guarded(settings: ConsoleSettings) -> AsyncIterator[str]:
    """The address of a console at which people log in. If no system is in its folder, it shows one
    none of whose services run."""
    folder = settings.data_dir
    if not (folder / FILE_NAME).exists():
        Deployment(
            amqp_url="amqp://127.0.0.1:1/",
            http_urls={},
            database_urls={},
            dead_letters_url=dead_letters_url_in(folder),
        ).save(folder)
    async with serving(Watched(folder, SAGA), settings) as url:
        yield url.rstrip("/")


@asynccontextmanager
async def stranger(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which no user is logged in yet."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def began(client: httpx.AsyncClient, page: str = "/") -> str:
    """Begin a login; returns the address at the provider."""
    answer = await client.get("/login/provider", params={"page": page})
    assert answer.status_code == 303, answer.text
    address: str = answer.headers["location"]
    return address


async def logged_in(
    client: httpx.AsyncClient, provider: Provider, person: str, page: str = "/"
) -> httpx.Response:
    """Log in, to the end; returns the console's answer."""
    return await client.get(await provider.code(await began(client, page), person))


@asynccontextmanager
async def visitor(url: str, provider: Provider, person: str) -> AsyncIterator[httpx.AsyncClient]:
    """The browser of a user who has logged in."""
    async with stranger(url) as client:
        answer = await logged_in(client, provider, person)
        assert answer.status_code == 303, answer.text
        yield client


def csrf_in(page: str) -> str:
    """What stands in a page's forms."""
    return page.partition('name="csrf" value="')[2].partition('"')[0]


def query_of(address: str) -> Mapping[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
