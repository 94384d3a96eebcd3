"""The secrets of a deployment in containers, made once: who logs in where, and with what.

    python -m saga.bootstrap /secrets --broker rabbitmq --database-host postgres

Every container gets a folder of its own below the given one, as a volume that no other container
has. What is there already stays, so that this may run at each start.

With `--tls`, or `HTTP_TLS=on`, services speak HTTPS: each gets a certificate, and operators and
Prometheus the authority to know them by.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yarl

from saga.auth.keys import changing, new_key, read_keys, write_keys
from saga.auth.scopes import OPERATOR as ROLE
from saga.auth.scopes import ROLES
from saga.auth.settings import KEYS_FILE_NAME
from saga.broker.passwords import PASSWORD_BYTES, new_passwords
from saga.choreography import Choreography
from saga.deployment import (
    FILE_NAME,
    Deployment,
    DeploymentError,
    outside_papers_in,
    outside_urls_in,
)
from saga.discovery import saga
from saga.http import KEY_FILE_NAME
from saga.local.certificates import VALID, Authority, key_pem, pem
from saga.outside import Outside
from saga.personal.masks import Masks
from saga.personal.master import new_master_key
from saga.runtime.files import write_whole
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.definitions import definitions, password_hash, text
from saga.runtime.messaging.permissions import OPERATOR, users_of
from saga.runtime.messaging.topology import Topology
from saga.runtime.urls import without_passwords
from saga.text import harmless

ADMINISTRATOR: Final = "admin"
"""Of the broker: for its management pages."""
OPERATORS_FOLDER: Final = "operator"
OPERATORS_KEY: Final = "operators"
"""The name of the API key that operators' commands send."""
HTTP_PORT: Final = 8000
OUTSIDE_FOLDER: Final = Path("/data")
"""Where the outsides of a sandbox keep their books, as the containers see it."""
PERSONS: Final = "saga_persons"
"""The role and the database of the key store, where messages name people."""
PERSONAL_KEY: Final = "personal_key"
"""Its master key, as `SECRETS_DIR` has it."""
MOUNTED: Final = Path("/run/secrets")
"""Where a container sees its own folder."""
HTTP_CERT: Final = "http_cert_file"
HTTP_KEY: Final = "http_key_file"
"""Settings, as `SECRETS_DIR` has them."""
CERTIFICATE: Final = "http-cert.pem"
CERTIFICATES_KEY: Final = "http-key.pem"
AUTHORITY: Final = "ca.pem"
AUTHORITYS_KEY: Final = "ca-key.pem"
AUTHORITY_FOLDER: Final = "authority"
AUTHORITY_VALID: Final = timedelta(days=3_660)
OPERATORS_SERVERS: Final = ("console", "exporter")
PROMETHEUS_FOLDER: Final = "prometheus"
ANY_SERVER: Final = "any.saga"
"""Stands in all certificates: Prometheus asks replicas by addresses, which stand in none."""
DEAD_LETTERS_URL: Final = "sqlite:////data/dead_letters.db"

# A volume is all that keeps these from others; who reads them in a container is the image's matter.
_READABLE: Final = 0o444
_OWNER_ONLY: Final = 0o400
_ANYBODY: Final = 0o777


def bootstrap(
    folder: Path,
    graph: Choreography,
    *,
    brokers: Sequence[str],
    database_host: str,
    replicas: int = 1,
    cookies: Sequence[Path] = (),
    outsides: Sequence[Outside[Any]] = (),
    host_of: Callable[[str], str] = str,
    tls: bool = False,
) -> None:
    """Make what is missing in `folder`, and a cookie for the nodes of a cluster.

    `brokers` and `database_host` are hosts, with ports if need be, as the containers see them; the
    second and further replicas of a service are at `<service>-2` and so on. `{service}` in
    `database_host` stands for each service's own; `host_of` says at which host a service is.
    """
    marker = folder / OPERATORS_FOLDER / FILE_NAME
    names = [service.name for service in graph.own_services]
    users = users_of(graph)
    persons_url = None
    if marker.exists():
        known = Deployment.load(marker.parent)
        persons_url = known.persons_database_url
        passwords = {user: yarl.URL(url).password or "" for user, url in known.amqp_urls.items()}
        roles = {name: yarl.URL(url).password or "" for name, url in known.database_urls.items()}
    else:
        passwords, roles = {}, {}
    passwords = new_passwords(user.name for user in users) | passwords
    roles = new_passwords(names) | roles
    administrator = _kept(folder / OPERATORS_FOLDER / "rabbitmq-admin-password")

    amqp_urls = {user: _amqp_url(user, password, brokers) for user, password in passwords.items()}
    database_urls = {
        name: f"postgresql://{name}:{password}@{_database_at(database_host, host_of(name))}/{name}"
        for name, password in roles.items()
    }
    for participant in graph.foreign:  # Whose database is its own matter.
        _write(folder / participant.name / "amqp_url", amqp_urls[participant.name])
    for name in names:
        _write(folder / name / "amqp_url", amqp_urls[name])
        _write(folder / name / "database_url", database_urls[name])
        _write(folder / "postgres" / "roles" / name, roles[name])
    if Masks((*graph.recorded, *graph.commands)).names:
        persons_url = _share_key_store(
            folder, names, persons_url, _database_at(database_host, host_of(PERSONS))
        )
    _kept(folder / "postgres" / "superuser")
    _kept(folder / "grafana" / "admin-password")
    document = definitions(Topology(), users, passwords=passwords)
    _add_administrator(document, administrator)
    _write(folder / "rabbitmq" / "definitions.json", text(document))
    cookie = _kept(folder / OPERATORS_FOLDER / "erlang-cookie")
    for node in cookies:
        _write(node / ".erlang.cookie", cookie, _OWNER_ONLY)
    _share_keys(folder, names)
    http_urls = _http_urls(graph, replicas, host_of, "https" if tls else "http")
    if tls:
        hosts = {name: [yarl.URL(url).host or name for url in http_urls[name]] for name in names}
        _certify(folder, hosts, utc_now())
    else:
        for name in names:
            for pointer in (HTTP_CERT, HTTP_KEY):
                (folder / name / pointer).unlink(missing_ok=True)
    deployment = Deployment(
        amqp_url=amqp_urls[OPERATOR],
        amqp_urls=amqp_urls,
        http_urls=http_urls,
        http_ca_file=Path(AUTHORITY) if tls else None,
        database_urls=database_urls,
        persons_database_url=persons_url,
        outside_urls=outside_urls_in(OUTSIDE_FOLDER, outsides),
        outside_papers=_papers_elsewhere(outsides),
        dead_letters_url=DEAD_LETTERS_URL,
        api_keys_file=Path(KEYS_FILE_NAME),
        api_keys_copied=True,
    )
    _write(marker, deployment.model_dump_json(indent=2) + "\n")  # last: it says that all is there


def _share_keys(folder: Path, names: Sequence[str]) -> None:
    """Make the operators' API key, and tell every service whose keys there are: as they stand in
    the operators' folder, so that one which is revoked there is revoked everywhere from the next
    start of this on."""
    own = folder / OPERATORS_FOLDER
    file = own / KEYS_FILE_NAME
    if not (own / KEY_FILE_NAME).exists():
        text, key = new_key(OPERATORS_KEY, ROLES[ROLE], now=utc_now())
        with changing(file) as keys:
            keys.append(key)
        _write(own / KEY_FILE_NAME, text)
    known = read_keys(file)
    for name in (OPERATORS_FOLDER, *names):
        write_keys(folder / name / KEYS_FILE_NAME, known, _READABLE)


def _share_key_store(folder: Path, names: Sequence[str], known: str | None, host: str) -> str:
    """Make the master key for sealing, in the operators' folder, and tell every service; gives
    where the key store is. The operators' file counts: a key that is put into its first line is
    everywhere from the next start of this on."""
    password = (yarl.URL(known).password if known else None) or new_passwords([PERSONS])[PERSONS]
    url = f"postgresql://{PERSONS}:{password}@{host}/{PERSONS}"
    _write(folder / "postgres" / "roles" / PERSONS, password)
    own = folder / OPERATORS_FOLDER / PERSONAL_KEY
    if not own.exists():
        _write(own, new_master_key())
    key = own.read_text(encoding="utf-8")
    for name in names:
        _write(folder / name / PERSONAL_KEY, key)
        _write(folder / name / "persons_database_url", url)
    return url


def _certify(folder: Path, hosts: Mapping[str, Sequence[str]], now: datetime) -> None:
    """Make the certificate of each service, and one for the servers of operators, where there is
    none for their names that lasts; and tell services to serve with it. The authority stays in a
    folder that no container has but who runs this, so that a certificate is renewed under it."""
    authority = _authority(folder / AUTHORITY_FOLDER, now)
    for name in (OPERATORS_FOLDER, PROMETHEUS_FOLDER):
        _write(folder / name / AUTHORITY, pem(authority.certificate))
    for name, known in {**hosts, OPERATORS_FOLDER: OPERATORS_SERVERS}.items():
        names = (*known, ANY_SERVER, "localhost")
        certificate, key = folder / name / CERTIFICATE, folder / name / CERTIFICATES_KEY
        if not (key.exists() and authority.has_issued(certificate, names, now)):
            issued, its_key = authority.issue(names, now)
            _write(key, its_key)
            _write(certificate, issued)
        if name in hosts:
            _write(folder / name / HTTP_KEY, str(MOUNTED / CERTIFICATES_KEY))
            _write(folder / name / HTTP_CERT, str(MOUNTED / CERTIFICATE))


def _authority(own: Path, now: datetime) -> Authority:
    """The one there is, while it lasts longer than a certificate; else a new one."""
    certificate, key = own / AUTHORITY, own / AUTHORITYS_KEY
    if certificate.exists() and key.exists():
        found = Authority.read(certificate.read_bytes(), key.read_bytes())
        if found.certificate.not_valid_after_utc - now > VALID:
            return found
    made = Authority.made(f"{OPERATORS_KEY} of a saga", now, AUTHORITY_VALID)
    _write(key, key_pem(made.key), _OWNER_ONLY)
    _write(certificate, pem(made.certificate))
    return made


def _amqp_url(user: str, password: str, brokers: Sequence[str]) -> str:
    first, *others = brokers
    url = yarl.URL(f"amqp://{first}/").with_user(user).with_password(password)
    return str(url.update_query(also=",".join(others)) if others else url)


def _database_at(host: str, service: str) -> str:
    return host.replace("{service}", service)


def _http_urls(
    graph: Choreography, replicas: int, host_of: Callable[[str], str], scheme: str
) -> dict[str, tuple[str, ...]]:
    def urls(name: str, count: int) -> tuple[str, ...]:
        first = host_of(name)
        further = [f"{first}-{number}" for number in range(2, count + 1)]
        return tuple(f"{scheme}://{host}:{HTTP_PORT}" for host in (first, *further))

    observers = {service.name: urls(service.name, 1) for service in graph.observers}
    return {p.name: urls(p.name, replicas) for p in graph.in_python} | observers


def _papers_elsewhere(outsides: Sequence[Outside[Any]]) -> dict[str, tuple[Path, ...]]:
    """Where outsides keep their papers, as operators' commands see them: those that the environment
    of this names. What is in another container's own data folder, they do not see."""
    found = outside_papers_in(OUTSIDE_FOLDER, outsides)
    return {
        name: paths
        for name, paths in found.items()
        if not any(path.is_relative_to(OUTSIDE_FOLDER) for path in paths)
    }


def let_operators_write(own: Path) -> None:
    """Let a container that has the operators' folder writable change what is in it, whichever
    user it runs as: requests to forget a person wait there, API keys are made and revoked, and a
    master key is rotated."""
    own.chmod(_ANYBODY)
    for lock in own.glob("*.lock"):
        with contextlib.suppress(PermissionError):  # It is theirs.
            lock.chmod(_ANYBODY)


def _add_administrator(document: dict[str, Any], password: str) -> None:
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    document["users"].append(
        {
            "name": ADMINISTRATOR,
            "tags": ["administrator"],
            "password_hash": password_hash(password),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
        }
    )
    document["permissions"].append({"user": ADMINISTRATOR, "vhost": "/", **everything})


def _kept(file: Path) -> str:
    """The secret in a file, which is made if it is not there."""
    if not file.exists():
        _write(file, secrets.token_urlsafe(PASSWORD_BYTES))
    return file.read_text(encoding="utf-8")


def _write(file: Path, content: str, mode: int = _READABLE) -> None:
    """Write a file in one go: a reader finds all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content, mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has a folder for each container")
    parser.add_argument("--broker", action="append", required=True, metavar="HOST")
    parser.add_argument("--database-host", required=True, metavar="HOST")
    parser.add_argument("--replicas", type=int, default=1, help="of each service")
    parser.add_argument(
        "--cookie",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a RabbitMQ node's home, for the cookie of a cluster",
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        default=os.environ.get("HTTP_TLS") == "on",
        help="have services speak HTTPS; HTTP_TLS=on says the same",
    )
    arguments = parser.parse_args()
    try:
        bootstrap(
            arguments.folder,
            saga().choreography,
            brokers=arguments.broker,
            database_host=arguments.database_host,
            replicas=arguments.replicas,
            cookies=arguments.cookie,
            outsides=saga().outside,
            tls=arguments.tls,
        )
        let_operators_write(arguments.folder / OPERATORS_FOLDER)
    except (DeploymentError, OSError, ValueError) as error:  # the last of a host
        sys.exit(f"error: {harmless(without_passwords(str(error)))}")


if __name__ == "__main__":
    main()
