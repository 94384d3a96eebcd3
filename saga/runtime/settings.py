"""Settings, read from the environment; each has a name of its own and a limit."""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import pydantic_settings
import yarl
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from saga.auth.settings import AuthSettings
from saga.errors import Explained
from saga.runtime.disk import FREE_MIN_BYTES
from saga.runtime.telemetry import LogFormat
from saga.runtime.urls import printable, sqlite_url, text_of, unambiguous, without_passwords
from saga.text import is_utf_8

INBOX_DAYS: Final = 90.0
_HOST_NAME: Final = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*\.?")

SECRETS_DIR = "SECRETS_DIR"
"""Names the folder of the settings that are no environment's business."""


class SettingsError(Explained):
    """A setting that cannot be used. Names the variable, and what it takes."""


class Discreet(BaseModel):
    """Holds URLs, and shows them without their passwords."""

    def __repr__(self) -> str:
        return without_passwords(super().__repr__())

    def __str__(self) -> str:
        return without_passwords(super().__str__())


class TlsSettings(Discreet, BaseSettings):
    """What TLS with the broker takes beside an `amqps://` URL."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    amqp_ca_file: Path | None = None
    """The certificates (PEM) to trust; by default the system's."""
    amqp_cert_file: Path | None = None
    """Our own certificate (PEM), where the broker asks for one."""
    amqp_key_file: Path | None = None
    """Its key, unless that is in the same file."""

    def applied_to(self, amqp_url: str) -> str:
        """The URL with the files in its query, where aio-pika looks for them; what is there
        already stays. Raises `SettingsError` where they would have no effect, and for a URL that
        could be read in another way."""
        try:
            unambiguous(amqp_url)
        except ValueError as error:
            raise SettingsError(f"AMQP_URL cannot be used: {error}") from None
        files = {
            "cafile": self.amqp_ca_file,
            "certfile": self.amqp_cert_file,
            "keyfile": self.amqp_key_file,
        }
        named = {name: str(file.absolute()) for name, file in files.items() if file is not None}
        if not named:
            return amqp_url
        if self.amqp_key_file is not None and self.amqp_cert_file is None:
            raise SettingsError("AMQP_KEY_FILE names a key of no certificate: set AMQP_CERT_FILE")
        if not amqp_url.startswith("amqps:"):
            raise SettingsError(
                "AMQP_CA_FILE, AMQP_CERT_FILE and AMQP_KEY_FILE are for TLS, which AMQP_URL does "
                "not ask for: write amqps:// there, or unset them"
            )
        try:
            url = yarl.URL(amqp_url)
        except ValueError:
            return amqp_url  # connecting will say what is wrong with it
        return text_of(url.update_query(named | dict(url.query)))


class ClientTlsSettings(BaseSettings):
    """What it takes to ask a service over HTTPS."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    http_ca_file: Path | None = None
    """The certificates (PEM) to trust; by default the system's."""


def _check_host_names(text: str) -> str:
    for name in _names(text):
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(
                f"{printable(name)!r} is no host name; write names such as trips.example.com or "
                f"*.example.com, without ports, separated by commas"
            )
    return text


def _check_networks(text: str) -> str:
    for name in _names(text):
        try:
            ipaddress.ip_network(name, strict=False)
        except ValueError:
            raise ValueError(
                f"{printable(name)!r} is no address; write addresses or networks such as "
                f"10.0.0.7, 10.1.0.0/16, separated by commas"
            ) from None
    return text


class HttpSettings(AuthSettings):
    """How a process serves HTTP."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0 picks a free port, which the log names."""
    http_allowed_hosts: Annotated[str, AfterValidator(_check_host_names)] | None = None
    """The names with a dot in them by which it is known, separated by commas; see
    `saga.runtime.doors.Visitors`."""
    http_answer_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """How long an answer may take, after which it is 503."""
    http_connections_max: Annotated[int, Field(ge=10, le=100_000)] = 500
    """How many connections there may be at once. They share the process's file descriptors, 1,024
    on many machines, with its broker and its database."""
    http_cert_file: Path | None = None
    """The certificate to show (PEM), with what stands between it and the authority; then it speaks
    HTTPS, and nothing else. See `saga.runtime.tls`."""
    http_key_file: Path | None = None
    """Its key (PEM), unless that is in the same file."""
    http_requests_per_second: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = (
        2_000.0
    )
    """How many requests an address may send, beyond which it is told to wait; 0 for no limit. By
    default about what one process can answer: a load from one machine is never held back, and who
    serves strangers sets less."""
    http_proxies: Annotated[str, AfterValidator(_check_networks)] | None = None
    """The addresses or networks of proxies, separated by commas, that are believed when they say
    who asks (`X-Forwarded-For`)."""
    http_headers_max_bytes: Annotated[int, Field(ge=8_192, le=1_048_576)] = 65_536
    """The longest line and headers of an HTTP request together."""
    body_max_bytes: Annotated[int, Field(ge=1024)] = 65_536
    """The longest HTTP request body."""

    @property
    def http_scheme(self) -> str:
        """How its addresses begin."""
        return "http" if self.http_cert_file is None else "https"

    @property
    def allowed_hosts(self) -> list[str]:
        """The names in `http_allowed_hosts`."""
        return _names(self.http_allowed_hosts or "")

    @property
    def proxies(self) -> list[str]:
        """The networks in `http_proxies`."""
        names = _names(self.http_proxies or "")
        return [str(ipaddress.ip_network(name, strict=False)) for name in names]


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


class Sealing(StrEnum):
    """Whether personal fields of messages are sealed where they enter."""

    OFF = "off"
    SEALED = "sealed"


class PersonalShown(StrEnum):
    """How a sealed value is shown to a caller of whom nothing is known."""

    MASKED = "masked"
    CLEAR = "clear"


class PersonalSettings(Discreet, BaseSettings):
    """How personal data is sealed, and where the keys of persons are; see `saga.personal`."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    personal: Annotated[Sealing, BeforeValidator(str.lower)] = Sealing.OFF
    """Whether clear values of personal fields are sealed where they enter."""
    personal_shown: Annotated[PersonalShown, BeforeValidator(str.lower)] = PersonalShown.MASKED
    """What answers over HTTP show where nothing tells whether the caller may read it. A value that
    the request itself names is shown."""
    persons_database_url: str | None = None
    """Where the keys of persons are; by default a SQLite file in `data_dir`."""
    personal_key: SecretStr | None = None
    """The master keys themselves, as `SECRETS_DIR` has them in the file `personal_key`."""
    personal_key_file: Path | None = None
    """The file of the master keys, the newest in the first line; by default `persons.key` in
    `data_dir`."""
    personal_cache_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 30.0
    """How long a process goes on using a person's key that it has read: so long after a person
    is forgotten, the last one may still open what is theirs."""
    data_dir: Path = Path("data")
    """The folder of the embedded databases, one file per service."""


class Settings(TlsSettings, HttpSettings, PersonalSettings):
    """One service's settings."""

    amqp_url: str = "amqp://guest:guest@127.0.0.1:5672/"
    database_url: str | None = None
    """Where this service keeps its state; by default a SQLite file in `data_dir`."""
    database_patience_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long a starting service waits for a database server."""
    log_level: Annotated[str, Field(pattern="(?i)^(debug|info|warning|error)$")] = "INFO"
    log_format: Annotated[LogFormat, BeforeValidator(str.lower)] = LogFormat.AUTO
    """JSON, or text; by default text at a terminal only."""
    broker_patience_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long a starting service waits for the broker."""
    drain_seconds: Annotated[float, Field(gt=0, le=600)] = 15.0
    """How long a stopping service may take to finish what it has begun."""
    group_max: Annotated[int, Field(ge=1, le=1_024)] = 128
    """Messages in one transaction."""
    inbox_days: Annotated[float, Field(gt=30, le=3650)] = INBOX_DAYS
    """How long a service knows which messages it has done: longer than the history is kept."""
    outbox_backlog_max: Annotated[int, Field(ge=1)] = 20_000
    """Events waiting for the broker, beyond which new commands are turned away."""
    outbox_keep_minutes: Annotated[float, Field(ge=0, le=10_080)] = 60.0
    """How long what was published is kept, so that a broker that is gone can be rebuilt; 0 keeps
    nothing."""
    outbox_keep_bytes: Annotated[int, Field(ge=1_000_000)] = 500_000_000
    """How much of it at most: beyond that, the oldest goes earlier."""
    disk_free_min_bytes: Annotated[int, Field(ge=0)] = FREE_MIN_BYTES
    """Free bytes of the disks it writes to, below which nothing new is begun; 0 for no limit. See
    `saga.runtime.disk`."""
    disk_folders: str | None = None
    """Folders of others whose disks are to have as much room, a database server's for instance,
    separated by colons."""

    @property
    def broker_url(self) -> str:
        """The broker's URL, with what TLS takes. Raises `SettingsError`."""
        return self.applied_to(self.amqp_url)

    @property
    def folders_of_others(self) -> list[Path]:
        """The folders in `disk_folders`."""
        return [Path(folder) for folder in (self.disk_folders or "").split(os.pathsep) if folder]

    def database_url_of(self, participant: str) -> str:
        """The database URL of one service."""
        return self.database_url or sqlite_url(self.data_dir / f"{participant}.db")


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S], **given: Any) -> S:
    """Settings from the environment, and from files in the folder that `SECRETS_DIR` names, each
    named as its setting (`amqp_url`); the environment counts more, and what is `given` most. Raises
    `SettingsError`."""
    secrets = os.environ.get(SECRETS_DIR) or None
    if secrets is not None and not Path(secrets).is_dir():
        raise SettingsError(
            f"{SECRETS_DIR} names {secrets}, which is no folder: mount it, or unset it"
        )
    for name in kind.model_fields:
        if not is_utf_8(os.environ.get(name.upper(), "")):
            raise SettingsError(f"{name.upper()} is not UTF-8: write it in UTF-8")
    try:
        return kind(_secrets_dir=secrets, **given)
    except (UnicodeDecodeError, pydantic_settings.SettingsError) as error:
        why = error.__cause__ or error
        raise SettingsError(f"cannot read a file in {secrets} ({SECRETS_DIR}): {why}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise SettingsError(
            f"cannot use the settings in the environment: {without_passwords(problems)}"
        ) from None
