"""A service that kills itself, with SIGKILL, when it reaches a named point for the n-th time.

    python -m tests.faults.crash payment_service after-commit 20

The points are the seams between the steps of a delivery's life. They are put in from outside, here:
nothing in the services knows of them.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from payment_service.gateway import SandboxGateway
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.statements import on_postgresql
from saga.runtime.messaging.acknowledgement import Acknowledger
from saga.runtime.messaging.consumer import Deliveries
from saga.runtime.messaging.publisher import BrokerPublisher


class Fuse:
    """Kills the process when it is reached for the n-th time."""

    def __init__(self, times: int) -> None:
        self._left = times

    def reached(self) -> None:
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, fuse: Fuse) -> None:
    """Burn the fuse before each call of a method."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        fuse.reached()
        return method(*arguments, **options)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, fuse: Fuse) -> None:
    """Burn the fuse after each awaited call of a method."""
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(method)
    async def wrapped(*arguments: Any, **options: Any) -> Any:
        result = await method(*arguments, **options)
        fuse.reached()
        return result

    setattr(owner, name, wrapped)


def before_commit(fuse: Fuse) -> None:
    execute = WriteSet.execute

    @functools.wraps(execute)
    def wrapped(self: WriteSet, connection: Connection) -> None:
        if on_postgresql(connection):  # What writes may be what commits.
            fuse.reached()
            execute(self, connection)
        else:
            execute(self, connection)
            fuse.reached()

    WriteSet.execute = wrapped  # type: ignore[method-assign]  # that is the point


def half_published(fuse: Fuse) -> None:
    publish = BrokerPublisher.publish_events

    @functools.wraps(publish)
    async def wrapped(self: BrokerPublisher, events: Sequence[Outgoing]) -> Any:
        if len(events) < 2:
            return await publish(self, events)
        first = await publish(self, events[: len(events) // 2])
        fuse.reached()
        return first + await publish(self, events[len(events) // 2 :])

    BrokerPublisher.publish_events = wrapped  # type: ignore[method-assign]  # that is the point


POINTS: dict[str, Callable[[Fuse], None]] = {
    "before-commit": before_commit,
    "between-commit-and-ack": lambda fuse: before(Acknowledger, "resolve", fuse),
    "between-commit-and-publish": lambda fuse: before(Outbox, "publish", fuse),
    "in-the-middle-of-publishing": half_published,
    "between-publish-and-forget": lambda fuse: after(BrokerPublisher, "publish_events", fuse),
    "between-intent-and-call": lambda fuse: before(SandboxGateway, "charge", fuse),
    "between-call-and-commit": lambda fuse: after(SandboxGateway, "charge", fuse),
    "between-refund-intent-and-call": lambda fuse: before(SandboxGateway, "refund", fuse),
    "between-refund-and-commit": lambda fuse: after(SandboxGateway, "refund", fuse),
    "between-setting-aside-and-ack": lambda fuse: after(Deliveries, "_set_aside", fuse),
}


def main(package: str, point: str, times: str) -> None:
    POINTS[point](Fuse(int(times)))
    importlib.import_module(f"{package}.app").serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
