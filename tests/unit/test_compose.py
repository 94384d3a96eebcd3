"""The compose files are what the specification takes, and what they say about containers holds."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from saga import bootstrap
from saga.deployment import Deployment
from saga.discovery import choreography, services
from saga.local.certificates import VALID, Authority, pem
from saga.personal.opening import open_store
from saga.runtime import healthcheck
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import HttpSettings, PersonalSettings, Sealing, Settings, load
from saga.runtime.tls import context_of, trusted

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/data/compose/compose-spec.json").read_text())
SINGLE, ADDED, SECURING = (
    yaml.safe_load((ROOT / name).read_text())
    for name in ("compose.yaml", "compose.cluster.yaml", "compose.tls.yaml")
)

Document = dict[str, Any]
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?[a-z0-9.-]*(@sha256:[0-9a-f]{64})?")
ONLY_ONCE = ("command", "entrypoint", "test")
"""What a second file replaces; other lists are added to."""


def merged(one: Any, other: Any, key: str = "") -> Any:
    """As compose reads two files: https://github.com/compose-spec/compose-spec/13-merge.md"""
    if isinstance(one, dict) and isinstance(other, dict):
        common = {name: merged(one[name], other[name], name) for name in one.keys() & other.keys()}
        return one | other | common
    if isinstance(one, list) and isinstance(other, list) and key not in ONLY_ONCE:
        if key == "volumes":
            targets = {mount.split(":")[1] for mount in other}
            one = [mount for mount in one if mount.split(":")[1] not in targets]
        return one + other
    return other


CLUSTER = merged(SINGLE, ADDED)
SECURED, SECURED_CLUSTER = (merged(document, SECURING) for document in (SINGLE, CLUSTER))
BOTH = pytest.mark.parametrize(
    "document",
    [SINGLE, CLUSTER, SECURED, SECURED_CLUSTER],
    ids=["single", "cluster", "secured", "secured cluster"],
)
OURS = "localhost/order-saga"


def ours(document: Document) -> dict[str, Document]:
    found: dict[str, Document] = document["services"]
    return {name: service for name, service in found.items() if service["image"].startswith(OURS)}


def reacting(document: Document) -> dict[str, Document]:
    """The containers of services, replicas included."""
    return {
        name: s
        for name, s in ours(document).items()
        if str(s.get("command", [""])[-1]).endswith(".app")
    }


def mounts(service: Document) -> Iterator[tuple[str, str, str]]:
    """Source, target and options of every mount."""
    for mount in service.get("volumes", []):
        source, target, *options = mount.split(":")
        yield source, target, ",".join(options)


@pytest.mark.parametrize(
    "document",
    [SINGLE, ADDED, SECURING, CLUSTER, SECURED, SECURED_CLUSTER],
    ids=["single", "added", "securing", "cluster", "secured", "secured cluster"],
)
def test_a_compose_file_is_what_the_specification_takes(document: Document) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(document)


@BOTH
def test_every_service_has_a_container_and_no_other_does(document: Document) -> None:
    commands = {" ".join(service["command"]) for service in reacting(document).values()}

    assert commands == {f"python3 -m {package}.app" for package in services()}


def test_the_cluster_has_three_nodes_and_two_replicas_of_each_participant() -> None:
    nodes = [s for s in CLUSTER["services"].values() if "/rabbitmq:" in s["image"]]
    assert len({node["hostname"] for node in nodes}) == 3
    for participant in choreography().participants:
        command = ["python3", "-m", f"{participant.name}_service.app"]
        replicas = [s for s in reacting(CLUSTER).values() if s["command"] == command]
        assert len(replicas) == 2


def test_a_replica_is_as_the_first_one_but_for_its_port_and_its_name() -> None:
    apart = ("ports", "networks")
    for name, service in reacting(CLUSTER).items():
        first = CLUSTER["services"][name.removesuffix("-2")]
        assert service | dict.fromkeys(apart) == first | dict.fromkeys(apart)


@BOTH
def test_ports_are_published_on_loopback_only_and_each_once(document: Document) -> None:
    ports = [port for service in document["services"].values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


@BOTH
def test_every_image_is_pinned(document: Document) -> None:
    for service in document["services"].values():
        assert PINNED.fullmatch(service["image"]), service["image"]
    (base,) = re.findall(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert PINNED.fullmatch(base)
    developers = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert PINNED.fullmatch(developers["image"])


@BOTH
def test_every_file_that_is_mounted_exists_and_every_volume_is_declared(
    document: Document,
) -> None:
    for service in document["services"].values():
        for source, _, options in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert "ro" in options.split(",")
            else:
                assert source in document["volumes"]
    used = {source for s in document["services"].values() for source, _, _ in mounts(s)} - {
        source for source in document["volumes"] if source.startswith(".")
    }
    assert document["volumes"].keys() <= used


@BOTH
def test_no_secret_is_in_an_environment(document: Document) -> None:
    for service in document["services"].values():
        for name, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN|COOKIE|_URL", name)
            assert secret is None or str(value).startswith("/"), name
            assert "@" not in str(value)


@BOTH
def test_secrets_are_mounted_by_their_container_alone_and_read_only(document: Document) -> None:
    holders: dict[str, set[str]] = {}
    for name, service in document["services"].items():
        for source, target, options in mounts(service):
            if source.endswith("-secrets") and name != "init":
                changes = name == "saga"  # Commands that operators type: `saga forget`.
                assert (target, options) == ("/run/secrets", "" if changes else "ro")
                holders.setdefault(source, set()).add(str(service["image"]))
                if source not in ("operator-secrets", "rabbitmq-secrets"):
                    assert name.removesuffix("-2") == source.removesuffix("-secrets")
    assert all(len(images) == 1 for images in holders.values())


@BOTH
def test_our_containers_can_do_nothing_but_their_work(document: Document) -> None:
    for name, service in ours(document).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("user") == ("0:0" if name == "init" else None)
    assert re.findall(r"^USER (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE) == [
        "10001:10001"
    ]


@BOTH
def test_a_service_is_given_longer_to_stop_than_it_takes_to_drain(document: Document) -> None:
    drain_seconds = Settings.model_fields["drain_seconds"].default
    for service in reacting(document).values():
        # It waits so long for its consumers, and so long again for what they began.
        assert float(service["stop_grace_period"].removesuffix("s")) > 2 * drain_seconds


@BOTH
def test_everything_that_goes_on_is_watched(document: Document) -> None:
    without = {
        name
        for name, service in document["services"].items()
        if service["restart"] == "unless-stopped" and "test" not in service.get("healthcheck", {})
    }

    assert without == {"tempo"}, "whose image has nothing to look with"


SECONDS = {"s": 1, "m": 60}


def seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]


BUSY_SECONDS = 20
"""What a program's start and its answer may take on a machine that has far too much to do."""
GIVEN_UP_SECONDS = 120


@BOTH
def test_a_container_on_a_busy_machine_is_not_taken_for_ill(document: Document) -> None:
    assert healthcheck.TIMEOUT_SECONDS >= BUSY_SECONDS
    checks = {n: s["healthcheck"] for n, s in document["services"].items() if "healthcheck" in s}
    for name, check in checks.items():
        if check.get("disable"):
            continue
        assert seconds(check["timeout"]) > healthcheck.TIMEOUT_SECONDS, name
        assert seconds(check["interval"]) * check["retries"] >= GIVEN_UP_SECONDS, name
        assert seconds(check["start_period"]) >= GIVEN_UP_SECONDS, name


def test_the_images_own_check_is_as_patient_as_the_one_in_the_compose_file() -> None:
    (options,) = re.findall(r"^HEALTHCHECK (.*) CMD", (ROOT / "Dockerfile").read_text(), re.M)
    check = SINGLE["services"]["order"]["healthcheck"]
    assert dict(re.findall(r"--([\w-]+)=(\S+)", options)) == {
        key.replace("_", "-"): str(value) for key, value in check.items() if key != "test"
    }


@BOTH
def test_one_container_builds_the_image_and_all_that_run_it_wait_for_that_one(
    document: Document,
) -> None:
    builders = [name for name, service in document["services"].items() if "build" in service]
    assert builders == ["init"]
    assert "profiles" not in document["services"]["init"]

    def waits_for(name: str) -> set[str]:
        first = set(document["services"][name].get("depends_on", {}))
        return first.union(*map(waits_for, first))

    without = {name for name in ours(document) if "init" not in {name} | waits_for(name)}
    assert without == {"saga"}, "which is run on a system that is up"


@BOTH
def test_whatever_starts_with_the_broker_waits_for_it_as_long_as_a_service(
    document: Document,
) -> None:
    def patience(name: str) -> float:
        return float(document["services"][name]["environment"]["BROKER_PATIENCE_SECONDS"])

    for name in (*reacting(document), "topology"):
        assert patience(name) == patience("order"), name
    assert load(Settings).broker_patience_seconds < patience("order")


def composed(text: str) -> list[str]:
    """The commands of compose in a document or in a comment, as far as a `#` that explains it."""
    joined = re.sub(r"\\\n#?\s*", "", text)
    found = re.findall(r"(?:docker compose|podman-compose) [^`#\n(]+", joined)
    return [re.sub(r"^docker compose|^podman-compose", "", command) for command in found]


def test_a_command_for_a_container_that_is_not_always_there_names_its_profile() -> None:
    written = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.yaml")]
    commands = [words.split() for file in written for words in composed(file.read_text())]
    runs = [words for words in commands if "run" in words]
    assert runs
    for words in runs:
        name = next(w for w in words[words.index("run") + 1 :] if w in CLUSTER["services"])
        profiles = CLUSTER["services"][name].get("profiles", [])
        named = {words[i + 1] for i, word in enumerate(words) if word == "--profile"}
        assert not profiles or named.intersection(profiles), " ".join(words)


@BOTH
def test_nothing_starts_before_what_it_depends_on(document: Document) -> None:
    conditions = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}
    for service in document["services"].values():
        for name, how in service.get("depends_on", {}).items():
            assert conditions[how["condition"]] in document["services"][name]


def make_secrets(document: Document, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what `init` does, below this folder."""
    init = document["services"]["init"]
    command = shlex.join(init["command"])
    command = command.replace("/secrets", str(folder)).replace("/nodes", str(folder / "nodes"))
    _, _, module, *arguments = shlex.split(command)
    assert module == bootstrap.__name__
    monkeypatch.setattr("sys.argv", [module, *arguments])
    with mock.patch.dict(os.environ, init.get("environment", {})):
        bootstrap.main()


@BOTH
def test_secrets_are_made_for_the_hosts_that_there_are(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = {
        alias
        for name, service in document["services"].items()
        for alias in (name, *service.get("networks", {}).get("default", {}).get("aliases", []))
    }
    make_secrets(document, tmp_path, monkeypatch)

    found = [file.read_text() for file in tmp_path.rglob("*_url")]
    named = set(itertools.chain(*map(partial(re.findall, r"@([\w-]+)|also=([\w,-]+)"), found)))
    for host, more in named:
        assert {host, *more.split(",")} - {""} <= hosts
    folders = {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("*")} - {"nodes"}
    volumes = {target for _, target, _ in mounts(document["services"]["init"])}
    assert {f"/secrets/{folder}" for folder in folders} == {v for v in volumes if "secrets" in v}


@BOTH
def test_prometheus_scrapes_hosts_that_there_are(document: Document) -> None:
    scraped = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())["scrape_configs"]
    names = {name for job in scraped for c in job["dns_sd_configs"] for name in c["names"]}

    assert names <= document["services"].keys()


def test_a_node_of_the_cluster_is_named_as_the_others_look_for_it() -> None:
    conf = (ROOT / "deploy/rabbitmq-cluster.conf").read_text()
    nodes = re.findall(r"^cluster_formation\.classic_config\.nodes\.\d = rabbit@(.*)$", conf, re.M)

    hosts = [s for s in CLUSTER["services"].values() if "/rabbitmq:" in s["image"]]
    assert sorted(nodes) == sorted(host["hostname"] for host in hosts)
    for host in hosts:
        assert host["hostname"] in host["networks"]["default"]["aliases"]


@BOTH
def test_names_are_sealed_if_it_says_so_and_all_have_one_key(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the containers are started with `PERSONAL=sealed`; but the key store is a file here."""
    folder = tmp_path / "secrets"
    bootstrap.bootstrap(
        folder, choreography(), brokers=["rabbitmq"], database_host="postgres", outsides=()
    )
    role = (folder / "postgres" / "roles" / bootstrap.PERSONS).read_text()
    store = f"postgresql://{bootstrap.PERSONS}:{role}@postgres/{bootstrap.PERSONS}"
    here = {"PERSONS_DATABASE_URL": f"sqlite:///{tmp_path / 'persons.db'}"}
    texts = set()
    for name, service in ours(document).items():
        if name == "init":
            continue
        (secrets,) = [s for s, target, _ in mounts(service) if target == "/run/secrets"]
        own = folder / secrets.removesuffix("-secrets")
        with mock.patch.dict(os.environ, interpolated(service, own, PERSONAL="sealed"), clear=True):
            if "DATA_DIR" in os.environ:  # A command of operators.
                settings = Deployment.load(own).personal_settings()
            else:
                settings = load(PersonalSettings)
            assert settings.personal is Sealing.SEALED, name
            assert settings.persons_database_url == store, name
            with closing(open_store(settings.model_copy(update=lowered(here)))) as keys:
                texts.add(keys.seal("Ada"))
        with mock.patch.dict(os.environ, interpolated(service, own), clear=True):
            assert load(PersonalSettings).personal is Sealing.OFF, name
    assert len(texts) == 1


def lowered(variables: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in variables.items()}


def interpolated(service: Document, secrets: Path, **given: str) -> dict[str, str]:
    """A container's environment, as compose makes it of its own, with its secrets where they
    are."""

    def value(found: re.Match[str]) -> str:
        return given.get(found["name"]) or found["otherwise"]

    return {
        name: re.sub(r"\$\{(?P<name>\w+):-(?P<otherwise>[^}]*)\}", value, str(text)).replace(
            "/run/secrets", str(secrets)
        )
        for name, text in service.get("environment", {}).items()
    }


# --- HTTPS ----------------------------------------------------------------------------------------


def settings_of(service: Document, own: Path) -> HttpSettings:
    """As its container has them, whose folder of secrets is `own` here."""
    for pointer in (own / bootstrap.HTTP_CERT, own / bootstrap.HTTP_KEY):
        if pointer.exists():
            said = pointer.read_text().replace("/run/secrets", str(own))
            pointer.unlink()
            pointer.write_text(said)
    environment = interpolated(service, own)
    with mock.patch.dict(os.environ, environment, clear=True):
        return load(HttpSettings)


def shake_hands(serving: ssl.SSLContext, trusting: ssl.SSLContext, name: str) -> None:
    """Raises `ssl.SSLError` where the client does not trust the server to be this one."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(3):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert client.version() == "TLSv1.3"


SERVERS = {"exporter", "console"}
SECURED_ONES = pytest.mark.parametrize(
    "document", [SECURED, SECURED_CLUSTER], ids=["single", "cluster"]
)


@SECURED_ONES
def test_every_server_of_ours_speaks_https_and_all_who_ask_it_trust_it(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secrets(document, tmp_path, monkeypatch)
    operators = tmp_path / bootstrap.OPERATORS_FOLDER
    known = Deployment.load(operators)
    trusting = trusted()
    addresses = {urlsplit(url).hostname for urls in known.http_urls.values() for url in urls}
    assert {url[:6] for urls in known.http_urls.values() for url in urls} == {"https:"}
    servers = {name: s for name, s in ours(document).items() if name in {*SERVERS, *addresses}}
    assert servers.keys() == SERVERS | reacting(document).keys()

    with (tmp_path / bootstrap.PROMETHEUS_FOLDER / "ca.pem").open() as file:
        of_prometheus = ssl.create_default_context(cadata=file.read())
    for name, service in servers.items():
        (secrets,) = [s for s, target, _ in mounts(service) if target == "/run/secrets"]
        serving = context_of(settings_of(service, tmp_path / secrets.removesuffix("-secrets")))
        assert serving is not None, name
        for host in (name, "localhost", "127.0.0.1"):
            shake_hands(serving, trusting, host)
        shake_hands(serving, of_prometheus, scraping()["saga"]["tls_config"]["server_name"])
        with pytest.raises(ssl.SSLError, match="Hostname mismatch"):
            shake_hands(serving, trusting, "elsewhere")


def scraping() -> dict[str, Document]:
    """The jobs of Prometheus, as its container has them, by name."""
    found = mounts(SECURED["services"]["prometheus"])
    (file,) = [source for source, at, _ in found if at == "/etc/prometheus/prometheus.yml"]
    jobs = yaml.safe_load((ROOT / file).read_text())["scrape_configs"]
    return {job["job_name"]: job for job in jobs}


def test_prometheus_scrapes_all_of_ours_over_https_and_as_before(tmp_path: Path) -> None:
    before = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())["scrape_configs"]
    for job in before:
        secured = scraping()[job["job_name"]]
        is_ours = "rabbitmq" not in job["job_name"]
        assert (secured.get("scheme") == "https") == is_ours
        assert ("ca_file" in secured.get("tls_config", {})) == is_ours
        assert {name: secured[name] for name in job} == job

    authority = tmp_path / "ca.pem"
    authority.write_text(pem(Authority.made("a test", utc_now()).certificate))
    text = (ROOT / "monitoring/prometheus.tls.yml").read_text()
    assert "/run/secrets/ca.pem" in text
    config = tmp_path / "prometheus.yml"
    text = text.replace("/run/secrets/ca.pem", str(authority))
    config.write_text(text.replace("rules/*.yml", str(ROOT / "monitoring/rules/*.yml")))
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed: run `make setup`"
    done = subprocess.run(
        [program, "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_containers_health_is_checked_over_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secrets(SECURED, tmp_path, monkeypatch)
    for name, own in (("order", "order"), ("console", "operator")):
        service = SECURED["services"][name]
        settings = settings_of(service, tmp_path / own)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        context = context_of(settings)
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            environment = interpolated(service, tmp_path / own)
            with mock.patch.dict(os.environ, environment, clear=True):
                assert await asyncio.to_thread(healthcheck.ready, port, "/readyz"), name


def test_certificates_stay_until_they_end_and_plain_http_comes_back_without_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> dict[str, str]:
        files = [*tmp_path.rglob("*.pem")]
        return {str(file): file.read_text() for file in files}

    make_secrets(SECURED, tmp_path, monkeypatch)
    first = made()
    make_secrets(SECURED, tmp_path, monkeypatch)
    assert made() == first

    later = utc_now() + VALID - timedelta(days=20)
    monkeypatch.setattr(bootstrap, "utc_now", lambda: later)
    make_secrets(SECURED, tmp_path, monkeypatch)
    renewed = {Path(name).name for name, text in made().items() if first[name] != text}
    assert renewed == {"http-cert.pem", "http-key.pem"}

    make_secrets(SINGLE, tmp_path, monkeypatch)
    assert not [*tmp_path.rglob("http_cert_file")]
    urls = Deployment.load(tmp_path / "operator").http_urls
    assert {url[:5] for each in urls.values() for url in each} == {"http:"}


def test_the_key_of_the_authority_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_secrets(SECURED, tmp_path, monkeypatch)
    (key,) = tmp_path.rglob(bootstrap.AUTHORITYS_KEY)
    assert (key.parent.name, key.stat().st_mode & 0o777) == ("authority", 0o400)
    mounted = {
        name
        for name, service in SECURED["services"].items()
        for source, _, _ in mounts(service)
        if source == "authority-secrets"
    }
    assert mounted == {"init"}


def test_a_project_begins_with_the_same_file_for_https() -> None:
    begun = ROOT / "saga/generate/project/compose.tls.yaml"
    assert begun.read_text() == (ROOT / "compose.tls.yaml").read_text()
