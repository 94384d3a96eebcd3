"""The record of who did what to dead letters, and why; it is only appended to."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.tables import audit
from saga.runtime.kernel.tables import utc_now


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit record."""

    number: int
    at: datetime
    who: str
    action: str
    reason: str
    selection: dict[str, Any]
    result: dict[str, Any]


def append(
    connection: Connection,
    action: str,
    reason: str,
    selection: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Append to the audit record, in a transaction."""
    connection.execute(
        audit.insert(),
        {
            "at": utc_now(),
            "who": who(),
            "action": action,
            "reason": reason,
            "selection": json.dumps(dict(selection)),
            "result": json.dumps(dict(result)),
        },
    )


def newest(connection: Connection, limit: int, before: int | None = None) -> list[AuditEntry]:
    """The newest entries of the audit record, the newest first; `before` one of that number."""
    query = sa.select(audit).order_by(audit.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.number < before)
    return [
        AuditEntry(
            row.number,
            row.at,
            row.who,
            row.action,
            row.reason,
            json.loads(row.selection),
            json.loads(row.result),
        )
        for row in connection.execute(query)
    ]


_acting: ContextVar[str | None] = ContextVar("acting", default=None)


@contextmanager
def acting_as(person: str | None) -> Iterator[None]:
    """What is done within the block, and what is begun there, is that person's doing; None for the
    account's."""
    token = _acting.set(person)
    try:
        yield
    finally:
        _acting.reset(token)


def who() -> str:
    """Who acts, for the audit record: the person of `acting_as`, or else `user@host`."""
    if (person := _acting.get()) is not None:
        return person
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # A container's user may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
