"""URLs: those made of paths lead there, and no password is shown, however it is written."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yarl
from hypothesis import given as for_all
from hypothesis import strategies as st
from pydantic_settings import BaseSettings

from notification_service.mail import MailError, SmtpMailer
from payment_service.gateway import GatewayConfigurationError, ledger_file
from saga.broker.management import Management
from saga.deployment import FILE_NAME, Deployment, DeploymentError
from saga.discovery import packages
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.postgresql import _Target
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.messaging.connection import addresses_of, named
from saga.runtime.settings import SettingsError, TlsSettings, load
from saga.runtime.urls import (
    printable,
    sqlite_path,
    sqlite_url,
    text_of,
    unambiguous,
    without_passwords,
)

ODD = (
    "a%20b",
    "what?",
    "a#b",
    "50%",
    "a b",
    "ü",
    "a+b",
    "a&b=c",
    "a;b",
    "a'b\"c",
    "a\\b",
    "[a]",
    "@",
)
"""Names of folders that mean something within a URL."""
SECRET = "hush"
PASSWORDS = (
    "hush",
    "hu/hush",
    "hush?hush",
    "hush#hush",
    "hush@hush",
    "hush:hush",
    "12/hush",
    "hu sh",
)
"""Some of them have to be written in another way, and were not."""


# --- made of paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
def test_a_database_is_in_the_folder_that_was_named(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / name).mkdir()
    url = sqlite_url(folder / "order.db")

    engine = sqlite_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (a)"))
    engine.dispose()

    assert sqlite_path(url) == folder / "order.db"
    assert (folder / "order.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


segments = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda text: text not in (".", ".."))


@for_all(st.lists(segments, min_size=1, max_size=4))
def test_any_path_comes_back_from_its_url(names: list[str]) -> None:
    path = Path("/", *names)

    assert sqlite_path(sqlite_url(path)) == path


def test_a_url_that_would_open_a_file_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="%3F"):
        sqlite_path("sqlite:////srv/what?/order.db")


@pytest.mark.parametrize("name", ODD)
def test_a_certificate_is_found_in_the_folder_that_was_named(name: str, tmp_path: Path) -> None:
    settings = TlsSettings(amqp_ca_file=tmp_path / name / "ca.pem")

    url = settings.applied_to("amqps://order:p%40ss@rabbit:5671/%40shop?also=rabbit-2")

    for address in addresses_of(url):
        last = yarl.URL(named(unambiguous(address), "order @ home"))
        assert last.query["cafile"] == str(tmp_path / name / "ca.pem")
        assert (last.password, last.path) == ("p@ss", "/@shop")


# --- with passwords -----------------------------------------------------------------------------


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["amqp", "postgresql", "smtp+starttls", "http", "nonsense"])
def test_a_password_is_not_shown_however_it_is_written(scheme: str, password: str) -> None:
    url = f"{scheme}://order:{password}@host.example:1234/path"

    for shown in (printable(url), without_passwords(f"cannot reach {url}")):
        assert SECRET not in shown
        assert "host.example" in shown


@for_all(st.text(min_size=1))
def test_no_part_of_any_password_is_shown(noise: str) -> None:
    shown = printable(f"amqp://order:{noise}{SECRET}{noise}@host/")

    assert SECRET not in shown
    assert SECRET not in printable(f"amqp://order:{noise}{SECRET}@{noise}@host/")


@pytest.mark.parametrize("password", ["12/hush", "hush?1", "hush#1"])
def test_a_url_that_names_another_host_than_it_seems_to_is_refused_without_its_password(
    password: str,
) -> None:
    there = f"order:{password}@host:5999"
    refusals: list[Exception] = []
    for door, kind in (
        (lambda: TlsSettings().applied_to(f"amqp://{there}/"), SettingsError),
        (lambda: SmtpMailer(f"smtps://{there}", 1.0), MailError),
        (lambda: Management(f"http://{there}"), Exception),
        (lambda: ledger_file(f"postgresql://{there}/x"), GatewayConfigurationError),
        (lambda: _postgresql(f"postgresql://{there}/x"), DatabaseError),
    ):
        with pytest.raises(kind) as refused:
            door()
        refusals.append(refused.value)

    for refusal in refusals:
        assert SECRET not in str(refusal)
        assert ":12" not in str(refusal)  # What stands before the hidden part.


def _postgresql(url: str) -> None:
    _Target(url, "test")


def test_what_yarl_writes_of_a_url_can_be_read_in_one_way_only() -> None:
    url = yarl.URL("amqp://order:p%40ss@rabbit/a%40b")

    assert unambiguous(text_of(url)) == text_of(url)
    assert printable(str(url)) == printable(text_of(url)) or "p@ss" not in printable(str(url))


# --- in settings and in files -------------------------------------------------------------------


def kinds_of_settings() -> list[type[BaseSettings]]:
    for package in packages():
        importlib.import_module(f"{package}.app")

    def below(kind: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    return [kind for kind in below(TlsSettings) if kind.__module__.partition(".")[0] != "tests"]


URL = f"scheme://user:{SECRET}@host:99999/"


@pytest.mark.parametrize("kind", kinds_of_settings(), ids=lambda kind: str(kind.__name__))
def test_no_setting_shows_a_password(
    kind: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where it is used, nor where it cannot be."""
    for name in kind.model_fields:
        with monkeypatch.context() as patch:
            patch.setenv(name.upper(), URL)
            shown = outcome(lambda: load(kind), SettingsError)
        assert not isinstance(shown, SettingsError) or name.upper() in str(shown)
        # A path has no double slash, and a URL is not written there.
        assert SECRET not in re.sub(r"PosixPath\('[^']*'\)", "", f"{shown} {shown!r}")


def outcome(work: Callable[[], object], refusal: type[Exception]) -> object:
    """What comes of it, or the refusal: either may be shown."""
    try:
        return work()
    except refusal as error:
        return error


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of `saga.json` with every wrong kind of value, beside right ones."""
    right = json.loads(
        Deployment(
            amqp_url=URL,
            amqp_urls={"order": URL},
            http_urls={"order": (f"http://user:{SECRET}@host:9999",)},
            database_urls={"order": URL},
            outside_urls={"provider": URL},
            dead_letters_url=URL,
        ).model_dump_json()
    )
    for field in Deployment.model_fields:
        for wrong in (URL, 7, [URL], {URL: [URL]}, {"order": {"a": URL}}):
            yield field, right | {field: wrong}


def test_no_file_of_a_deployment_shows_a_password(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    refused = 0
    for field, document in documents():
        file.write_text(json.dumps(document))
        shown = outcome(lambda: Deployment.load(tmp_path), DeploymentError)
        if isinstance(shown, DeploymentError):
            refused += 1
            assert f"cannot read {file}: {field}" in str(shown)
        assert SECRET not in f"{shown} {shown!r}"
    assert refused > 20


def test_a_file_of_a_deployment_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"amqp_url": "\xff"}')

    with pytest.raises(DeploymentError, match="not UTF-8"):
        Deployment.load(tmp_path)


def test_a_variable_or_a_secret_that_is_not_utf_8_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AMQP_CA_FILE", b"/\xff".decode(errors="surrogateescape"))
        with pytest.raises(SettingsError, match="AMQP_CA_FILE is not UTF-8"):
            load(TlsSettings)
    (tmp_path / "amqp_ca_file").write_bytes(b"/\xff")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match=f"{tmp_path}.*utf-8"):
        load(TlsSettings)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "ftp://host", "http://[", "http://h:99999", "http://"]
)
def test_a_service_that_nobody_can_ask_is_named_before_anybody_does(
    url: str, tmp_path: Path
) -> None:
    document = Deployment(
        amqp_url="", http_urls={}, database_urls={}, outside_urls={"provider": ""}
    )
    spoiled = document.model_dump() | {"http_urls": {"order": [url]}}
    (tmp_path / FILE_NAME).write_text(json.dumps(spoiled))

    with pytest.raises(DeploymentError, match=r"http_urls\.order\.0: .*http://host:port"):
        Deployment.load(tmp_path)


def test_a_deployment_of_before_keeps_the_outsides_that_it_names_besides() -> None:
    given = {
        "amqp_url": "amqp://broker",
        "http_urls": {},
        "database_urls": {},
        "sandbox_url": "sqlite:///provider.db",
        "outside_urls": {"mail server": "smtp://mail"},
    }

    assert Deployment.model_validate(given).outside_urls == {
        "provider": "sqlite:///provider.db",
        "mail server": "smtp://mail",
    }
