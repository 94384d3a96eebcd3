"""A private PostgreSQL cluster: its own port, password and data folder, on loopback only.

`saga demo --database postgresql` and the tests run on such a cluster, so that they need no
configured server and disturb none.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from saga.errors import Explained
from saga.local.patience import WAY_OUT, StartDeadline, start_seconds
from saga.local.places import POSTGRESQL, POSTGRESQL_OF_HOMEBREW, homes, program_folders
from saga.local.server import LOOPBACK, SPEECHLESS_BYTES, PortTaken, PrivateServer, free_ports
from saga.runtime.disk import lack_of_room

STOP_SECONDS: Final = 20.0
"""How long a stop may take before the server is killed."""
CONNECTIONS_MAX: Final = 100

_USER: Final = "saga"
_POLL_SECONDS: Final = 0.02
_GIST_CHARACTERS: Final = 300
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")

_ASK_SECONDS: Final = 10.0
"""How long a program may take that only tells something."""
_BECOME: Final = (
    "import os, sys; _, uid, gid, *command = sys.argv; os.setgroups([]); os.setgid(int(gid)); "
    "os.setuid(int(uid)); os.execv(command[0], command)"
)
"""A program for Python that becomes a command of another user."""
# PostgreSQL refuses to be run by root.
_UNPRIVILEGED_USERS: Final = ("postgres", "nobody")


class PostgresError(Explained):
    """A cluster that cannot be made, started or asked. One line that says the way out."""


def find_postgresql() -> Path:
    """The folder of the installed PostgreSQL: `$POSTGRESQL_HOME`, else the newest that a package
    manager has put where `saga.local.places` says.

    Raises `PostgresError` where there is none.
    """
    if home := os.environ.get("POSTGRESQL_HOME"):
        if not os.access(Path(home, "bin", "initdb"), os.X_OK):
            raise PostgresError(f"POSTGRESQL_HOME={home} has no bin/initdb: correct or unset it")
        return Path(home)
    found = homes(POSTGRESQL, POSTGRESQL_OF_HOMEBREW, "bin/initdb")
    if not found:
        raise PostgresError(
            "PostgreSQL is not installed: run `make setup`, or name its folder in POSTGRESQL_HOME"
        )
    return found[-1]


def find_program(name: str) -> Path:
    """A client program of PostgreSQL, `pg_dump` say: of `$POSTGRESQL_HOME`, else of the newest
    package. Raises `PostgresError` where there is none."""
    if home := os.environ.get("POSTGRESQL_HOME"):
        found = [Path(home, "bin", name)]
    else:
        folders = homes(POSTGRESQL, POSTGRESQL_OF_HOMEBREW, f"bin/{name}")
        found = [folder / "bin" / name for folder in folders]
    for program in reversed(found):
        if os.access(program, os.X_OK):
            return program
    raise PostgresError(
        f"PostgreSQL's {name} is not installed: install the client programs of the server's "
        f"version or a newer one, or name their folder in POSTGRESQL_HOME"
    )


class PostgresCluster(PrivateServer):
    """One server with its data in `folder`, owned by this process and gone when it is.

    The folder keeps its data between runs; one server at a time may use it. Not thread-safe. All
    methods block: call them through `asyncio.to_thread` from a coroutine.
    """

    fault = PostgresError

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Describe a cluster; nothing is touched or started yet.

        Without `durable` it does not wait for the disk: it outlives `kill`, but not a power cut.
        """
        super().__init__(folder, "cluster.lock")
        self.port = 0
        """Where it listens, from the first start on; it stays the same over `kill`."""
        self._durable = durable
        self._data = self.folder / "data"
        self._log_path = self.folder / "postgresql.log"
        self._password = ""
        self._said_before = 0
        self._postmaster: subprocess.Popen[bytes] | None = None

    # --- what others need to know ------------------------------------------------------------

    def url(self, database: str) -> str:
        """Where clients find a database of that name."""
        return f"postgresql://{_USER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The process id of the server's first process. Raises `PostgresError` without one."""
        if self._postmaster is None:
            raise PostgresError(f"PostgreSQL in {self.folder} is not running: start it first")
        return self._postmaster.pid

    @property
    def running(self) -> bool:
        """Whether the server's first process is there (it may still be starting, or hang)."""
        return self._postmaster is not None and self._postmaster.poll() is None

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._log_path

    # --- life --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return "PostgreSQL"

    @property
    def _has_ports(self) -> bool:
        return self.port != 0

    def _choose_ports(self) -> None:
        self.port = free_ports(["postgresql"])["postgresql"]

    def _prepare(self) -> None:
        self._take_folder()
        if not (self._data / "PG_VERSION").exists():
            self._make_cluster()
        self._password = (self.folder / "password").read_text(encoding="utf-8").strip()

    def kill(self) -> None:
        """Kill all of the server's processes with SIGKILL; `start` brings it back."""
        if self._postmaster is None:
            return
        children = _children(self._postmaster.pid)
        self._postmaster.kill()
        self._postmaster.wait()
        self._postmaster = None
        for pid in children:  # Each would notice by itself, but maybe only after another commit.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def restart(self, timeout_seconds: float | None = None) -> None:
        """Stop the server as an administrator does, cutting off its clients, and start it."""
        self._shut_down()
        self.start(timeout_seconds)

    def stop(self) -> None:
        """Stop the server, or kill it after `STOP_SECONDS`; no process is left behind.

        Does nothing when it was never started.
        """
        if self._durable:
            self._shut_down()
        self.kill()
        self._guard.dismiss()

    # --- databases ---------------------------------------------------------------------------

    def create_database(self, name: str) -> str:
        """Create an empty database, unless there is one of that name; return its URL."""
        if not _NAME.fullmatch(name):
            raise PostgresError(f"{name!r} is no name for a database: write it like trip_service")
        # The quickest way, which writes little of it to the log.
        how = [] if self._durable else ["--template=template0", "--strategy=file_copy"]
        try:
            self._program("createdb", *how, name)
        except PostgresError as error:
            if "already exists" not in str(error):
                raise
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, cutting off those who use it."""
        self._program("dropdb", "--force", "--if-exists", name)

    def _program(self, name: str, *arguments: str) -> None:
        options = ["--host", LOOPBACK, "--port", str(self.port), "--username", _USER]
        self._call(
            [str(find_postgresql() / "bin" / name), *options, "--no-password", *arguments],
            {"PGPASSWORD": self._password},
        )

    # --- parts -------------------------------------------------------------------------------

    def _take_folder(self) -> None:
        try:
            self._guard.claim()
        except BlockingIOError:
            raise PostgresError(
                f"another PostgreSQL server uses the folder {self.folder}: stop it, or name another"
            ) from None

    def _make_cluster(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)  # left by a start that was cut short
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_hex(16) + "\n", encoding="utf-8")
        self._data.mkdir(mode=0o700)
        self._give_away(self._data, password)
        self._call(
            [
                *self._as_user(),
                str(find_postgresql() / "bin" / "initdb"),
                f"--pgdata={self._data}",
                f"--username={_USER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
                *([] if self._durable else ["--no-sync"]),
            ]
        )

    def _run(self, patience: StartDeadline) -> None:
        """Start the server once, and wait until it answers."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(CONNECTIONS_MAX),
            "shared_buffers": "32MB",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "log_min_messages": "warning",
        }
        self._said_before = self._log_path.stat().st_size if self._log_path.exists() else 0
        while True:
            with self._log_path.open("ab") as log:
                self._postmaster = subprocess.Popen(
                    [
                        *self._as_user(),
                        str(find_postgresql() / "bin" / "postgres"),
                        "-D",
                        str(self._data),
                        *(f"--{name}={value}" for name, value in settings.items()),
                    ],
                    env=environment_for_programs(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=self._guard.pid,
                )
            while self.running:
                if _answers(self.port):
                    return
                if patience.is_over:
                    said = f"{self._gist()} (log: {self._log_path})"
                    raise PostgresError(patience.lost_with("PostgreSQL", said))
                time.sleep(_POLL_SECONDS)
            gist = self._gist()
            self._postmaster = None
            # Of a server that was killed just before, the last processes may still be there.
            if "still in use" not in gist or patience.is_over:
                kind = PortTaken if "Address already in use" in gist else PostgresError
                raise kind(f"PostgreSQL ended while starting: {gist} (log: {self._log_path})")
            time.sleep(_POLL_SECONDS)

    def _shut_down(self) -> None:
        if self._postmaster is not None:
            self._postmaster.send_signal(2)  # SIGINT: PostgreSQL's "fast shutdown"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._postmaster.wait(STOP_SECONDS)
                self._postmaster = None

    def _as_user(self) -> list[str]:
        """What a command of the server starts with, so that it is not root who runs it."""
        if os.geteuid() != 0:
            return []
        user = _unprivileged()
        if not _has_setpriv():
            return [sys.executable, "-c", _BECOME, str(user.pw_uid), str(user.pw_gid)]
        command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        if any(not parent.stat().st_mode & 0o001 for parent in self._data.parents):
            # The way to the data leads through another user's private folder.
            command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return command

    def _give_away(self, *paths: Path) -> None:
        if os.geteuid() == 0:
            user = _unprivileged()
            for path in paths:
                os.chown(path, user.pw_uid, user.pw_gid)

    def _call(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        ours = find_postgresql() / "bin"
        program = next(Path(word).name for word in command if Path(word).parent == ours)
        seconds = start_seconds()
        try:
            done = subprocess.run(
                command,
                env=environment_for_programs() | dict(environment or {}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PostgresError(
                f"{program}: no answer within {seconds:g} s (log: {self._log_path}); {WAY_OUT}"
            ) from None
        if done.returncode:
            said = " ".join(done.stderr.split())[:_GIST_CHARACTERS]
            raise PostgresError(f"{program} failed: {said or f'exit status {done.returncode}'}")

    def _gist(self) -> str:
        """What the server said about its trouble since this start, on one line. On a full disk it
        can say nothing."""
        if lack := lack_of_room(self.folder, SPEECHLESS_BYTES, 1):
            return f"no room left: {lack}"
        with self._log_path.open("rb") as log:
            log.seek(self._said_before)
            lines = log.read(65_536).decode(errors="replace").splitlines()
        words = [line for line in lines if "FATAL:" in line or "ERROR:" in line] or lines[-1:]
        cause = [line for line in lines if "already in use" in line]
        return " ".join(" ".join((*cause, *words)).split())[:_GIST_CHARACTERS] or "it said nothing"


def _unprivileged() -> pwd.struct_passwd:
    for name in _UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(_UNPRIVILEGED_USERS)} "
        f"to run it: run this as another user"
    )


@cache
def _has_setpriv() -> bool:
    """Whether there is the one of util-linux: BusyBox has another, and macOS none."""
    try:
        told = subprocess.run(
            ["setpriv", "--help"],  # noqa: S607 - on our own PATH
            env=environment_for_programs(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"--reuid" in told.stdout


def environment_for_programs() -> dict[str, str]:
    """Made from nothing: a PG* variable of the caller's is about another server."""
    environment = {"LANG": "C.UTF-8", "PATH": os.pathsep.join(program_folders())}
    if sys.platform == "darwin":  # Where an unknown locale makes the server refuse to start.
        environment["LC_ALL"] = "C"
    return environment


def _children(pid: int) -> list[int]:
    """The processes that a process has started, where it has not waited for them."""
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
        return [int(child) for child in told.split()]
    except (OSError, ValueError):
        return _children_by_ps(pid)


def _children_by_ps(pid: int) -> list[int]:
    """The same where there is no /proc."""
    try:
        told = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="],  # noqa: S607 - on our own PATH
            env=environment_for_programs(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        pairs = [tuple(map(int, line.split())) for line in told.stdout.splitlines()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [child for child, parent in pairs if parent == pid]


def _answers(port: int) -> bool:
    """Whether a PostgreSQL server there takes clients: it answers a login without a password by
    asking for one, and says "starting up" before that."""
    parameters = b"user\0" + _USER.encode() + b"\0database\0postgres\0\0"
    startup = (196_608).to_bytes(4, "big") + parameters
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall((len(startup) + 4).to_bytes(4, "big") + startup)
            return connection.recv(1) == b"R"
    except OSError:
        return False
