"""What a system's folder belongs to, for as long as it exists: one broker, one kind of database."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import yarl

from saga.choreography import Choreography
from saga.deployment import Deployment, DeploymentError
from saga.local import SystemFault
from saga.notes import is_being_restored
from saga.runtime.files import write_whole
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.partitions import with_partitions
from saga.runtime.messaging.topology import HISTORY_STREAM, queues_of
from saga.runtime.urls import printable

CLUSTER_FOLDER: Final = "postgresql"
LOGS_FOLDER: Final = "logs"
_BROKER_FILE: Final = "broker"
"""Says which broker's events the databases beside it go with."""
_PRIVATE: Final = "private"


def make_folder(folder: Path) -> Path:
    """Make the folder; return that of the logs in it. Raises `SystemFault`."""
    logs = folder / LOGS_FOLDER
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFault(
            f"cannot write in the data folder {folder}: {error.strerror}; "
            f"make it writable, or name another with --data-dir or DATA_DIR"
        ) from error
    return logs


def is_used(folder: Path) -> bool:
    """Whether a system has run in the folder, with a broker."""
    return (folder / _BROKER_FILE).exists()


def note_broker(folder: Path, identity: str) -> None:
    """From now on the folder belongs to this broker."""
    write_whole(folder / _BROKER_FILE, identity + "\n")


def has_own_broker(folder: Path) -> bool:
    """Whether the broker that the folder belongs to has its files in it."""
    try:
        text = (folder / _BROKER_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return text.strip() == _PRIVATE


def uses_broker(folder: Path, amqp_url: str) -> bool:
    """Whether the system of the folder, one that runs or is stopped, uses the broker at this
    address."""
    identity = broker_identity(amqp_url)
    try:
        text = (folder / _BROKER_FILE).read_text(encoding="utf-8", errors="replace")
        return text.strip() == identity
    except (FileNotFoundError, NotADirectoryError):
        pass
    try:
        return broker_identity(Deployment.load(folder).amqp_url) == identity
    except DeploymentError:
        return False


def broker_identity(amqp_url: str | None) -> str:
    """The broker, for any user; a private one is wherever its folder is."""
    if amqp_url is None:
        return _PRIVATE
    try:
        url = yarl.URL(amqp_url)
    except ValueError:
        return amqp_url  # connecting will say what is wrong with it
    return f"{url.host}:{url.port}{url.raw_path}"


def check_broker(folder: Path, identity: str) -> None:
    """Databases and the events on a broker are about the same sagas, or nothing adds up."""
    try:
        text = (folder / _BROKER_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    other = text.strip()
    if other != identity:
        raise SystemFault(
            f"the data folder {folder} belongs to another broker ({other}); name another "
            f"folder with --data-dir or DATA_DIR, or that broker in AMQP_URL"
            if other != _PRIVATE
            else f"the data folder {folder} belongs to its own private broker; name "
            f"another folder with --data-dir or DATA_DIR, or unset AMQP_URL"
        )


def check_database(folder: Path, participants: Iterable[str], *, on_server: bool) -> None:
    """States that are elsewhere, or not restored yet, would look like none at all."""
    if is_being_restored(folder):
        raise SystemFault(
            f"a restore into the data folder {folder} has not come to its end: run "
            f"`saga restore` again"
        )
    if not on_server:
        strange = folder / CLUSTER_FOLDER
        other = "postgresql" if strange.exists() else None
    else:
        files = [folder / f"{name}.db" for name in participants]
        other = "sqlite" if any(file.exists() for file in files) else None
    if other is not None:
        raise SystemFault(
            f"the data folder {folder} has its states in {other}: choose that database, "
            f"or name another folder with --data-dir or DATA_DIR"
        )


async def check_broker_is_unused(url: str, graph: Choreography, folder: Path) -> None:
    """Refuse a broker on which another system runs, or that has another one's events.

    Raises `SystemFault`. Two systems on one virtual host would take each other's messages, and
    events without the databases that they led to do not add up.
    """
    known = is_used(folder)
    connection = await connect(url, name="saga")
    async with connection:
        channel = await connection.channel()
        read = [
            name
            for p in graph.participants
            for name in await with_partitions(connection, queues_of(p))
        ]
        for name in (*read, HISTORY_STREAM):
            found = (await channel.declare_queue(name, passive=True)).declaration_result
            if found.consumer_count and name in read:
                raise SystemFault(
                    f"the queue {name} at {printable(url)} is being read already: another "
                    f"system runs there; stop it, or name another virtual host in AMQP_URL"
                )
            if found.message_count and not known:
                raise SystemFault(
                    f"the queue {name} at {printable(url)} holds messages of a system whose "
                    f"databases are not in {folder}; name its data folder with --data-dir "
                    f"or DATA_DIR, or another virtual host in AMQP_URL"
                )


def remove_folder(folder: Path) -> None:
    """Delete a disposable system's folder, after its stop."""
    shutil.rmtree(folder, ignore_errors=True)
