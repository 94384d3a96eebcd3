"""Everything on one machine: a broker, the topology on it, and each participant as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, NoReturn, Protocol, Self

import httpx
import yarl

from saga.broker.claim import Claim, ClaimedError
from saga.broker.passwords import new_passwords
from saga.broker.setup import NODE_FOLDER, USERS_FILE, mend_topology, write_users
from saga.choreography import Choreography
from saga.deployment import FILE_NAME, Deployment, dead_letters_url_in, outside_urls_in
from saga.discovery import choreography, saga, services
from saga.dlq import DlqError
from saga.errors import Explained
from saga.history import HistoryError
from saga.http import client
from saga.local.guard import Guard
from saga.local.node import SPEECHLESS_BYTES, LogWatch, NodeError, RabbitNode, free_ports
from saga.local.patience import Patience, start_seconds
from saga.local.postgres import PostgresCluster, PostgresError
from saga.local.supervision import Supervised, Supervision
from saga.notes import forget_owed, is_being_restored, note_owed, owed
from saga.recovery import RecoveryError
from saga.recovery.broker import recover
from saga.runtime.disk import INODES_MIN, SERVERS_SHARE, lack_of_room, servers_min_bytes
from saga.runtime.files import allow_open_files, write_whole
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.messaging.connection import RETRY_SECONDS, BrokerError, connect
from saga.runtime.messaging.permissions import OPERATOR, users_of
from saga.runtime.messaging.topology import HISTORY_STREAM, TopologyError, queues_of
from saga.runtime.settings import Settings, TlsSettings, load
from saga.runtime.tasks import cancel_all
from saga.runtime.urls import printable, sqlite_url

Database = Literal["sqlite", "postgresql"]
"""Where the services keep their states: in a file each, which allows of one replica, or in a
database each on a private server, which replicas share."""

KILL_GRACE_SECONDS: Final = 5.0
"""What a stopping service gets on top of its own drain, before it is killed."""
PORT_ATTEMPTS: Final = 3
"""First starts that may fail because somebody else took a port just after it was found free."""
_ASK_SECONDS: Final = 5.0
OPEN_FILES_MIN: Final = 1_024
"""Of each process: RabbitMQ opens a few for each queue, and keeps some back."""
CLAIM_SECONDS: Final = 60.0
"""How long a broker may take to notice that a connection of ours is lost: several heartbeats."""
_POLL_SECONDS: Final = 0.05
_LOOPBACK: Final = "127.0.0.1"
_LOG_TAIL_BYTES: Final = 65_536
_LAST_WORDS_CHARACTERS: Final = 400
_ROOM_LOOK_SECONDS: Final = 1.0
_BROKER_FILE: Final = "broker"
"""Says which broker's events the databases beside it go with."""
CLUSTER_FOLDER: Final = "postgresql"
_PRIVATE: Final = "private"
_PORT_IN_USE: Final = "cannot listen on"

# About one service, so never handed on to several.
_OURS: Final = (
    "AMQP_CA_FILE",
    "AMQP_CERT_FILE",
    "AMQP_KEY_FILE",
    "AMQP_URL",
    "DATABASE_URL",
    "DATA_DIR",
    "HTTP_HOST",
    "HTTP_PORT",
    "SANDBOX_URL",
)


_MEND_AGAIN_SECONDS: Final = 5.0
_MAY_PASS: Final = (
    BrokerError,
    DatabaseError,
    DlqError,
    HistoryError,
    NodeError,
    RecoveryError,
    TopologyError,
    OSError,
)
"""What may be in the way of a recovery, and may be gone when it is tried again."""

# How long a starting service waits for what starts beside it: as long as we wait for that.
_PATIENCE: Final = ("BROKER_PATIENCE_SECONDS", "DATABASE_PATIENCE_SECONDS")


class SystemFault(Explained):
    """Something of the system cannot run. One line that names it and the way out."""


class Started(Protocol):
    """What a system needs of a process that it has started, as `subprocess.Popen` does it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


Spawn = Callable[[Sequence[str], Mapping[str, str], IO[bytes], int], Started]
"""Starts Python, with these arguments and this environment, in a process group; what it prints goes
into the file."""


def start_python(
    arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], group: int
) -> Started:
    """A `Spawn` of the interpreter that runs us."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=group,
    )


@dataclass(slots=True)
class _Process:
    """A replica of a service: how it is started, and the process while there is one."""

    package: str
    participant: str
    log_path: Path
    port: int = 0
    popen: Started | None = None
    log_offset: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen is not None else None

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether it has ended because it was asked to."""
        return self.popen is not None and self.popen.poll() == 0

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.port}"

    def last_words(self) -> str:
        """Why it ended: the signal that killed it, or what its log since its start says last."""
        status = self.popen.poll() if self.popen is not None else None
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}"
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self.log_offset, size - _LOG_TAIL_BYTES))
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        except OSError:
            lines = []
        said = [_message(line) for line in lines if line]
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        return (errors or said or ["it said nothing"])[-1][:_LAST_WORDS_CHARACTERS]


class System:
    """A whole system in one folder, owned by this process and gone when it is.

    async with System(folder) as system:
        system.deployment.http_urls["order"][0]
        system.kill("order")
        await system.start("order")

    Services are named as their participants are, and their further replicas `order-2`, `order-3`
    and so on. Belongs to one event loop and one task at a time, but for `kill`, which may be called
    whenever that loop is not in `start` or `stop`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        amqp_url: str | None = None,
        database: Database = "sqlite",
        replicas: int = 1,
        only: Collection[str] | None = None,
        disposable: bool = False,
        declared: bool = False,
        environment: Mapping[str, str] | None = None,
        broker_plugins: Sequence[str] = (),
        spawn: Spawn = start_python,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Describe a system; nothing is touched or started yet.

        With `amqp_url` it uses that broker, as that user for all, and does no more there than
        declare the topology; otherwise it has a private node, and on it a user for each service.
        Of the services there are, `only` these are started, or all; the others' messages wait for
        them. There are so many `replicas` of each service; SQLite allows of one (`SystemFault`).
        `declared`: the caller has declared the topology on the broker of `amqp_url`, perhaps that
        of another release; it is neither declared nor checked here.
        `disposable` data is not kept tidy for a next start, which saves seconds at the stop.
        `environment` is added to the services' own. A private node has these `broker_plugins`.
        `spawn` starts each service. `report` is told, a line at a time, what happens.
        """
        if replicas > 1 and database == "sqlite":
            raise SystemFault(
                f"{replicas} replicas cannot share a SQLite file: choose the database postgresql"
            )
        self.folder = folder.resolve()
        self._replicas = replicas
        self._only = only
        self.cluster = (
            PostgresCluster(self.folder / CLUSTER_FOLDER) if database == "postgresql" else None
        )
        """The PostgreSQL server; blocks, and is for others only to kill and to start again."""
        self._environment = dict(environment or {})
        self._room_min_bytes = servers_min_bytes(_disk_free_min_bytes(self._environment))
        """Free bytes of the folder's disk, below which nothing is started."""
        self.node = (
            None if amqp_url else _private_node(self.folder, broker_plugins, self._room_min_bytes)
        )
        self._amqp_url = load(TlsSettings).applied_to(amqp_url) if amqp_url else None
        self._passwords: dict[str, str] = {}
        self._disposable = disposable
        self._declared = declared
        self._spawn_process = spawn
        self._report = report
        self.programs: dict[str, Sequence[str]] = {}
        """By service, what Python is to run from the next start on instead of its own module."""
        self._processes: dict[str, _Process] = {}
        self._starts: set[asyncio.Future[object]] = set()
        """Of servers, those that have not ended."""
        self._claim: Claim | None = None
        self._guard = Guard()
        self._supervised: Supervision
        """While it is watched."""
        self._unsaved = False
        """Whether other commands do not know yet what is supervised."""
        self._deployment: Deployment | None = None
        self._restarted = asyncio.Event()
        """The private node was started again, and was not looked at since."""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # --- what others need to know ------------------------------------------------------------

    @property
    def deployment(self) -> Deployment:
        """The addresses. Raises `SystemFault` before the first start."""
        if self._deployment is None:
            raise SystemFault(f"the system in {self.folder} is not running: start it first")
        return self._deployment

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services and their further replicas, once the system was started."""
        return tuple(self._processes)

    @property
    def _participants(self) -> dict[str, None]:
        """The names of the participants, in order."""
        return dict.fromkeys(process.participant for process in self._processes.values())

    def pid(self, service: str) -> int:
        """The process id of a service; it may have ended. Raises `SystemFault`."""
        popen = self._process(service).popen
        if popen is None:
            raise SystemFault(f"the {service} service was never started")
        return popen.pid

    def alive(self, service: str) -> bool:
        """Whether the service's process runs; it may not be ready yet."""
        return self._process(service).running

    def log_path(self, service: str) -> Path:
        """A service's log; it is appended to at each start."""
        return self._process(service).log_path

    # --- life --------------------------------------------------------------------------------

    async def start(self, *services: str) -> None:
        """Start these services, or without a name everything; return when they are ready.

        What runs already is left alone, and what comes back has its old ports and data. Raises
        `SystemFault`, `NodeError`, `BrokerError` or `TopologyError`; call `stop` then.
        """
        if self._deployment is None:
            await self._prepare()
        wanted = services or self.services
        starts = [
            asyncio.ensure_future(self._start_service(name))
            for name in wanted
            if not self._process(name).running
        ]
        try:
            await asyncio.gather(*starts)
        finally:
            await cancel_all(*starts)  # the others, when one has failed
        self._deployment = Deployment(
            amqp_url=self._broker_url(),
            amqp_urls={user: self._broker_url(user) for user in self._passwords},
            http_urls={
                name: tuple(p.url for p in self._processes.values() if p.participant == name)
                for name in self._participants
            },
            database_urls={name: self._database_url(name) for name in self._participants},
            outside_urls=outside_urls_in(self.folder, saga().outside),
            inbox_days=float(self._environment.get("INBOX_DAYS") or load(Settings).inbox_days),
            dead_letters_url=dead_letters_url_in(self.folder),
        )
        self._deployment.save(self.folder)
        await self._put_back()

    def kill(self, service: str) -> None:
        """Kill a service with SIGKILL; `start` brings it back."""
        process = self._process(service)
        if process.popen is not None:
            process.popen.kill()
            process.popen.wait()

    async def stop(self) -> None:
        """Let the services drain, kill those that do not end, stop the broker and PostgreSQL; no
        process is left.

        May be called again, and after a failed start.
        """
        try:
            await self._stop_services()
        finally:
            try:
                await self._stop_servers()
            finally:
                self._guard.dismiss()
                if self._claim is not None:
                    await self._claim.give_up()
                    self._claim = None
                if self._deployment is not None:
                    (self.folder / FILE_NAME).unlink(missing_ok=True)
                    self._deployment = None

    async def watch(self, *, ends_max: int | None = None) -> NoReturn:
        """Bring back what ends by itself, until cancelled; others go on meanwhile.

        What keeps ending is started again less and less often, and is a problem in `saga status`.
        A service that was asked to stop is started again at once. Raises `ClaimedError` once
        another system has the broker, and `SystemFault` once one process has ended more than
        `ends_max` times within `saga.local.supervision.WINDOW_SECONDS`.
        """
        self._supervised = Supervision(
            group=self._guard.pid,
            stop_seconds=self._stop_seconds(),
            services={
                name: Supervised(service=process.participant, pid=process.pid, url=process.url)
                for name, process in self._processes.items()
            },
        )
        keeping = [self._keep_service(name, ends_max) for name in self._processes]
        keeping.append(self._keep_saved())
        for name, server in (("the broker", self.node), ("PostgreSQL", self.cluster)):
            if server is not None:
                self._supervised.servers[name] = Supervised()
                keeping.append(self._keep_server(name, server, ends_max))
        if self.node is not None:
            keeping.append(self._keep_broker_whole())
            keeping.append(self._renew_broker(self.node))
        if self._claim is not None:
            keeping.append(self._keep_claim(self._claim))
        tasks = [asyncio.ensure_future(keep) for keep in keeping]
        try:
            self._save_supervision()
            await asyncio.gather(*tasks)
        finally:
            await cancel_all(*tasks)
            self._supervised.forget(self.folder)
        raise AssertionError("what keeps processes running does not end")

    async def _keep_service(self, name: str, ends_max: int | None) -> NoReturn:
        process, supervised = self._process(name), self._supervised.services[name]
        while True:
            if process.running:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            supervised.pid = None
            if process.stopped:
                self._report(f"the {name} service was stopped; starting it again")
            else:
                await self._pause(name, supervised, process.last_words(), ends_max)
            try:
                self._spawn(name, process)
            except OSError as error:
                await self._pause(name, supervised, str(error), ends_max)
            else:
                supervised.pid = process.pid
                self._save_supervision()

    async def _keep_server(
        self, name: str, server: RabbitNode | PostgresCluster, ends_max: int | None
    ) -> NoReturn:
        supervised = self._supervised.servers[name]
        last_words = f"log: {server.log_path}"
        while True:
            if server.running:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            await self._pause(name, supervised, last_words, ends_max)
            last_words = f"log: {server.log_path}"
            try:
                if server is self.node:
                    write_users(self.folder, choreography(), self._passwords)
                await self._in_thread(server.start)
            except (NodeError, PostgresError, OSError) as error:
                last_words = str(error)
            else:
                self._save_supervision()
                if server is self.node:
                    self._restarted.set()

    async def _keep_broker_whole(self) -> NoReturn:
        """Each time that the private node was started: make again what it has lost."""
        told = ""
        while True:
            await self._restarted.wait()
            self._restarted.clear()
            try:
                await self._mend(self.node)
                await self._put_back()
            except _MAY_PASS as error:
                if str(error) != told:
                    self._report(f"the broker is not whole, and is looked at again: {error}")
                told = str(error)
                await asyncio.sleep(_MEND_AGAIN_SECONDS)
                self._restarted.set()
            else:
                told = ""

    async def _pause(
        self, name: str, supervised: Supervised, last_words: str, ends_max: int | None
    ) -> None:
        """Count and report that a process has ended, and wait until it may be started again: there
        has to be room for it on the disk."""
        shown = name if supervised.service is None else f"the {name} service"
        lack = self._lack_of_room()
        if lack:
            last_words = f"no room left: {lack}; {last_words}"
        now = time.time()
        seconds = supervised.ended(now, last_words)
        if ends_max is not None and len(supervised.ends) > ends_max:
            raise SystemFault(f"{shown} has ended {len(supervised.ends)} times: {last_words}")
        when = f"in {seconds:g} s" if seconds else "now"
        if lack:
            when = "once there is room"
        self._report(f"{shown} has ended ({last_words}); starting it again {when}")
        supervised.starts_at = now + seconds
        self._save_supervision()
        deadline = time.monotonic() + seconds
        while True:
            if Supervision.hurried(self.folder, name) or time.monotonic() >= deadline:
                break
            await asyncio.sleep(min(seconds, _POLL_SECONDS))
        # What starts on a full disk only ends again, and a broker may lose more by it.
        while True:
            if not self._lack_of_room():
                break
            await asyncio.sleep(_ROOM_LOOK_SECONDS)
        supervised.starts_at = None

    def _lack_of_room(self) -> str:
        """What the disk lacks for anything to be started; nothing if there is room."""
        return lack_of_room(self.folder, self._room_min_bytes, INODES_MIN // SERVERS_SHARE)

    async def _renew_broker(self, node: RabbitNode) -> NoReturn:
        """End a broker that has met a full disk, once there is room, so that it is started again.

        What writes its queues has ended then, and it does not start that by itself: RabbitMQ 4.0
        runs on, and takes and delivers nothing. A disk that was full for a moment, or for its user
        alone (a quota), is not seen as such, but what it has ended is.
        """
        met_by: int | None = None
        """The process that has met one."""
        log = LogWatch(node)
        while True:
            if node.running and not self._starts:
                gone = log.writer_is_gone()
                if lack_of_room(node.folder, SPEECHLESS_BYTES, 1):
                    met_by = node.pid
                elif (gone or node.pid == met_by) and not self._lack_of_room():
                    why = "writes to its queues no more" if gone else "has met a full disk"
                    self._report(f"the broker {why}; starting it again")
                    await self._in_thread(node.shut_down)
            await asyncio.sleep(_ROOM_LOOK_SECONDS)

    def _save_supervision(self) -> None:
        """Tell other commands of the processes. Where the disk takes no more, they read what was
        true before, until it does."""
        try:
            self._supervised.save(self.folder)
        except OSError as error:
            if not self._unsaved:
                self._report(f"other commands see an older state of the processes: {error}")
            self._unsaved = True
        else:
            self._unsaved = False

    async def _keep_saved(self) -> NoReturn:
        """Tell other commands what they could not be told before."""
        while True:
            await asyncio.sleep(_ROOM_LOOK_SECONDS)
            if self._unsaved:
                self._save_supervision()

    async def _keep_claim(self, claim: Claim) -> NoReturn:
        """Take the broker again whenever the connection that holds it is lost.

        Raises `ClaimedError` once another system has it. For a while that may be our own connection
        still, which the broker does not know to be lost.
        """
        lost_at: float | None = None
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if claim.held:
                lost_at = None
                continue
            lost_at = lost_at or time.monotonic()
            try:
                await claim.take()
            except BrokerError as error:
                overdue = time.monotonic() > lost_at + CLAIM_SECONDS
                if isinstance(error, ClaimedError) and overdue:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    # --- parts -------------------------------------------------------------------------------

    def _process(self, service: str) -> _Process:
        try:
            return self._processes[service]
        except KeyError:
            known = ", ".join(self._processes) or "none yet: start the system first"
            raise SystemFault(f"there is no service {service!r} here; there are {known}") from None

    async def _prepare(self) -> None:
        """Folder, guard, broker and topology: what the services need."""
        try:
            allow_open_files(OPEN_FILES_MIN)
        except OSError as error:
            raise SystemFault(str(error)) from error
        logs = self.folder / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemFault(
                f"cannot write in the data folder {self.folder}: {error.strerror}; "
                f"make it writable, or name another with --data-dir or DATA_DIR"
            ) from error
        if lack := self._lack_of_room():
            raise SystemFault(f"nothing can be started: {lack}")
        found = {
            service.name: package
            for package, service in services().items()
            if self._only is None or service.name in self._only
        }
        graph = choreography()
        observers = {observer.name for observer in graph.observers}
        self._check_folder_is_of_this_broker()
        self._check_folder_is_of_this_database(found)
        if self.node is None:
            if not self._declared:
                self._claim = Claim(self._broker_url())
                await self._claim.take()
                await self._mend(None)
                await self._check_broker_is_unused(graph)
        else:
            self._report("starting a private RabbitMQ node")
            self.node.claim()
            # New ones each time; the node takes them from the file whenever it starts.
            self._passwords = new_passwords(user.name for user in users_of(graph))
            write_users(self.folder, graph, self._passwords)
            await self._in_thread(self.node.start)
            await self._mend(self.node)
        write_whole(self.folder / _BROKER_FILE, self._broker_identity() + "\n")
        if self.cluster is not None:
            self._report("starting a private PostgreSQL server")
            await self._in_thread(self.cluster.start)
            for name in found:
                await self._in_thread(partial(self.cluster.create_database, name))
        replicas = [
            (name if number == 1 else f"{name}-{number}", name)
            for name in found
            # One observer is enough: the others would only read the same.
            for number in range(1, (1 if name in observers else self._replicas) + 1)
        ]
        ports = free_ports([replica for replica, _ in replicas])
        self._processes = {
            replica: _Process(found[name], name, logs / f"{replica}.log", ports[replica])
            for replica, name in replicas
        }
        self._report(f"starting the services {', '.join(self._processes)}")

    async def _mend(self, node: RabbitNode | None) -> None:
        """Have the broker hold all queues, whatever it has lost. What they held is owed from then
        on, until it was put back."""

        def before(what: str) -> None:
            if known:
                note_owed(self.folder, what)

        known = (self.folder / _BROKER_FILE).exists()  # Else there was none of it before.
        await mend_topology(
            self._broker_url(),
            choreography(),
            node,
            patience_seconds=start_seconds() if node is not None else 0.0,
            before=before,
            report=self._report,
        )

    async def _put_back(self) -> None:
        """Put back into queues what their participants are owed, if a note says that it is."""
        why = owed(self.folder)
        if not why:
            return
        if self._only is not None:
            self._report(f"{why}: run `saga recover broker` once all services run")
            return
        self._report(f"{why}; putting back what is owed")
        recovered = await recover(self.deployment, choreography())
        forget_owed(self.folder)
        for line in recovered.remarks():
            self._report(line)

    def _broker_url(self, user: str = OPERATOR) -> str:
        if self.node is not None:
            return self.node.amqp_url_as(user, self._passwords[user])
        assert self._amqp_url is not None  # noqa: S101 - there is a node, or there is a URL
        return self._amqp_url

    def _database_url(self, participant: str) -> str:
        if self.cluster is not None:
            return self.cluster.url(participant)
        return self._sqlite_url(participant)

    def _sqlite_url(self, name: str) -> str:
        return sqlite_url(self.folder / f"{name}.db")

    async def _in_thread(self, start: Callable[[], object]) -> None:
        # Shielded: a thread cannot be cancelled, and `stop` has to wait until it is through.
        starting = asyncio.ensure_future(asyncio.to_thread(start))
        self._starts.add(starting)
        starting.add_done_callback(self._starts.discard)
        await asyncio.shield(starting)

    def _broker_identity(self) -> str:
        """The broker, whoever logs in there; a private one is wherever its folder is."""
        if self._amqp_url is None:
            return _PRIVATE
        try:
            url = yarl.URL(self._amqp_url)
        except ValueError:
            return self._amqp_url  # connecting will say what is wrong with it
        return f"{url.host}:{url.port}{url.raw_path}"

    def _check_folder_is_of_this_broker(self) -> None:
        """Databases and the events on a broker are about the same orders, or nothing adds up."""
        try:
            text = (self.folder / _BROKER_FILE).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        other = text.strip()
        if other != self._broker_identity():
            raise SystemFault(
                f"the data folder {self.folder} belongs to another broker ({other}); name another "
                f"folder with --data-dir or DATA_DIR, or that broker in AMQP_URL"
                if other != _PRIVATE
                else f"the data folder {self.folder} belongs to its own private broker; name "
                f"another folder with --data-dir or DATA_DIR, or unset AMQP_URL"
            )

    def _check_folder_is_of_this_database(self, participants: Iterable[str]) -> None:
        """States that are elsewhere, or not restored yet, would look like none at all."""
        if is_being_restored(self.folder):
            raise SystemFault(
                f"a restore into the data folder {self.folder} has not come to its end: run "
                f"`saga restore` again"
            )
        if self.cluster is None:
            strange = self.folder / CLUSTER_FOLDER
            other = "postgresql" if strange.exists() else None
        else:
            files = [self.folder / f"{name}.db" for name in participants]
            other = "sqlite" if any(file.exists() for file in files) else None
        if other is not None:
            raise SystemFault(
                f"the data folder {self.folder} has its orders in {other}: choose that database, "
                f"or name another folder with --data-dir or DATA_DIR"
            )

    async def _check_broker_is_unused(self, graph: Choreography) -> None:
        """Refuse a broker on which another system runs, or that has another one's events.

        Raises `SystemFault`. Two systems on one virtual host would take each other's messages, and
        events without the databases that they led to do not add up.
        """
        url = self._broker_url()
        known = (self.folder / _BROKER_FILE).exists()
        connection = await connect(url, name="saga")
        async with connection:
            channel = await connection.channel()
            read = [name for p in graph.participants for name in queues_of(p)]
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
                        f"databases are not in {self.folder}; name its data folder with --data-dir "
                        f"or DATA_DIR, or another virtual host in AMQP_URL"
                    )

    async def _start_service(self, name: str) -> None:
        process = self._process(name)
        first = not process.environment
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._spawn(name, process)
            try:
                await self._wait_until_ready(name, process)
            except SystemFault:
                taken = process.last_words().startswith(_PORT_IN_USE)
                if not (first and taken) or attempt == PORT_ATTEMPTS:
                    raise
                process.port = free_ports([name])[name]
            else:
                return

    def _spawn(self, name: str, process: _Process) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
        patience = dict.fromkeys(_PATIENCE, f"{start_seconds():g}")
        process.environment = {
            **patience,
            # The broker and PostgreSQL write there, whose ends would be everybody's.
            "DISK_FOLDERS": str(self.folder),
            **inherited,
            **self._environment,
            "AMQP_URL": self._broker_url(process.participant),
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self._database_url(process.participant),
            "HTTP_HOST": _LOOPBACK,
            "HTTP_PORT": str(process.port),
            "SANDBOX_URL": self._sqlite_url("provider"),
        }
        with process.log_path.open("ab") as log:
            process.log_offset = log.tell()
            # Ends with the guard, and is out of reach of the terminal's Ctrl-C: it is for the
            # owner to say when to drain.
            process.popen = self._spawn_process(
                self.programs.get(name, ("-m", f"{process.package}.app")),
                process.environment,
                log,
                self._guard.pid,
            )

    async def _wait_until_ready(self, name: str, process: _Process) -> None:
        patience = Patience()
        answer = "no answer yet"
        async with client(process.url, _ASK_SECONDS) as service:
            while True:
                if not process.running:
                    raise SystemFault(
                        f"the {name} service ended while starting: {process.last_words()} "
                        f"(log: {process.log_path})"
                    )
                with contextlib.suppress(httpx.TransportError):
                    response = await service.get("/readyz")
                    if response.status_code == httpx.codes.OK:
                        return
                    if lack := _only_disk_lacks(response):
                        self._report(f"the {name} service has started, but {lack}")
                        return
                    answer = response.text
                if patience.is_over:
                    said = f"{answer[:_LAST_WORDS_CHARACTERS]} (log: {process.log_path})"
                    raise SystemFault(patience.lost_with(f"the {name} service", said))
                await asyncio.sleep(_POLL_SECONDS)

    def _stop_seconds(self) -> float:
        """How long a service may take to stop."""
        # It waits so long for its consumers, and so long again for what they began.
        return 2 * _drain_seconds(self._environment) + KILL_GRACE_SECONDS

    async def _stop_services(self) -> None:
        running = {name: p.popen for name, p in self._processes.items() if p.popen and p.running}
        for popen in running.values():
            popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds()
        try:
            while any(popen.poll() is None for popen in running.values()):
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            for name, popen in running.items():
                if popen.poll() is None:
                    self._report(f"the {name} service did not end in time and is killed")
                    popen.kill()
                    popen.wait()

    async def _stop_servers(self) -> None:
        # What comes of them is for who started them.
        await asyncio.gather(*self._starts, return_exceptions=True)
        for server in (self.node, self.cluster):
            if server is not None:
                if self._disposable:
                    await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.stop)


def _message(line: str) -> str:
    """What a line of a service's log says, if it is JSON; else the line."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return str(record["message"]) if isinstance(record, dict) and "message" in record else line


def _only_disk_lacks(response: httpx.Response) -> str:
    """What a service says of its disk, if it is ready but for that."""
    try:
        missing = response.json()["missing"]
        return str(missing["disk"]) if {*missing} == {"disk"} else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _private_node(folder: Path, plugins: Sequence[str], free_min_bytes: int) -> RabbitNode:
    users = folder / NODE_FOLDER / USERS_FILE
    return RabbitNode(
        folder / NODE_FOLDER,
        plugins=plugins,
        settings={
            "definitions.import_backend": "local_filesystem",
            "definitions.local.path": str(users),
            "disk_free_limit.absolute": str(free_min_bytes),
        },
    )


def _drain_seconds(environment: Mapping[str, str]) -> float:
    given = environment.get("DRAIN_SECONDS")
    return float(given) if given else load(Settings).drain_seconds


def _disk_free_min_bytes(environment: Mapping[str, str]) -> int:
    given = environment.get("DISK_FREE_MIN_BYTES")
    return int(given) if given else load(Settings).disk_free_min_bytes


def remove_folder(folder: Path) -> None:
    """Delete a disposable system's folder, after its stop."""
    shutil.rmtree(folder, ignore_errors=True)
