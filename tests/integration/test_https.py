"""HTTP over TLS, with an authority made for the test: who shows no certificate that is trusted is
not asked, and a client that keeps a server waiting in its handshake gains nothing by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import uvloop
import yarl
from fastapi import FastAPI

import saga.runtime.server
from saga.deployment import Deployment
from saga.discovery import packages
from saga.exporter import Exporter
from saga.http import client
from saga.local.observe import configuration
from saga.runtime.readiness import Readiness
from saga.runtime.server import Server, listen
from saga.runtime.settings import HttpSettings, SettingsError, load
from saga.runtime.tls import context_of, trusted
from saga.runtime.web import create_app
from saga.status import NO_ANSWER, READY, readiness
from tests.integration.served import LOOPBACK, parsed, serving
from tests.polling import DEADLINE_SECONDS, until

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""A TLS record begins like this; the rest of it never comes."""


@dataclass(frozen=True)
class Certificates:
    authority: Path
    other_authority: Path
    certificate: Path
    key: Path
    other_key: Path

    @property
    def served(self) -> dict[str, str]:
        """The settings of a server."""
        return {"HTTP_CERT_FILE": str(self.certificate), "HTTP_KEY_FILE": str(self.key)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("https")
    authority, other = trustme.CA(), trustme.CA()
    issued, others = authority.issue_cert(LOOPBACK), other.issue_cert(LOOPBACK)
    found = Certificates(
        *(folder / name for name in ("ca", "other-ca", "cert", "key", "other-key"))
    )
    authority.cert_pem.write_to_path(found.authority)
    other.cert_pem.write_to_path(found.other_authority)
    issued.cert_chain_pems[0].write_to_path(found.certificate)
    issued.private_key_pem.write_to_path(found.key)
    others.private_key_pem.write_to_path(found.other_key)
    return found


def settings_of(files: Certificates) -> HttpSettings:
    return HttpSettings(http_cert_file=files.certificate, http_key_file=files.key)


@asynccontextmanager
async def secured(
    files: Certificates, connections_max: int = 100
) -> AsyncIterator[tuple[Server, int]]:
    """A server with the health routes, over TLS."""

    async def nothing() -> None: ...

    settings = settings_of(files)
    app: FastAPI = create_app("test", settings, readiness=Readiness(), before_scrape=nothing)
    listener = listen(LOOPBACK, 0, way_out="port")
    port: int = listener.getsockname()[1]
    server = Server(app, connections_max=connections_max, tls=context_of(settings))
    running = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield server, port
    finally:
        server.should_exit = True
        await running


def trusting(files: Certificates, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.authority)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


async def asked(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context)
    writer.write(GET)
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await reader.read()


# --- what every process serves --------------------------------------------------------------------


@pytest.mark.parametrize("package", packages())
async def test_every_service_speaks_https_and_the_tools_ask_it_so(
    package: str, tmp_path: Path, files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(package, tmp_path, **files.served) as served:
        url = f"https://{LOOPBACK}:{served.port}"

        untrusted = await readiness([url])
        monkeypatch.setenv("HTTP_CA_FILE", str(files.authority))
        trusted_one = await readiness([url])
        plain = await readiness([f"http://{LOOPBACK}:{served.port}"])
        async with client(url, DEADLINE_SECONDS) as service:
            openapi = await service.get("/openapi.json")

    assert "name the authority of its certificate in HTTP_CA_FILE" in untrusted
    assert not trusted_one.startswith(NO_ANSWER)  # It lacks its broker, and says so.
    assert plain.startswith(NO_ANSWER)
    assert openapi.status_code == 200


async def test_the_exporter_speaks_https(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (files.served | {"HTTP_CA_FILE": str(files.authority)}).items():
        monkeypatch.setenv(name, value)
    nowhere = Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={})

    with Exporter(nowhere, host=LOOPBACK, port=0) as exporter:
        url = yarl.URL(exporter.url)
        said = await readiness([str(url.origin())])

    assert url.scheme == "https"
    assert said == READY


def test_prometheus_is_told_to_scrape_over_https(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_CA_FILE", str(files.authority))
    jobs = configuration({}, 5, "order", scheme="https")["scrape_configs"]

    how = {job["job_name"]: (job.get("scheme"), job.get("tls_config")) for job in jobs}
    ours = ("https", {"ca_file": str(files.authority)})
    assert how["saga"] == how["saga-exporter"] == ours
    assert how["rabbitmq"] == (None, None)


async def test_a_containers_health_check_asks_over_https(
    tmp_path: Path, files: Certificates
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "http_cert_file").write_text(str(files.certificate))
    async with secured(files) as (_, port):
        for how in ({"HTTP_CERT_FILE": str(files.certificate)}, {"SECRETS_DIR": str(secrets)}, {}):
            environment = os.environ | {"HTTP_PORT": str(port)} | how
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "saga.runtime.healthcheck", "/livez", env=environment
            )
            assert (await process.wait() == 0) is bool(how), how


# --- which TLS ------------------------------------------------------------------------------------


async def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(files: Certificates) -> None:
    async with secured(files) as (server, port):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            only = trusting(files, minimum_version=version, maximum_version=version)
            assert parsed(await asked(port, only)).status == 200
        old = trusting(files)
        old.set_ciphers("ALL:@SECLEVEL=0")  # Or our own side would not even try.
        with warnings.catch_warnings(action="ignore"):  # They are deprecated; that is the point.
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asked(port, old)
        await until(lambda: not server.server_state.connections)


async def test_many_requests_over_one_connection_and_what_comes_at_once_are_answered(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_CA_FILE", str(files.authority))
    async with secured(files) as (server, port):
        async with client(f"https://{LOOPBACK}:{port}", DEADLINE_SECONDS) as service:
            for _ in range(5):
                assert (await service.get("/livez")).status_code == 200
            assert len(server.server_state.connections) == 1
        for answer in await asyncio.gather(*(asked(port, trusting(files)) for _ in range(30))):
            assert parsed(answer).status == 200
        await until(lambda: not server.server_state.connections)


# --- slow and hostile clients ---------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saga.runtime.server, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(saga.runtime.server, "LINGER_SECONDS", 0.5)
    monkeypatch.setattr(saga.runtime.server, "_SWEEP_TICKS", 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", HELLO, GET], ids=["nothing", "half a hello", "plain HTTP"])
async def test_a_handshake_that_does_not_end_is_cut_off(sent: bytes, files: Certificates) -> None:
    async with secured(files) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(sent)
        async with asyncio.timeout(DEADLINE_SECONDS):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        await until(lambda: not server.server_state.connections)
        writer.close()


@pytest.mark.usefixtures("impatient")
async def test_who_has_shaken_hands_still_has_to_send_a_request(files: Certificates) -> None:
    async with secured(files) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=trusting(files))
        writer.write(GET[:20])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert parsed(await reader.read()).status == 408
        writer.close()
        await until(lambda: not server.server_state.connections)


async def test_handshakes_count_as_connections_and_make_room(files: Certificates) -> None:
    """Though they have all the time they may have, no client that speaks is kept out."""
    async with secured(files, connections_max=10) as (server, port):
        silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(30)]
        await until(lambda: len(server.server_state.connections) == 10)
        for _ in range(3):
            assert parsed(await asked(port, trusting(files))).status == 200
        assert len(server.server_state.connections) <= 10
        for _, writer in silent:
            writer.close()
        await until(lambda: not server.server_state.connections)


async def test_a_server_that_stops_waits_for_no_handshake(files: Certificates) -> None:
    async with secured(files) as (server, port):
        silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(3)]
        await until(lambda: len(server.server_state.connections) == 3)
    for _, writer in silent:
        writer.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "scenario",
    [
        test_a_server_that_stops_waits_for_no_handshake,
        test_who_has_shaken_hands_still_has_to_send_a_request,
        *(
            lambda files, sent=sent: test_a_handshake_that_does_not_end_is_cut_off(sent, files)
            for sent in (b"", HELLO, GET)
        ),
    ],
)
def test_it_is_the_same_on_the_event_loop_of_the_services(
    scenario: Callable[[Certificates], Coroutine[Any, Any, None]], files: Certificates
) -> None:
    uvloop.run(scenario(files))


def test_handshakes_count_on_the_event_loop_of_the_services(files: Certificates) -> None:
    uvloop.run(test_handshakes_count_as_connections_and_make_room(files))


def test_requests_are_answered_on_the_event_loop_of_the_services(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    uvloop.run(
        test_many_requests_over_one_connection_and_what_comes_at_once_are_answered(
            files, monkeypatch
        )
    )


# --- settings -------------------------------------------------------------------------------------


@pytest.fixture
def junk(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.pem").touch()
    (tmp_path / "prose.pem").write_text("no certificate")
    return {name: tmp_path / name for name in ("missing.pem", "empty.pem", "prose.pem")}


def test_files_that_cannot_be_served_with_are_named(
    files: Certificates, junk: dict[str, Path]
) -> None:
    for name, path in junk.items():
        with pytest.raises(SettingsError, match=rf"{name}.*HTTP_CERT_FILE"):
            context_of(HttpSettings(http_cert_file=path, http_key_file=files.key))
        with pytest.raises(SettingsError, match=rf"{name}.*HTTP_KEY_FILE"):
            context_of(HttpSettings(http_cert_file=files.certificate, http_key_file=path))
    with pytest.raises(SettingsError, match=r"HTTP_KEY_FILE.*the key belongs to the certificate"):
        context_of(HttpSettings(http_cert_file=files.certificate, http_key_file=files.other_key))
    with pytest.raises(SettingsError, match="no file in HTTP_KEY_FILE"):
        context_of(HttpSettings(http_cert_file=files.certificate))
    with pytest.raises(SettingsError, match="a key of no certificate: set HTTP_CERT_FILE"):
        context_of(HttpSettings(http_key_file=files.key))


def test_an_authority_that_cannot_be_read_is_named(
    junk: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in junk.items():
        monkeypatch.setenv("HTTP_CA_FILE", str(path))
        with pytest.raises(SettingsError, match=rf"{name}.*HTTP_CA_FILE"):
            trusted()


async def test_another_authority_is_not_trusted(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_CA_FILE", str(files.other_authority))
    async with secured(files) as (_, port), client(f"https://{LOOPBACK}:{port}", 5) as service:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await service.get("/livez")


def test_the_scheme_follows_from_the_certificate(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(HttpSettings).http_scheme == "http"
    monkeypatch.setenv("HTTP_CERT_FILE", str(files.certificate))
    assert load(HttpSettings).http_scheme == "https"
