"""Where a running system's parts are: from the environment, or as `saga up` wrote it down."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

import yarl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga.errors import Explained
from saga.outside import Outside, OutsideError
from saga.runtime.files import write_whole
from saga.runtime.settings import (
    INBOX_DAYS,
    Discreet,
    PersonalSettings,
    PersonalShown,
    Sealing,
    load,
)
from saga.runtime.tls import OF_DEPLOYMENT
from saga.runtime.urls import sqlite_url, unambiguous, without_passwords

FILE_NAME = "saga.json"
DEAD_LETTERS_FILE_NAME = "dead_letters.db"


_OWNER_ONLY = 0o600


def _http_url(url: str) -> str:
    """The URL, if a client can ask there. Raises ValueError, which does not quote it."""
    try:
        parsed = yarl.URL(unambiguous(url))
    except ValueError:
        parsed = yarl.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or not url.isascii():
        raise ValueError("it is no URL of a service; write http://host:port")
    return url


HttpUrl = Annotated[str, AfterValidator(_http_url)]


class DeploymentError(Explained):
    """No running system is known. Says how to name one."""


class Deployment(Discreet, BaseModel):
    """The addresses an operator's command needs. Keys are participants' names."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    amqp_url: str
    """As the operator's user, where the broker has one."""
    amqp_urls: dict[str, str] = {}
    """Keyed by user of the broker: its password, where each has its own."""
    http_urls: dict[str, tuple[HttpUrl, ...]]
    """Of each replica."""
    database_urls: dict[str, str]
    outside_urls: dict[str, str] = {}
    """Keyed by name: where the outsides keep their books; see `saga.outside.Outside`."""
    outside_papers: dict[str, tuple[Path, ...]] = Field(default={}, repr=False)
    """Keyed by name: the files and folders in which outsides keep more than their books, as the
    services' settings say; see `saga.outside.Outside.papers`."""
    inbox_days: float = INBOX_DAYS
    """The services' setting: what is older than that they may have done and forgotten."""
    personal: Sealing = Sealing.OFF
    """Whether what enters is sealed: what a command publishes then is, too."""
    persons_database_url: str | None = None
    """Where the keys of persons are; by default as the environment says."""
    personal_cache_seconds: float | None = None
    """How long a service goes on using a person's key; by default as the environment says."""
    personal_key_file: Path | None = Field(default=None, repr=False)
    """The file of the master keys; by default as the environment says. The keys are not here."""
    personal_shown: PersonalShown | None = None
    """What services show of a name where nothing tells whether who asks may read it; None where
    that is not known here."""
    callers_known: bool | None = None
    """Whether services have to know who asks them (`AUTH`); None where that is not known here."""
    api_keys_file: Path | None = Field(default=None, repr=False)
    """The API keys that services take, as hashes with names: a path from the folder of this file
    on. None where that is not known here."""
    api_keys_copied: bool = False
    """Whether services read copies of that file, which the command that made them renews
    (`saga.bootstrap`)."""
    http_ca_file: Path | None = Field(default=None, repr=False)
    """The authority by which services are known that are asked over HTTPS, unless the environment
    names another one: a path from the folder of this file on; see `saga.runtime.tls.trusted`."""
    dead_letters_url: str | None = None
    """The operator's store of dead letters; by default a file beside the one this is read from."""

    def amqp_url_of(self, user: str) -> str:
        """Where to connect as this user of the broker, or as the one user there is."""
        return self.amqp_urls.get(user, self.amqp_url)

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        """Of before there were several outsides. Where both are said, the newer one counts."""
        if isinstance(given, dict) and "sandbox_url" in given:
            given = dict(given)
            before = {"provider": given.pop("sandbox_url")}
            given["outside_urls"] = before | (given.get("outside_urls") or {})
        return given

    def personal_settings(self, folder: Path | None = None) -> PersonalSettings:
        """How a command seals and opens: as the system does, and with what the environment and
        `SECRETS_DIR` say of the master keys. Raises `SettingsError`."""
        given: dict[str, Any] = {
            "persons_database_url": self.persons_database_url,
            "personal_cache_seconds": self.personal_cache_seconds,
            "personal_key_file": self.personal_key_file,
            "data_dir": folder,
        }
        said = {name: value for name, value in given.items() if value is not None}
        if self.personal is Sealing.SEALED:
            said["personal"] = self.personal
        return load(PersonalSettings, **said)

    def outside_url(self, outside: Outside[Any]) -> str:
        """Where an outside keeps its books. Raises `OutsideError`."""
        try:
            return self.outside_urls[outside.name]
        except KeyError:
            raise OutsideError(
                f"the deployment does not say where {outside.name} keeps its books; add its URL"
            ) from None

    def save(self, folder: Path) -> None:
        """Write it down for other commands; the file holds the broker's passwords."""
        write_secret(folder / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `saga up` wrote down in `folder`. Raises `DeploymentError`."""
        path = folder / FILE_NAME
        try:
            found = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DeploymentError(
                f"no running system is known in {folder}: start one with `saga up`, "
                f"or name its data folder with --data-dir or DATA_DIR"
            ) from None
        except OSError as error:
            raise DeploymentError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise DeploymentError(f"cannot read {path}: it is not UTF-8") from None
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            # Not `from error`: it holds what the file does, passwords among that.
            raise DeploymentError(f"cannot read {path}: {without_passwords(problems)}") from None
        placed: dict[str, Any] = {}
        if found.http_ca_file is not None:
            placed["http_ca_file"] = folder / found.http_ca_file
        OF_DEPLOYMENT.set(placed.get("http_ca_file"))
        if found.dead_letters_url is None:
            placed["dead_letters_url"] = dead_letters_url_in(folder)
        if found.api_keys_file is not None:
            placed["api_keys_file"] = folder / found.api_keys_file
        return found.model_copy(update=placed)

    @classmethod
    def default_folder(cls) -> Path:
        """`DATA_DIR`, or `data` in the current folder."""
        return Path(os.environ.get("DATA_DIR", "data"))


def outside_urls_in(folder: Path, outsides: Iterable[Outside[Any]]) -> dict[str, str]:
    """Where the outsides of a system in `folder` keep their books, those that keep any."""
    return {
        outside.name: os.environ.get(outside.setting or "")
        or sqlite_url(folder.resolve() / outside.file)
        for outside in outsides
        if outside.file is not None
    }


def outside_papers_in(
    folder: Path, outsides: Iterable[Outside[Any]]
) -> dict[str, tuple[Path, ...]]:
    """Where the outsides of a system in `folder` keep papers, by the environment of its
    services."""
    return {
        outside.name: tuple(path.absolute() for path in outside.papers(folder))
        for outside in outsides
        if outside.papers is not None
    }


def dead_letters_url_in(folder: Path) -> str:
    """Where the operator's store of a system in `folder` is."""
    return sqlite_url(folder.resolve() / DEAD_LETTERS_FILE_NAME)


def write_secret(path: Path, text: str) -> None:
    """Write a file that no other user may read, at no time. Raises `OSError`, and leaves what was
    there then."""
    write_whole(path, text, _OWNER_ONLY)
