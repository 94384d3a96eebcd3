"""A private RabbitMQ node: its own name, ports, cookie and data folder, on loopback only.

`saga up`, `saga demo` and the tests run on such a node, so that they need no configured broker and
disturb none. Several may run at once, and beside a broker that has the standard ports.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import yarl

from saga.errors import Explained
from saga.local.patience import WAY_OUT, StartDeadline, start_seconds
from saga.local.places import RABBITMQ, RABBITMQ_OF_HOMEBREW, homes, program_folders
from saga.local.server import LOOPBACK, SPEECHLESS_BYTES, PortTaken, PrivateServer, free_ports
from saga.runtime.disk import FREE_MIN_BYTES, lack_of_room, servers_min_bytes
from saga.runtime.files import write_whole
from saga.runtime.messaging.topology import HASH_PLUGIN

STOP_SECONDS: Final = 20.0
"""How long a graceful stop may take before the node is killed."""

DISK_FREE_MIN_BYTES: Final = servers_min_bytes(FREE_MIN_BYTES)
"""Free bytes below which a node takes no messages, unless its settings say otherwise."""
GIST_CHARACTERS: Final = 300
"""How much of the server's own words goes into a message."""

LOG_CLOSED_LOOKS_MAX: Final = 10
"""Looks in a row that find the queues' log closed, beyond which its writer is gone. It is closed
for a moment whenever a full file gives way to the next one, and while the node itself starts the
writer again."""

_POLL_SECONDS: Final = 0.05
_PROBE_SECONDS: Final = 2.0

# The plugins known to listen, with the settings that keep each on loopback and on its own port.
_PLUGIN_LISTENERS: Final[Mapping[str, str]] = {
    "rabbitmq_management": "management.tcp",
    "rabbitmq_prometheus": "prometheus.tcp",
}

_NOT_IN_PATHS: Final = "#'\"`{}\n"
"""RabbitMQ 3.10 starts and says nothing, or stops, in a folder with one of these in its path."""

_LOG_PREFIX: Final = re.compile(r"^\S+ \S+ \[\w+\] (<[\d.]+> )?")

_QUEUES_LOG: Final = re.compile(r"/quorum/[^/]+/[^/]+\.wal$")
"""The write-ahead log that all quorum queues of a node share."""

_COOKIE_FILE: Final = ".erlang.cookie"
_JOINED_FILE: Final = "joined"
"""Says that the node is one of a cluster."""
_ENVIRONMENT_FILE: Final = "environment.json"
"""How other processes' `rabbitmqctl` reaches the node; it also takes the cookie beside it."""


_REMOVE: Final = """
Name = rabbit_misc:r(<<"/">>, queue, <<"NAME">>),
User = <<"saga">>,
Newer = code:ensure_loaded(rabbit_db_queue) =:= {module, rabbit_db_queue},
Found = case Newer of
    true -> case rabbit_db_queue:get_durable(Name) of {ok, One} -> [One]; _ -> [] end;
    false -> mnesia:dirty_read(rabbit_durable_queue, Name)
end,
[case amqqueue:get_type(Queue) of
    rabbit_stream_queue -> catch rabbit_stream_coordinator:delete_stream(Queue, User);
    rabbit_quorum_queue -> catch ra:force_delete_server(quorum_queues, amqqueue:get_pid(Queue));
    _ -> ok
end || Queue <- Found],
[case Newer of
    true -> rabbit_amqqueue:internal_delete(Queue, User);
    false -> rabbit_amqqueue:internal_delete(Name, User)
end || Queue <- Found].
"""
"""Removes a queue's process, if it has one, then its record. (The record's functions moved in
RabbitMQ 3.12.)"""


class NodeError(Explained):
    """A node that cannot be started or asked. The message is one line and says the way out."""


def find_rabbitmq() -> Path:
    """Return the folder of the installed RabbitMQ: `$RABBITMQ_HOME`, else the newest that a package
    manager has put where `saga.local.places` says.

    The wrappers on PATH are no use here: run by root, they switch user and drop the environment.
    Raises NodeError where there is none.
    """
    if home := os.environ.get("RABBITMQ_HOME"):
        if not os.access(Path(home, "sbin", "rabbitmq-server"), os.X_OK):
            raise NodeError(
                f"RABBITMQ_HOME={home} has no sbin/rabbitmq-server: correct or unset it"
            )
        return Path(home)
    found = homes(RABBITMQ, RABBITMQ_OF_HOMEBREW, "sbin/rabbitmq-server")
    if not found:
        raise NodeError(
            "RabbitMQ is not installed: run `make setup`, or set AMQP_URL to a running broker"
        )
    return found[-1]


class RabbitNode(PrivateServer):
    """One node with its data in `folder`, owned by this process and gone when it is.

    The folder keeps its data between runs as long as the node's name stays the same; one node at a
    time may use it. Not thread-safe, except that `ctl` may be called from any thread while the
    node runs. All methods block: call them through `asyncio.to_thread` from a coroutine.
    """

    fault = NodeError

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        plugins: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        peer: RabbitNode | None = None,
    ) -> None:
        """Describe a node; nothing is touched or started yet.

        `name` may be freely chosen, since every node has a name server of its own. `settings` are
        further lines of its `rabbitmq.conf`. With a `peer` it is a node of that one's cluster,
        under another name: it uses the peer's name server, joins at its first start, for which the
        peer must be running, and is to be stopped before the peer.
        """
        super().__init__(folder, "node.lock")
        self._peer = peer
        self.name = f"{name or 'saga'}@localhost"
        self.plugins = (HASH_PLUGIN, *plugins)  # Queues may be divided at any time.
        self._settings = dict(settings or {})
        self._ports: dict[str, int] = {}
        self._environment: dict[str, str] = {}
        self._vm: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._home = Path()
        self._console_path = self.folder / "console.log"
        self._said_before: dict[Path, int] = {}  # how long the logs were before this start

    # --- what others need to know ------------------------------------------------------------

    @property
    def amqp_url(self) -> str:
        """Where clients connect, from the first start on; it stays the same over `kill`.

        As the user RabbitMQ makes itself. With definitions imported at the start there is no such
        user, see `amqp_url_as`.
        """
        return self.amqp_url_as("guest", "guest")

    def amqp_url_as(self, user: str, password: str) -> str:
        """Where clients connect as this user."""
        url = yarl.URL.build(
            scheme="amqp", user=user, password=password, host=LOOPBACK, port=self.port("amqp")
        )
        return f"{url}/"

    @property
    def management_url(self) -> str:
        """Where the HTTP API is; only with the plugin `rabbitmq_management`."""
        return f"http://{LOOPBACK}:{self.port('rabbitmq_management')}"

    @property
    def pid(self) -> int:
        """The process id of the running Erlang VM. Raises NodeError when there is none."""
        if self._vm is None:
            raise NodeError(f"RabbitMQ node {self.name} is not running: start it first")
        return self._vm.pid

    @property
    def running(self) -> bool:
        """Whether the Erlang VM is there (it may still be starting, or hang)."""
        return self._vm is not None and self._vm.poll() is None

    @property
    def log_is_open(self) -> bool:
        """Whether the node has the log of its quorum queues open, as it has from its start on.

        Without it no message is taken or delivered. Looked up from outside, since to ask the node
        takes a second of CPU.
        """
        return self.running and any(map(_QUEUES_LOG.search, _open_files(self.pid)))

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.folder / "rabbit.log"

    @property
    def _name(self) -> str:
        return f"RabbitMQ node {self.name}"

    @property
    def cookie(self) -> str:
        """What nodes of one cluster share, once there is a node. A secret."""
        return (self.folder / _COOKIE_FILE).read_text(encoding="utf-8")

    def port(self, listener: str) -> int:
        """Return the port of `amqp`, `dist`, `epmd`, or of a plugin by its name."""
        try:
            return self._ports[listener]
        except KeyError:
            raise NodeError(
                f"RabbitMQ node {self.name} has no listener {listener!r} yet: start it first, "
                "with the plugin enabled"
            ) from None

    # --- life --------------------------------------------------------------------------------

    def claim(self) -> None:
        """Take the folder, as `start` does: two nodes on the same data would destroy it. For who
        writes into it first; `stop` gives it up.

        Raises NodeError when another has it, or when it cannot be written to, or used by RabbitMQ.
        """
        if odd := sorted(char for char in {*str(self.folder)} if char in _NOT_IN_PATHS):
            raise NodeError(
                f"RabbitMQ cannot work in {self.folder}: its scripts and its configuration do not "
                f"take {' '.join(map(repr, odd))} in a name; name another folder"
            )
        try:
            self._guard.claim()
        except BlockingIOError:
            raise NodeError(
                f"another RabbitMQ node uses the folder {self.folder}: stop it, or name another"
            ) from None
        except OSError as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        self._home = find_rabbitmq()
        self.claim()

    @property
    def _has_ports(self) -> bool:
        return bool(self._ports)

    def _choose_ports(self) -> None:
        self._ports = free_ports(["amqp", "dist", "epmd", *self._listening_plugins()])

    def _run(self, patience: StartDeadline) -> None:
        if self._peer is not None:
            self._ports["epmd"] = self._peer.port("epmd")
        self._write_configuration(self._home)
        self._start_processes(self._home, patience)
        self._wait_until_ready(patience)
        self._join()

    def _join(self) -> None:
        """Become a node of the peer's cluster, once; what the node holds is dropped then."""
        joined = self.folder / _JOINED_FILE
        if self._peer is None or joined.exists():
            return
        self.ctl("stop_app")
        self.ctl("join_cluster", self._peer.name)
        self.ctl("start_app")
        joined.touch()

    def kill(self) -> None:
        """Kill the Erlang VM with SIGKILL, for fault tests. `start` brings the node back."""
        if self._vm is not None:
            self._kill(self._vm)

    def _kill(self, vm: subprocess.Popen[bytes]) -> None:
        vm.kill()
        vm.wait()
        if self._vm is vm:  # Another thread may have started the next one.
            self._vm = None

    def settle(self) -> None:
        """Make the queues that exist now safe from `kill`.

        RabbitMQ registers a new quorum queue on disk up to a second late. Killed before that, it
        brings the queue back empty and without a leader: every command on it hangs (3.10).
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def shut_down(self) -> None:
        """Stop the Erlang VM gracefully, or kill it after `STOP_SECONDS`. `start` brings the node
        back as it was, which another thread may do as soon as it is not `running`."""
        if (vm := self._vm) is not None:
            vm.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                vm.wait(STOP_SECONDS)
            self._kill(vm)

    def stop(self) -> None:
        """Stop the node gracefully, or kill it after `STOP_SECONDS`; no process is left behind.

        Does nothing when the node was never started.
        """
        self.shut_down()
        self._end_processes()
        self._guard.dismiss()

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against this node and return what it printed.

        Also reaches a node in this folder that another process started. Takes about a second of
        CPU. Raises NodeError with its last word when it fails.
        """
        command = arguments[0] if arguments else ""
        if not self._environment:
            self._environment = self._environment_of_other_process()
        seconds = start_seconds()
        try:
            done = subprocess.run(
                [find_rabbitmq() / "sbin" / "rabbitmqctl", "--quiet", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NodeError(
                f"rabbitmqctl {command}: no answer from {self.name} within {seconds:g} s "
                f"(log: {self.log_path}); {WAY_OUT}"
            ) from None
        if done.returncode:
            words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise NodeError(
                f"rabbitmqctl {command} on {self.name} failed: "
                f"{words[0] if words else f'exit status {done.returncode}'}"
            )
        return done.stdout

    def remove_queue(self, name: str) -> None:
        """Remove a queue or stream, with all it holds, in whatever state it is.

        `rabbitmqctl delete_queue` asks the queue's own process, which a damaged one does not have
        (RabbitMQ 3.10). Raises NodeError.
        """
        self.ctl("eval", _REMOVE.replace("NAME", name))

    # --- files -------------------------------------------------------------------------------

    def _environment_of_other_process(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(
                (self.folder / _ENVIRONMENT_FILE).read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            raise NodeError(
                f"no RabbitMQ node runs in {self.folder}: start it first, or name its folder"
            ) from error
        return found

    def _listening_plugins(self) -> list[str]:
        return [plugin for plugin in self.plugins if plugin in _PLUGIN_LISTENERS]

    def _write_configuration(self, home: Path) -> None:
        settings = {
            # Replaces the default listener, which would take every interface.
            "listeners.tcp.default": f"{LOOPBACK}:{self._ports['amqp']}",
            "log.file.level": "info",
            # Absolute and small: a private node on a nearly full disk is still of use. The limit
            # relative to memory (the default in some packages' templates) would block it.
            "disk_free_limit.absolute": str(DISK_FREE_MIN_BYTES),
            "vm_memory_high_watermark.relative": "0.4",
            # The default write-ahead log of quorum queues grows to 512 MiB, in memory as well.
            "raft.wal_max_size_bytes": "67108864",
            **self._settings,
        }
        for plugin in self._listening_plugins():
            prefix = _PLUGIN_LISTENERS[plugin]
            settings[f"{prefix}.ip"] = LOOPBACK
            settings[f"{prefix}.port"] = str(self._ports[plugin])
        lines = (f"{name} = {value}\n" for name, value in settings.items())
        self._write("rabbitmq.conf", "".join(lines))
        self._write("enabled_plugins", f"[{','.join(self.plugins)}].\n")
        self._write("advanced.config", "[].\n")

        # One name is enough for a node on its own. Without this, Erlang asks the system through
        # helper processes, which depend on the machine's name service and outlive a killed VM.
        self._write(
            "inetrc",
            '{lookup, [file]}.\n{hosts_file, ""}.\n{host, {127,0,0,1}, ["localhost"]}.\n',
        )

        cookie = self.folder / _COOKIE_FILE
        if not cookie.exists():
            # A user who reads the cookie may run code in the node, so no other user ever may.
            write_whole(cookie, self._peer.cookie if self._peer else secrets.token_hex(20), 0o400)

        on_loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        # Made from nothing: a RABBITMQ_* or ERL_* variable of the caller's is about another node.
        self._environment = {
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(program_folders()),
            # The dump of a VM that ends on a full disk would take the room that its start needs.
            "ERL_CRASH_DUMP_SECONDS": "0",
            # A name server of its own: it neither depends on the system's nor leaves one behind.
            "ERL_EPMD_PORT": str(self._ports["epmd"]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_INETRC": str(self.folder / "inetrc"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            # The start script becomes the VM (no shell in between that would outlive a SIGKILL of
            # the VM, and its process id is the VM's); -noinput is what the script then leaves out.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,  # the system's settings are for its own node
            "RABBITMQ_CTL_ERL_ARGS": on_loopback,
            "RABBITMQ_DIST_PORT": str(self._ports["dist"]),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "feature_flags"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_LOGS": str(self.log_path),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder),
            "RABBITMQ_MNESIA_DIR": str(self.folder / "data"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_PID_FILE": str(self.folder / "rabbit.pid"),
            # The services share the cores with the node, so its schedulers are not pinned to them.
            # (RabbitMQ has the schedulers' busy waiting off already.)
            "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-noinput +B i {on_loopback}",
        }
        self._write(_ENVIRONMENT_FILE, json.dumps(self._environment, indent=2))

    def _write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, text)

    # --- processes ---------------------------------------------------------------------------

    def _start_processes(self, home: Path, patience: StartDeadline) -> None:
        if self._peer is None and (self._epmd is None or self._epmd.poll() is not None):
            self._epmd = self._spawn(
                [self._program("epmd"), "-address", LOOPBACK, "-port", str(self._ports["epmd"])]
            )
            # The VM would start a name server as a daemon if it found none.
            self._wait_for_epmd(self._epmd, patience)
        self._said_before = {path: _size(path) for path in (self.log_path, self._console_path)}
        self._vm = self._spawn([str(home / "sbin" / "rabbitmq-server")])

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self._environment["PATH"])
        if found is None:
            raise NodeError(f"{name} (Erlang) is not installed: run `make setup`, or set AMQP_URL")
        return found

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._console_path.open("ab") as console:
            return subprocess.Popen(
                command,
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # Dies with the guard, and is out of reach of the terminal's Ctrl-C, so that its
                # owner can stop the services first.
                process_group=self._guard.pid,
            )

    def _wait_for_epmd(self, epmd: subprocess.Popen[bytes], patience: StartDeadline) -> None:
        while not _accepts(self._ports["epmd"]):
            if epmd.poll() is not None:
                raise PortTaken(
                    f"RabbitMQ node {self.name}: epmd cannot listen on port {self._ports['epmd']}: "
                    "start it again"
                )
            if patience.is_over:
                raise NodeError(patience.lost_with(f"RabbitMQ node {self.name}", "epmd is silent"))
            time.sleep(_POLL_SECONDS)

    def _wait_until_ready(self, patience: StartDeadline) -> None:
        assert self._vm is not None  # noqa: S101 - for the type checker; started just before
        while True:
            if self._vm.poll() is not None:
                gist = self._gist()
                self._vm = None
                taken = "eaddrinuse" in gist or "in use" in gist
                raise (PortTaken if taken else NodeError)(
                    f"RabbitMQ node {self.name} ended while starting: {gist} (log: {self.log_path})"
                )
            if _greets(self._ports["amqp"]) and all(
                _accepts(self._ports[plugin]) for plugin in self._listening_plugins()
            ):
                return
            if patience.is_over:
                said = f"{self._gist()} (log: {self.log_path})"
                self.kill()
                raise NodeError(patience.lost_with(f"RabbitMQ node {self.name}", said))
            time.sleep(_POLL_SECONDS)

    def _end_processes(self) -> None:
        """Let the guard end what is left of the node, and wait until it is gone."""
        self._guard.end_group()
        for process in (self._epmd, self._vm):
            if process is not None:
                process.wait()
        self._epmd = self._vm = None

    def _gist(self) -> str:
        """Return, on one line, what the node said about its trouble since this start. On a full
        disk it can say nothing."""
        if lack := lack_of_room(self.folder, SPEECHLESS_BYTES, 1):
            return f"no room left: {lack}"
        for path, offset in self._said_before.items():
            lines = [_LOG_PREFIX.sub("", line).strip() for line in _tail(path, offset)]
            if "BOOT FAILED" in lines:
                rest = lines[lines.index("BOOT FAILED") + 1 :]
                block = itertools.takewhile(bool, itertools.dropwhile(_is_ruler, rest))
                return " ".join(" ".join(block).split())[:GIST_CHARACTERS]
        for path, offset in self._said_before.items():
            for line in reversed(_tail(path, offset)):
                text = _LOG_PREFIX.sub("", line).strip()
                if text and ("[error]" in line or path == self._console_path):
                    return " ".join(text.split())[:GIST_CHARACTERS]
        return "it said nothing"


class Logging(Protocol):
    """What a `LogWatch` needs of a node that runs."""

    @property
    def pid(self) -> int: ...
    @property
    def log_is_open(self) -> bool: ...


class LogWatch:
    """Finds out that the writer of a node's log is gone, by looking again and again.

    It ends when the disk takes no more, if only for a moment, and RabbitMQ 3.10 and 4.0 do not
    start it again (measured). A process in which it was never seen is not judged.
    """

    def __init__(self, node: Logging) -> None:
        self._node = node
        self._seen_in: int | None = None
        """The process that had the log open last."""
        self._closed_looks = 0

    def writer_is_gone(self) -> bool:
        """Look once, while the node runs; true until it is another process."""
        if self._node.log_is_open:
            self._seen_in = self._node.pid
            self._closed_looks = 0
        elif self._seen_in == self._node.pid:
            self._closed_looks += 1
        else:
            self._closed_looks = 0
        return self._closed_looks > LOG_CLOSED_LOOKS_MAX


def _is_ruler(line: str) -> bool:
    return set(line) <= {"="}


def _open_files(pid: int) -> Iterator[str]:
    """What a process has open; nothing where that is not to be seen."""
    folder = Path("/proc", str(pid), "fd")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):  # It was closed just now.
                yield os.readlink(folder / name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, offset: int) -> list[str]:
    """Return the lines after the offset, the last 64 KiB at most."""
    try:
        with path.open("rb") as file:
            file.seek(max(offset, _size(path) - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _accepts(port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _greets(port: int) -> bool:
    """Whether an AMQP 0-9-1 server answers a client's first bytes with `connection.start`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_PROBE_SECONDS) as connection:
            connection.settimeout(_PROBE_SECONDS)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
