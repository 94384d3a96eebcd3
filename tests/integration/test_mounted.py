"""What operators type into the container `saga` of compose.yaml, with its folders as it has them.

The command runs as the image's user and without any right, in a root of its own, in which the
volumes are mounted where compose.yaml says, writable or not. So it fails where it would in a
container. That takes root; databases are files here, and the broker is on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from inventory_service.domain import AddStock
from saga.auth.keys import read_keys
from saga.bootstrap import OPERATORS_FOLDER, PERSONAL_KEY
from saga.deployment import FILE_NAME
from saga.discovery import choreography
from saga.personal.opening import open_store
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import apply, topology_of
from saga.runtime.settings import PersonalSettings, Sealing
from tests.books import Books
from tests.order_play import Play
from tests.unit.test_compose import ROOT, SINGLE, interpolated, mounts

USER: Final = 10001
"""Of the image."""
NAME: Final = "Zebedee Quigley"
INTO_ROOT: Final = """
set -e
new=/mnt
mount -t tmpfs -o mode=0755 none $new
for each in /*; do
    case $each in
        /mnt|/root|/run|/proc) continue ;;
    esac
    if [ -L $each ]; then cp -P $each $new$each
    elif [ -d $each ]; then mkdir $new$each; mount --rbind $each $new$each
    fi
done
mkdir $new/proc; mount --rbind /proc $new/proc
for each in $THERE; do
    if [ ! -e $new$each ]; then mkdir -p $new$each; mount --rbind $each $new$each; fi
done
for each in $MOUNTED; do
    from=${each%%:*}; rest=${each#*:}; at=$new${rest%%:*}
    mkdir -p $at; mount --bind $from $at
    case $rest in *:ro) mount -o remount,ro,bind $at ;; esac
done
exec chroot $new setpriv $AS --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""


def _may_mount() -> bool:
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "chroot"))):
        return False
    trial = ["unshare", "--mount", "--propagation=private", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _may_mount(), reason="mounting takes root")


@dataclass
class Volumes:
    """The volumes of compose.yaml, as folders; made as an engine makes them."""

    folder: Path

    def __post_init__(self) -> None:
        for name in SINGLE["volumes"]:
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o755)
        for name in ("audit", "provider", "mail"):  # The image has their folders.
            os.chown(self.folder / name, USER, USER)

    @property
    def operators(self) -> Path:
        return self.folder / f"{OPERATORS_FOLDER}-secrets"

    def run(
        self, container: str, *command: str, given: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What a command in a container says, and how it ends."""
        service = SINGLE["services"][container]
        mounted = [
            ":".join(filter(None, (str(self.folder / source), target, options)))
            for source, target, options in mounts(service)
        ]
        user = service.get("user", f"{USER}:{USER}")
        variables = interpolated(service, Path("/run/secrets"), PERSONAL="sealed") | environment
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables |= {"PATH": path, "SAGA": "order_saga:SAGA", "PYTHONDONTWRITEBYTECODE": "1"}
        names = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation=private", "sh", "-c", INTO_ROOT, "sh"),
                *("env", "-i", "-C", str(ROOT), *names, *command),
            ],
            env={
                "PATH": os.environ["PATH"],
                "THERE": " ".join({sys.base_prefix, sys.prefix, str(ROOT)}),
                "MOUNTED": " ".join(mounted),
                "AS": "--reuid={} --regid={} --clear-groups".format(*user.split(":")),
            },
            umask=0o022,  # A container's, whatever commands have made of that of the tests.
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )

    def init(self) -> None:
        """What `init` does at each start."""
        service = SINGLE["services"]["init"]
        _, *arguments = service["command"]
        done = self.run("init", sys.executable, *arguments)
        assert done.returncode == 0, done.stderr

    def saga(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """`docker compose --profile tools run --rm saga ...`."""
        return self.run(
            "saga",
            str(Path(sys.executable).with_name("saga")),
            *arguments,
            given=given,
            PERSONAL_CACHE_SECONDS="0.2",
        )

    def settle(self, url: str) -> None:
        """Tell the operators' commands where databases and the broker are here."""
        file = self.operators / FILE_NAME
        known = json.loads(file.read_text())
        known["database_urls"] = {n: f"sqlite:////data/{n}.db" for n in known["database_urls"]}
        known |= {"amqp_url": url, "amqp_urls": {}}
        known["persons_database_url"] = "sqlite:////data/persons.db"
        self.tell(json.dumps(known))

    def tell(self, deployment: str) -> None:
        """Write this into `saga.json`, which is readable as `init` makes it."""
        file = self.operators / FILE_NAME
        file.unlink()
        file.write_text(deployment)
        file.chmod(0o444)

    @property
    def key_store(self) -> PersonalSettings:
        return PersonalSettings(
            personal=Sealing.SEALED,
            personal_key_file=self.operators / PERSONAL_KEY,
            persons_database_url=f"sqlite:///{self.folder / 'provider' / 'persons.db'}",
        )


async def _furnish(volumes: Volumes, url: str) -> None:
    """An order that was confirmed, and a mail about it."""
    async with await connect(url, name="test") as connection:
        await apply(topology_of(choreography()), await connection.channel())
    with closing(open_store(volumes.key_store)) as store:
        customer = store.seal(NAME)
    play = Play(at=utc_now() - timedelta(hours=1), tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"),
    )
    order = play.place(customer=customer)
    play.deliver()
    await Books(volumes.folder / "provider", play).write()
    mails = volumes.folder / "mail" / "mail"
    mails.mkdir()
    (mails / f"order.confirmed.{order}.eml").write_text(f"To: {NAME}\n\nThank you, {NAME}\n")
    for folder in ("mail", "provider"):
        for path in (volumes.folder / folder).rglob("*"):
            os.chown(path, USER, USER)
            path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.fixture(scope="module")
def volumes(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Volumes]:
    with virtual_host() as url:
        made = Volumes(tmp_path_factory.mktemp("volumes"))
        made.init()
        made.settle(url)
        asyncio.run(_furnish(made, url))
        yield made


def test_an_operators_container_changes_api_keys_and_services_know_it_after_the_next_start(
    volumes: Volumes,
) -> None:
    made = volumes.saga("keys", "create", "reception", "--role", "reader", "--json")
    assert made.returncode == 0, made.stderr
    kept = (volumes.operators / FILE_NAME).read_text()
    volumes.init()
    known = read_keys(volumes.folder / "order-secrets" / "api_keys.json")
    assert "reception" in [key.name for key in known]

    revoked = volumes.saga("keys", "revoke", json.loads(made.stdout)["id"])
    assert revoked.returncode == 0, revoked.stderr
    volumes.init()
    known = read_keys(volumes.folder / "order-secrets" / "api_keys.json")
    assert "reception" not in [key.name for key in known]
    volumes.tell(kept)


def test_a_person_is_forgotten_by_the_command_as_it_is_documented(volumes: Volumes) -> None:
    made = volumes.saga("keys", "create", NAME, "--role", "reader")
    assert made.returncode == 0, made.stderr

    done = volumes.saga(
        *shlex.split('forget --reason "asked for on 2030-01-31" --yes --json'), given=f"{NAME}\n"
    )

    assert done.returncode == 1, done.stderr  # The broker's own files are not to be seen.
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["done"], document
    assert document["taken_out"] == {"mail server": 1, "API keys": 1, "provider": 0}
    (left,) = [line for line in document["left"] if "cop" in line]
    assert "the container `init`" in left
    looked = document["looked"][0]
    assert looked["found"] == 0, looked["found_in"]
    unseen = [one["name"] for one in looked["not_looked_at"]]
    assert [name for name in unseen if not name.startswith("the files of the broker")] == []
    mails = (volumes.folder / "mail" / "mail").iterdir()
    assert not any(NAME in mail.read_text() for mail in mails)
    waiting = volumes.saga("forget", "--status")
    assert (waiting.returncode, waiting.stdout) == (0, "no request waits\n")


@pytest.mark.parametrize("command", ["persons list", "persons in-clear", "keys list"])
def test_what_only_looks_needs_nothing_more(volumes: Volumes, command: str) -> None:
    done = volumes.saga(*command.split(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_master_key_is_rotated_as_it_is_documented(volumes: Volumes) -> None:
    with closing(open_store(volumes.key_store)) as store:
        sealed = store.seal("Ada Bleibtreu")
    (script,) = re.findall(r"sh saga -c '(.*)'", (ROOT / "docs/personal-data.md").read_text())
    added = volumes.run("saga", "sh", "-c", script)
    assert added.returncode == 0, added.stderr

    rotated = volumes.saga("persons", "rotate-key", "--json")

    assert rotated.returncode == 0, rotated.stderr
    assert json.loads(rotated.stdout)["wrapped"] >= 1
    with closing(open_store(volumes.key_store)) as store:
        assert store.open(sealed) == "Ada Bleibtreu"


@pytest.mark.parametrize("container", ["console", "exporter", "topology"])
def test_no_other_container_of_operators_changes_their_files(
    volumes: Volumes, container: str
) -> None:
    done = volumes.run(container, "touch", "/run/secrets/new")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
