"""Everything on one machine: a broker, the topology on it, and each participant as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

import httpx
from aio_pika.abc import AbstractChannel
from pydantic_settings import BaseSettings

from saga.auth.access import is_open
from saga.auth.settings import AuthSettings
from saga.broker.claim import Claim
from saga.broker.passwords import new_passwords
from saga.broker.setup import NODE_FOLDER, USERS_FILE, mend_topology, write_users
from saga.deployment import (
    FILE_NAME,
    Deployment,
    dead_letters_url_in,
    outside_papers_in,
    outside_urls_in,
)
from saga.discovery import choreography, saga, services
from saga.dlq import DlqError
from saga.foreign import foreign_in
from saga.history import HistoryError
from saga.http import client
from saga.local import SystemFault
from saga.local.folder import (
    CLUSTER_FOLDER,
    broker_identity,
    check_broker,
    check_broker_is_unused,
    check_database,
    is_used,
    make_folder,
    note_broker,
)
from saga.local.guard import Guard
from saga.local.keeping import POLL_SECONDS, Keeper, keep_claim, renew_broker
from saga.local.node import NodeError, RabbitNode
from saga.local.patience import StartDeadline, start_seconds
from saga.local.postgres import PostgresCluster
from saga.local.processes import (
    LAST_WORDS_CHARACTERS,
    ServiceProcess,
    Spawn,
    start_program,
    start_python,
)
from saga.local.server import LOOPBACK, PORT_ATTEMPTS, free_ports
from saga.local.supervision import Supervised, Supervision
from saga.notes import forget_owed, known_partitions, note_owed, note_partitions, owed
from saga.personal.opening import KEY_FILE, made_key, store_url
from saga.recovery import RecoveryError
from saga.recovery.broker import recover
from saga.runtime.disk import INODES_MIN, SERVERS_SHARE, lack_of_room, servers_min_bytes
from saga.runtime.files import allow_open_files
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.permissions import OPERATOR, users_of
from saga.runtime.messaging.topology import TopologyError, queues_of
from saga.runtime.settings import (
    ClientTlsSettings,
    HttpSettings,
    PersonalSettings,
    Sealing,
    Settings,
    TlsSettings,
    load,
)
from saga.runtime.tasks import cancel_all
from saga.runtime.urls import sqlite_url

Database = Literal["sqlite", "postgresql"]
"""Where the services keep their states: in a file each, which allows of one replica, or in a
database each on a private server, which replicas share."""

KILL_GRACE_SECONDS: Final = 5.0
"""What a stopping service gets on top of its own drain, before it is killed."""
_ASK_SECONDS: Final = 5.0
OPEN_FILES_MIN: Final = 1_024
"""Of each process: RabbitMQ opens a few for each queue, and keeps some back."""
_PORT_IN_USE: Final = "cannot listen on"

# About one service, so never handed on to several.
S = TypeVar("S", bound=BaseSettings)

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


class System:
    """A whole system in one folder, owned by this process and gone when it is.

    async with System(folder) as system:
        system.deployment.http_urls["trip"][0]
        system.kill("trip")
        await system.start("trip")

    Services are named as their participants are, and their further replicas `trip-2`, `trip-3`
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
        """Keyed by service: what Python is to run from the next start on instead of its own
        module."""
        self._processes: dict[str, ServiceProcess] = {}
        self._starts: set[asyncio.Future[object]] = set()
        """Of servers, those that have not ended."""
        self._claim: Claim | None = None
        self._guard = Guard()
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
        """The names of those that serve and have a database here, in order."""
        own = (process for process in self._processes.values() if not process.command)
        return dict.fromkeys(process.participant for process in own)

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
            outside_papers=outside_papers_in(self.folder, saga().outside),
            inbox_days=float(self._environment.get("INBOX_DAYS") or load(Settings).inbox_days),
            dead_letters_url=dead_letters_url_in(self.folder),
            http_ca_file=self._authority(),
            **self._places_of_persons(),
            **self._who_may_ask(),
        )
        self._deployment.save(self.folder)
        await self._put_back()

    def _authority(self) -> Path | None:
        """Whom commands have to trust to ask the services."""
        file = self._environment.get("HTTP_CA_FILE") or load(ClientTlsSettings).http_ca_file
        return None if file is None else Path(file).absolute()

    def _who_may_ask(self) -> dict[str, Any]:
        auth = self._of_services(AuthSettings, data_dir=self.folder)
        http = self._of_services(HttpSettings, http_host=LOOPBACK)
        return {"callers_known": not is_open(http), "api_keys_file": auth.keys_file.absolute()}

    def _places_of_persons(self) -> dict[str, Any]:
        personal = self._of_services(PersonalSettings, data_dir=self.folder)
        if personal.personal is Sealing.OFF:
            return {"personal_shown": personal.personal_shown}
        return {
            "personal_shown": personal.personal_shown,
            "personal": personal.personal,
            "personal_cache_seconds": personal.personal_cache_seconds,
            "persons_database_url": store_url(personal),
            "personal_key_file": None
            if personal.personal_key is not None
            else (personal.personal_key_file or self.folder / KEY_FILE).absolute(),
        }

    def _of_services(self, kind: type[S], **ours: Any) -> S:
        """Settings of the services, by the environment that they get."""
        names = {name: name.upper() for name in kind.model_fields}
        given = {n: text for n, v in names.items() if (text := self._environment.get(v))}
        return load(kind, **given | ours)

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
        supervised = Supervision(
            group=self._guard.pid,
            stop_seconds=self._stop_seconds(),
            services={
                name: Supervised(
                    service=process.participant,
                    pid=process.pid,
                    url=None if process.command else process.url,
                )
                for name, process in self._processes.items()
            },
        )
        keeper = Keeper(
            self.folder,
            supervised,
            lack_of_room=self._lack_of_room,
            report=self._report,
            ends_max=ends_max,
        )
        keeping = [
            keeper.keep_service(name, process, partial(self._spawn, name, process))
            for name, process in self._processes.items()
        ]
        keeping.append(keeper.keep_saved())
        if self.node is not None:
            supervised.servers["the broker"] = Supervised()
            start = partial(self._start_node, self.node)
            keeping.append(keeper.keep_server("the broker", self.node, start))
            keeping.append(self._keep_broker_whole())
            keeping.append(self._renew_broker(self.node))
        if self.cluster is not None:
            supervised.servers["PostgreSQL"] = Supervised()
            start = partial(self._in_thread, self.cluster.start)
            keeping.append(keeper.keep_server("PostgreSQL", self.cluster, start))
        if self._claim is not None:
            keeping.append(keep_claim(self._claim))
        tasks = [asyncio.ensure_future(keep) for keep in keeping]
        try:
            keeper.save()
            await asyncio.gather(*tasks)
        finally:
            await cancel_all(*tasks)
            supervised.forget(self.folder)
        raise AssertionError("what keeps processes running does not end")

    async def _start_node(self, node: RabbitNode) -> None:
        """Start the private node again, with its users."""
        write_users(self.folder, choreography(), self._passwords)
        await self._in_thread(node.start)
        self._restarted.set()

    async def _renew_broker(self, node: RabbitNode) -> NoReturn:
        await renew_broker(
            node,
            partial(self._in_thread, node.shut_down),
            is_starting=lambda: bool(self._starts),
            lack=self._lack_of_room,
            report=self._report,
        )

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

    def _lack_of_room(self) -> str:
        """What the disk lacks for anything to be started; nothing if there is room."""
        return lack_of_room(self.folder, self._room_min_bytes, INODES_MIN // SERVERS_SHARE)

    # --- parts -------------------------------------------------------------------------------

    def _process(self, service: str) -> ServiceProcess:
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
        logs = make_folder(self.folder)
        if lack := self._lack_of_room():
            raise SystemFault(f"nothing can be started: {lack}")
        personal = self._of_services(PersonalSettings, data_dir=self.folder)
        if personal.personal is Sealing.SEALED and not (
            personal.personal_key or personal.personal_key_file
        ):
            made_key(self.folder)
        found = {
            service.name: package
            for package, service in services().items()
            if self._only is None or service.name in self._only
        }
        graph = choreography()
        observers = {observer.name for observer in graph.observers}
        identity = broker_identity(self._amqp_url)
        check_broker(self.folder, identity)
        check_database(self.folder, found, on_server=self.cluster is not None)
        if self.node is None:
            if not self._declared:
                self._claim = Claim(self._broker_url())
                await self._claim.take()
                await self._mend(None)
                await check_broker_is_unused(self._broker_url(), graph, self.folder)
        else:
            self._report("starting a private RabbitMQ node")
            self.node.claim()
            # New ones each time; the node takes them from the file whenever it starts.
            self._passwords = new_passwords(user.name for user in users_of(graph))
            write_users(self.folder, graph, self._passwords)
            await self._in_thread(self.node.start)
            await self._mend(self.node)
        note_broker(self.folder, identity)
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
        secured = self._environment.get("HTTP_CERT_FILE")
        scheme = "https" if secured else load(HttpSettings).http_scheme
        self._processes = {
            replica: ServiceProcess(
                found[name], name, logs / f"{replica}.log", ports[replica], scheme=scheme
            )
            for replica, name in replicas
        }
        for participant in foreign_in(graph.participants):
            name = participant.name
            if participant.command and (self._only is None or name in self._only):
                log = logs / f"{name}.log"
                self._processes[name] = ServiceProcess("", name, log, command=participant.command)
        self._report(f"starting the services {', '.join(self._processes)}")

    async def _mend(self, node: RabbitNode | None) -> None:
        """Create all queues on the broker again, and their partitions, whatever it has lost. What
        they held is owed from then on, until it was put back."""

        def before(what: str) -> None:
            if known:
                note_owed(self.folder, what)

        known = is_used(self.folder)  # Else there was none of it before.
        topology = await mend_topology(
            self._broker_url(),
            choreography(),
            node,
            partitions_min=known_partitions(self.folder) or 1,
            patience_seconds=start_seconds() if node is not None else 0.0,
            before=before,
            report=self._report,
        )
        note_partitions(self.folder, topology.partitions)

    async def _put_back(self) -> None:
        """Put back into queues what their participants are owed, if a note says that it is."""
        why = owed(self.folder)
        if not why:
            return
        if self._only is not None:
            self._report(f"{why}: run `saga recover broker` once all services run")
            return
        self._report(f"{why}; putting back what is owed")
        had = known_partitions(self.folder)
        recovered = await recover(self.deployment, choreography(), partitions=had)
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

    async def _start_service(self, name: str) -> None:
        process = self._process(name)
        if process.command:
            await self._start_program(name, process)
            return
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

    async def _start_program(self, name: str, process: ServiceProcess) -> None:
        """Start a participant in another language; it is ready once it reads all its queues."""
        try:
            self._spawn(name, process)
        except OSError as error:
            raise SystemFault(
                f"cannot start {name} by {' '.join(process.command)!r}: {error}; correct the "
                f"`command` of its declaration, or leave it out and start it yourself"
            ) from error
        graph = choreography()
        (queues,) = (queues_of(p) for p in graph.participants if p.name == process.participant)
        patience = StartDeadline()
        async with await connect(self._broker_url(), name="saga") as connection:
            channel = await connection.channel()
            while unread := [queue for queue in queues if not await _readers(channel, queue)]:
                if not process.running:
                    raise SystemFault(
                        f"{name} ended while starting: {process.last_words()} "
                        f"(log: {process.log_path})"
                    )
                if patience.is_over:
                    detail = f"it does not read {', '.join(unread)} (log: {process.log_path})"
                    raise SystemFault(patience.lost_with(name, detail))
                await asyncio.sleep(POLL_SECONDS)

    def _spawn(self, name: str, process: ServiceProcess) -> None:
        inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
        if process.command:
            process.environment = {
                **inherited,
                **self._environment,
                "AMQP_URL": self._broker_url(process.participant),
                "DATA_DIR": str(self.folder),
            }
            with process.log_path.open("ab") as log:
                process.log_offset = log.tell()
                process.popen = start_program(
                    process.command, process.environment, log, self._guard.pid
                )
            return
        patience = dict.fromkeys(_PATIENCE, f"{start_seconds():g}")
        process.environment = {
            **patience,
            # The broker and PostgreSQL write there; if they end, all services do.
            "DISK_FOLDERS": str(self.folder),
            **inherited,
            **self._environment,
            "AMQP_URL": self._broker_url(process.participant),
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self._database_url(process.participant),
            "HTTP_HOST": LOOPBACK,
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

    async def _wait_until_ready(self, name: str, process: ServiceProcess) -> None:
        patience = StartDeadline()
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
                    said = f"{answer[:LAST_WORDS_CHARACTERS]} (log: {process.log_path})"
                    raise SystemFault(patience.lost_with(f"the {name} service", said))
                await asyncio.sleep(POLL_SECONDS)

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
                await asyncio.sleep(POLL_SECONDS)
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


async def _readers(channel: AbstractChannel, queue: str) -> int:
    """How many there are of a queue."""
    found = await channel.declare_queue(queue, passive=True)
    return found.declaration_result.consumer_count or 0


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
