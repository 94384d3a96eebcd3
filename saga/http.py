"""HTTP clients for the services. They send the API key in `SAGA_API_KEY`, and over HTTPS they trust
the authority in `HTTP_CA_FILE`."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from saga.auth.keys import PREFIX
from saga.errors import Explained
from saga.runtime.settings import SettingsError, load
from saga.runtime.tls import trusted

KEY_FILE_NAME: Final = "saga_api_key"
KEY_MAX_BYTES: Final = 8_192
"""A token may stand in its place, and that is long."""
_NO_CERTIFICATES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Reading the system's takes tens of milliseconds; clients of plain HTTP need none."""


class KeyRefused(Explained):
    """A service does not take the key that was sent, or takes one and none was. Says why."""


class KeySettings(BaseSettings):
    """The key with which commands ask the services."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    data_dir: Path = Path("data")
    saga_api_key: SecretStr | None = None
    """A key that `saga keys create` made, or a token."""
    saga_api_key_file: Path | None = None
    """The file that it is in; by default `saga_api_key` in `data_dir`, where that is there."""

    @property
    def key(self) -> str | None:
        """The key, where there is one. Raises `SettingsError`."""
        if self.saga_api_key is not None:
            key = self.saga_api_key.get_secret_value().strip()
        else:
            file = self.saga_api_key_file or self.data_dir / KEY_FILE_NAME
            try:
                with file.open(encoding="ascii") as stream:
                    key = stream.read(KEY_MAX_BYTES).strip()
            except FileNotFoundError:
                if self.saga_api_key_file is None:
                    return None
                raise SettingsError(f"SAGA_API_KEY_FILE names {file}, which is no file") from None
            except OSError as error:
                raise SettingsError(
                    f"cannot read the API key in {file}: {error.strerror}"
                ) from None
            except UnicodeDecodeError:
                raise SettingsError(f"{file} holds no API key: it is not ASCII") from None
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError("SAGA_API_KEY holds no API key: it has other characters in it")
        return key or None


async def post_to_one(
    urls: Iterable[str], path: str, document: Any, timeout_seconds: float
) -> httpx.Response | None:
    """The answer of the first of a service's replicas that runs; None if none does. Raises
    `httpx.HTTPError` where one was reached and did not answer: what was asked may be done. Raises
    `KeyRefused`."""
    for url in urls:
        async with client(url, timeout_seconds) as service:
            try:
                return await service.post(path, json=document)
            except httpx.ConnectError:
                continue  # Another replica may run.
    return None


def client(url: str, timeout_seconds: float, *, with_key: bool = True) -> httpx.AsyncClient:
    """A client of the service at `url`, for one request at a time; `with_key` shows it our API key,
    and raises `KeyRefused` where that is not enough.

    Many at a time on one client are slow: its pool looks at every connection for every request.
    No proxy of the environment's is used. Raises `SettingsError` for a key or an `HTTP_CA_FILE`
    that cannot be used.
    """
    key = load(KeySettings).key if with_key else None
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_seconds,
        limits=httpx.Limits(max_connections=1),
        verify=trusted() if url.startswith("https:") else _NO_CERTIFICATES,
        trust_env=False,
        headers={"Authorization": f"Bearer {key}"} if key else None,
        event_hooks={"response": [_check_key]} if with_key else None,
    )


async def _check_key(answer: httpx.Response) -> None:
    """Raises `KeyRefused` where a service does not take our key."""
    if answer.status_code not in (401, 403) or "WWW-Authenticate" not in answer.headers:
        return
    sent = answer.request.headers.get("Authorization", "").removeprefix("Bearer ")
    where = str(answer.request.url.copy_with(path="/", query=None)).rstrip("/")
    if not sent:
        raise KeyRefused(
            f"the service at {where} takes an API key: set SAGA_API_KEY, or SAGA_API_KEY_FILE; "
            f"`saga keys create` makes one"
        )
    which = _called(sent)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise KeyRefused(
            f"the service at {where} does not know {which}: it may be revoked, expired or of "
            f"another system; its audit trail tells why"
        )
    await answer.aread()
    try:
        why = str(answer.json()["detail"])
    except (ValueError, LookupError, TypeError):
        why = "a scope is missing"
    raise KeyRefused(
        f"{which} may not do this at {where}: {why}; make one that may with `saga keys create`"
    )


def _called(key: str) -> str:
    """What a key is called where others may read it."""
    if key.startswith(PREFIX):
        return f"the key {key.removeprefix(PREFIX).partition('_')[0]} (SAGA_API_KEY)"
    return "the token in SAGA_API_KEY"


def said_by(error: httpx.HTTPError) -> str:
    """Why a service cannot be asked, with the way out where that is ours to know."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"{text}; name the authority of its certificate in HTTP_CA_FILE"
    if "WRONG_VERSION_NUMBER" in text:
        return f"{text}; it does not speak TLS: ask it as http://"
    return text
