"""Forgetting what was done so long ago that it will not come again.

The inbox only saves work: what comes again and is not in it is decided on once more, and the
states, which are never forgotten, say that there is nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

import sqlalchemy as sa

from saga.runtime.kernel.database import Database
from saga.runtime.kernel.statements import any_of
from saga.runtime.kernel.tables import Clock, Tables, utc_now
from saga.runtime.retry_loop import RetryLoop

log = logging.getLogger(__name__)

FORGET_MAX = 500
"""Rows removed by one transaction: the messages that wait for it meanwhile must not notice."""
PAUSE_SECONDS = 0.1
"""Between two such transactions, which is for the messages."""
LOOK_SECONDS = 600.0
"""Until it is looked again, once there is no more to forget."""


async def forget(database: Database, tables: Tables, before: datetime) -> int:
    """Remove the oldest rows of what was done before that time, up to `FORGET_MAX`; return how
    many. Several replicas may do so at once."""
    inbox = tables.inbox
    oldest = (
        sa.select(inbox.c.message_id)
        .where(inbox.c.at < before)
        .order_by(inbox.c.at)
        .limit(FORGET_MAX)
    )
    # Looked for beside the transactions, which need not wait for that.
    ids = await database.read(lambda connection: connection.scalars(oldest).all())
    if ids:
        await database.transaction(
            lambda connection: connection.execute(
                inbox.delete().where(any_of(connection, inbox.c.message_id, ids))
            )
        )
    return len(ids)


async def keep_forgetting(
    database: Database,
    tables: Tables,
    days: float,
    retry_loop: RetryLoop,
    *,
    clock: Clock = utc_now,
) -> None:
    """Forget what was done more than so many days ago, for ever."""
    forgotten = 0
    while True:
        try:
            count = await forget(database, tables, clock() - timedelta(days=days))
        except Exception as error:
            if not database.is_away(error):
                raise
            retry_loop.failed(error)
            count = 0
        else:
            retry_loop.succeeded()
        forgotten += count
        if count == FORGET_MAX:
            await asyncio.sleep(PAUSE_SECONDS)
            continue
        if forgotten:
            log.info("forgot %d messages that were done over %g days ago", forgotten, days)
            forgotten = 0
        await asyncio.sleep(LOOK_SECONDS)
