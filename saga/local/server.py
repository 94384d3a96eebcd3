"""What private servers have in common: a folder, free ports, and how they are started."""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from saga.errors import Explained
from saga.local import SystemFault
from saga.local.guard import Guard
from saga.local.patience import StartDeadline
from saga.runtime.streams import FULL

LOOPBACK: Final = "127.0.0.1"
PORT_ATTEMPTS: Final = 3
"""First starts that may fail because another process took a port just after it was found free."""
SPEECHLESS_BYTES: Final = 1_000_000
"""Free bytes below which a server's end needs no other reason, and its log may not tell one."""


class PortTaken(Exception):
    """Another process took a port between its choice and its use."""


class PrivateServer(ABC):
    """A server with its data in `folder`, owned by this process and gone when it is.

    The folder keeps its data between runs; one server at a time may use it. All methods block.
    """

    fault: ClassVar[type[Explained]]
    """What is raised where it cannot be used."""

    def __init__(self, folder: Path, lock: str) -> None:
        self.folder = folder.resolve()
        self._guard = Guard(self.folder / lock)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout_seconds: float | None = None) -> None:
        """Start the server and wait until clients can connect, by default for `START_SECONDS`.

        After `kill` or a crash the same server comes back: same data, same ports. Does nothing when
        it is running. Raises its `fault`, and leaves nothing running, when it cannot be started.
        """
        if self.running:
            return
        patience = StartDeadline(timeout_seconds)
        again = self._has_ports  # killed or crashed: the ports are part of its identity
        try:
            self._prepare()
            for attempt in range(1, PORT_ATTEMPTS + 1):
                if not again:
                    self._choose_ports()
                try:
                    self._run(patience)
                except PortTaken as error:
                    self._end_processes()
                    if again or attempt == PORT_ATTEMPTS:
                        raise self.fault(str(error)) from None
                else:
                    return
        except OSError as error:
            self.stop()
            raise self._unusable(error) from error
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    def stop(self) -> None:
        """Stop the server gracefully, or kill it; no process is left behind."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether its first process is there (it may still be starting, or hang)."""

    @property
    @abstractmethod
    def _name(self) -> str:
        """What it is called in errors."""

    @property
    @abstractmethod
    def _has_ports(self) -> bool:
        """Whether it has been started before."""

    @abstractmethod
    def _prepare(self) -> None:
        """Take the folder, and have in it what the server needs."""

    @abstractmethod
    def _choose_ports(self) -> None: ...

    @abstractmethod
    def _run(self, patience: StartDeadline) -> None:
        """Start its processes once, and wait until it answers. Raises `PortTaken`."""

    def _end_processes(self) -> None:  # noqa: B027 - some leave nothing
        """End what a start has left that found its port taken."""

    def _unusable(self, error: OSError) -> Explained:
        """Why the folder cannot be used, and the way out."""
        way_out = "name a folder that this user can write to"
        if error.errno in FULL:
            way_out = "make room there, or name another folder"
        return self.fault(
            f"{self._name} cannot use the folder {self.folder}: {error.strerror or error}: "
            f"{way_out}"
        )


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """Choose a free loopback port for each name, below the range of outgoing connections.

    A port inside that range could be taken by a client's own connection while the server is down; a
    client that keeps trying to reconnect may even end up connected to itself. Raises `SystemFault`.
    """
    ports: dict[str, int] = {}
    for port in _candidates():
        if len(ports) == len(names):
            return ports
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        ports[names[len(ports)]] = port
    raise SystemFault("no free port on 127.0.0.1 between 10000 and 32767: end some listeners")


def _candidates() -> Iterator[int]:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8")
        top = int(text.split()[0])
    except (OSError, ValueError, IndexError):
        top = 32768
    # Some machines give nearly everything to outgoing connections; then any port has to do.
    ports = list(range(10_000, top if top > 11_000 else 32_768))
    # Seeded by the system, so that two servers started at once seldom try the same ports.
    random.SystemRandom().shuffle(ports)
    yield from ports
