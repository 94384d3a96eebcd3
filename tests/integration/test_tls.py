"""AMQP over TLS, with an authority made for the test: who is not trusted is not talked to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
import yarl

from saga.broker.setup import apply_topology
from saga.discovery import VARIABLE
from saga.local.node import RabbitNode
from saga.local.server import free_ports
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.settings import SettingsError, TlsSettings
from tests.integration.service_process import ServiceProcess, assert_refuses
from tests.parcels import GRAPH
from tests.polling import until

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Secured:
    """A broker that takes clients with a certificate of its authority only."""

    node: RabbitNode
    url: str
    files: dict[str, str]
    """The settings a client needs."""
    other_authority: str


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    server, ours = authority.issue_cert(HOST), authority.issue_cert("saga@localhost")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    server.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    ours.cert_chain_pems[0].write_to_path(folder / "ours.pem")
    ours.private_key_pem.write_to_path(folder / "ours.key")
    port = free_ports(["amqps"])["amqps"]
    node = RabbitNode(
        folder / "node",
        settings={
            "listeners.ssl.default": f"{HOST}:{port}",
            "ssl_options.cacertfile": str(folder / "authority.pem"),
            "ssl_options.certfile": str(folder / "server.pem"),
            "ssl_options.keyfile": str(folder / "server.pem"),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true",
        },
    )
    node.start()
    yield Secured(
        node,
        f"amqps://guest:guest@{HOST}:{port}/",
        {
            "AMQP_CA_FILE": str(folder / "authority.pem"),
            "AMQP_CERT_FILE": str(folder / "ours.pem"),
            "AMQP_KEY_FILE": str(folder / "ours.key"),
        },
        str(folder / "other.pem"),
    )
    node.kill()
    node.stop()


def with_files(secured: Secured, **changed: str | None) -> str:
    """The URL with the files in its query, as the settings put them there."""
    given = {**secured.files, **changed}
    files = {name.lower(): Path(file) for name, file in given.items() if file is not None}
    return TlsSettings.model_validate(files).applied_to(secured.url)


async def test_a_service_works_over_tls(tmp_path: Path, secured: Secured) -> None:
    # A node is ready with its plain listener; the one for TLS may follow.
    await apply_topology(with_files(secured), GRAPH, patience_seconds=60)
    environment = {VARIABLE: "tests.parcels:SAGA", "AMQP_URL": secured.url, **secured.files}
    with ServiceProcess("tests.parcels.shop", tmp_path, **environment) as shop:
        await shop.says("ready")
        async with shop.http() as http:

            async def is_ready() -> bool:
                return (await http.get("/readyz")).status_code == httpx.codes.OK

            await until(is_ready)


async def test_an_authority_we_do_not_trust_is_one_line_at_once(secured: Secured) -> None:
    url = with_files(secured, AMQP_CA_FILE=secured.other_authority)

    with pytest.raises(BrokerError, match=r"not trusted.*AMQP_CA_FILE") as caught:
        await connect(url, name="test", patience_seconds=3600)

    assert "\n" not in str(caught.value)
    assert "guest:guest" not in str(caught.value)


def test_a_service_says_in_one_line_whom_it_does_not_trust(
    tmp_path: Path, secured: Secured
) -> None:
    environment = {
        VARIABLE: "tests.parcels:SAGA",
        "AMQP_URL": secured.url,
        **secured.files,
        "AMQP_CA_FILE": secured.other_authority,
    }
    assert_refuses("tests.parcels.shop", tmp_path, "not trusted", "AMQP_CA_FILE", **environment)


async def test_a_host_by_another_name_is_not_trusted(secured: Secured) -> None:
    url = str(yarl.URL(with_files(secured)).with_host("localhost"))

    with pytest.raises(BrokerError, match="not valid for 'localhost'; write the host in AMQP_URL"):
        await connect(url, name="test")


async def test_a_broker_that_wants_our_certificate_says_so(secured: Secured) -> None:
    url = with_files(secured, AMQP_CERT_FILE=None, AMQP_KEY_FILE=None)

    with pytest.raises(BrokerError, match="certificate of ours; name it in AMQP_CERT_FILE"):
        # The broker's reset may get here before the reason that it gave; the next try hears it.
        await connect(url, name="test", patience_seconds=60)


async def test_a_port_without_tls_is_named(secured: Secured) -> None:
    url = str(yarl.URL(with_files(secured)).with_port(secured.node.port("amqp")))

    with pytest.raises(BrokerError, match="does not speak TLS"):
        await connect(url, name="test", patience_seconds=3600)


@pytest.mark.parametrize("setting", ["AMQP_CA_FILE", "AMQP_CERT_FILE"])
async def test_a_file_that_cannot_be_used_is_named(
    setting: str, secured: Secured, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        url = with_files(secured, **{setting: str(tmp_path / name)})
        with pytest.raises(BrokerError, match=f"{name}.*{setting}"):
            await connect(url, name="test")


def test_files_for_tls_beside_a_url_without_it_are_refused() -> None:
    files = TlsSettings(amqp_ca_file=Path("authority.pem"))

    with pytest.raises(SettingsError, match="write amqps://"):
        files.applied_to("amqp://broker/")


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(SettingsError, match="AMQP_CERT_FILE"):
        TlsSettings(amqp_key_file=Path("our.key")).applied_to("amqps://broker/")
