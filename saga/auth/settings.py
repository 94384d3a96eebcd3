"""Who may ask over HTTP: the settings that every process has which serves it."""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

KEYS_FILE_NAME: Final = "api_keys.json"
AUDIT_FOLDER_NAME: Final = "audit"
_CLAIM: Final = re.compile(r"[^.\s]+(\.[^.\s]+)*")


class Auth(StrEnum):
    """Whether a caller has to be known."""

    ON = "on"
    OFF = "off"


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_fetched_safely(url: str) -> str:
    """The URL of keys, if what it serves cannot be changed on the way: HTTPS, or loopback. Raises
    `ValueError`."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError("it is no URL; write https://host/path") from None
    if parts.scheme == "https" and host:
        return url
    if parts.scheme == "http" and is_loopback(host):
        return url
    raise ValueError(
        "keys that come over plain HTTP may be forged; write https://, or http:// to loopback"
    )


def _check_keys(place: str) -> str:
    return check_fetched_safely(place) if "://" in place else place


def _check_claim(path: str) -> str:
    if not _CLAIM.fullmatch(path):
        raise ValueError("it names no claim; write a name, or a path such as realm_access.roles")
    return path


class AuthSettings(BaseSettings):
    """Who may ask over HTTP."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    data_dir: Path = Path("data")
    """The folder of the embedded databases, one file per service; and of the audit trail."""
    auth: Annotated[Auth | None, BeforeValidator(lambda text: text and str(text).lower())] = None
    """By default off on a loopback address, and on elsewhere."""
    auth_off_reason: (
        Annotated[str, StringConstraints(strip_whitespace=True, max_length=1_000)] | None
    ) = None
    """Why authentication is off on an address that others reach; logged at each start."""
    auth_issuer: Annotated[str, AfterValidator(check_fetched_safely)] | None = None
    """Whose tokens are believed: their `iss`, and where the discovery document is found."""
    auth_audience: str | None = None
    """For whom tokens are: one of their `aud`."""
    auth_jwks: Annotated[str, AfterValidator(_check_keys)] | None = None
    """The issuer's keys, a URL or a file; by default where its discovery document says."""
    auth_leeway_seconds: Annotated[int, Field(ge=0, le=300)] = 30
    """How far the issuer's clock may differ from this one's."""
    auth_roles_claim: Annotated[str, AfterValidator(_check_claim)] = "roles"
    """The claim with a token's roles, as a path: `realm_access.roles`."""
    auth_owner_claim: Annotated[str, AfterValidator(_check_claim)] = "sub"
    """The claim that ties a user to their own sagas, as a path."""
    auth_requests_per_second: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = (
        2_000.0
    )
    """How many requests one known caller may send, from whatever addresses; 0 for no limit."""
    api_keys_file: Path | None = None
    """The keys that `saga keys` makes, as hashes; by default `api_keys.json` in the folder of
    secrets where it is there, else in `data_dir`."""
    audit_dir: Path | None = None
    """The folder of the audit trail, a file per process; by default `audit` in `data_dir`."""
    audit_keep_bytes: Annotated[int, Field(ge=1_000_000)] = 1_000_000_000
    """How much of the trail each process keeps: beyond that, the oldest goes."""

    @property
    def keys_file(self) -> Path:
        """Where the keys are, whether they are there or not."""
        if self.api_keys_file is not None:
            return self.api_keys_file
        secrets = os.environ.get("SECRETS_DIR")
        if secrets and (file := Path(secrets) / KEYS_FILE_NAME).is_file():
            return file
        return self.data_dir / KEYS_FILE_NAME

    @property
    def audit_folder(self) -> Path:
        """Where the audit trail is."""
        return self.audit_dir or self.data_dir / AUDIT_FOLDER_NAME
