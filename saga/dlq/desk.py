"""Where dead letters are worked on: a system's store, its broker and its books, opened together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiormq

from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.dlq.collect import collect
from saga.dlq.examine import REPLAYS_MAX, Examiner
from saga.dlq.letters import full
from saga.dlq.selection import Selection
from saga.dlq.states import LetterState
from saga.dlq.store import Store
from saga.dlq.tables import AT_ONCE
from saga.errors import InputError, NotFound
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.dead_letters import ERROR
from saga.runtime.messaging.permissions import REPLAY
from saga.runtime.messaging.topology import dead_letter_queue, queues_of, undivided
from saga.runtime.messaging.wire import Connection
from saga.runtime.tasks import in_thread
from saga.runtime.urls import printable


@dataclass(frozen=True, slots=True)
class ReadingDesk:
    """What looking at dead letters needs, and settling them: all but the broker.

    The store blocks, for seconds where another command is writing into it; so it is asked in
    threads here, and other tasks of the event loop go on.
    """

    deployment: Deployment
    graph: Choreography
    store: Store

    @property
    def participants(self) -> tuple[str, ...]:
        return tuple(participant.name for participant in self.graph.participants)

    def examiner(self, replays_max: int = REPLAYS_MAX) -> Examiner:
        return Examiner(self.deployment, self.graph, replays_max=replays_max)

    async def selection(self, filters: Selection, ids: Iterable[str]) -> Selection:
        """What fits the filters, and of these only the letters with one of the numbers or message
        ids, if any are given. Raises `InputError` for what does not exist."""
        numbers = await in_thread(self._numbered, list(ids))
        selection = replace(filters, numbers=tuple(numbers))
        await self.check(selection)
        return selection

    def _numbered(self, ids: Iterable[str]) -> list[int]:
        return sorted({number for id in ids for number in self.store.numbers_named(id)})

    async def document_about(self, number: int) -> dict[str, Any]:
        """All that is known of a letter, with its deaths, its edits, and what a replay would do.
        Raises `InputError`."""
        letter = await in_thread(self.store.get, number)
        copies = await in_thread(self.store.copies_of, number)
        verdict = (await self.examiner().examine([letter]))[number]
        return full(letter) | {
            "died": [{"at": died, "error": headers.get(ERROR, "")} for died, headers in copies],
            "edits": await in_thread(self.store.edits_of, number),
            "replay": verdict.to_json(),
        }

    async def check(self, selection: Selection) -> None:
        """Raise `InputError` for a selection that names what does not exist."""
        queues = {q for p in self.graph.participants for q in queues_of(p)}
        queues |= {dead_letter_queue(name) for name in self.participants}
        if selection.queue is not None and undivided(selection.queue) not in queues:
            raise InputError(
                f"there is no queue {selection.queue!r}; there are {', '.join(sorted(queues))}"
            )
        if selection.service is not None and selection.service not in self.participants:
            raise InputError(
                f"there is no service {selection.service!r}; there are "
                f"{', '.join(self.participants)}"
            )
        types = {message.type for message in self.graph.recorded}
        types |= {command.type for p in self.graph.participants for command in p.intake}
        if (
            selection.type is not None
            and selection.type not in types
            and not await in_thread(self.store.has, Selection(type=selection.type))
        ):
            raise InputError(
                f"there is no event or command of type {selection.type!r}; there are "
                f"{', '.join(sorted(types))}"
            )
        if (
            selection.subject is not None
            and not await in_thread(self.store.knows, selection.subject)
            and not await self.examiner().knows(selection.subject)
        ):
            raise NotFound(f"nothing is known of {selection.subject!r}")
        fingerprint = selection.fingerprint
        if fingerprint is not None and not await in_thread(
            self.store.has, Selection(fingerprint=fingerprint)
        ):
            raise NotFound(
                f"no letter has the fingerprint {selection.fingerprint!r}; `saga dlq list` names "
                f"those there are"
            )
        known = await in_thread(self.store.numbers_known, selection.numbers)
        unknown = set(selection.numbers) - known
        if unknown:
            raise NotFound(
                f"there is no dead letter {min(unknown)}; `saga dlq list --by letter` names "
                f"those known"
            )


@dataclass(frozen=True, slots=True)
class DeadLetterDesk(ReadingDesk):
    """What every command on dead letters needs."""

    connection: Connection

    async def collect(self) -> int:
        """Move what is dead by now into the store, and find out what became of what was sent.

        Returns how many copies were new.
        """
        collected = await collect(self.connection, self.store, self.participants)
        if collected:
            await in_thread(self.store.note, "collect", "", {}, {"copies": collected})
        out = await in_thread(self.store.numbers, Selection(), [LetterState.SENT])
        done: set[int] = set()
        for start in range(0, len(out), AT_ONCE):
            numbers = tuple(out[start : start + AT_ONCE])
            letters = await in_thread(self.store.find, Selection(numbers=numbers))
            done |= await self.examiner().done(letters)
        if done:
            await in_thread(self.store.settle_done, done)
        return collected


@asynccontextmanager
async def open_desk(deployment: Deployment, graph: Choreography) -> AsyncIterator[DeadLetterDesk]:
    """Open the desk, with everything that is dead by now on it.

    Raises `DlqError` and `BrokerError`.
    """
    if deployment.dead_letters_url is None:
        raise NotFound("the deployment names no store of dead letters: dead_letters_url")
    connection = await connect(deployment.amqp_url_of(REPLAY), name="saga dlq")
    try:
        store = await in_thread(Store, deployment.dead_letters_url)
        try:
            desk = DeadLetterDesk(deployment, graph, store, connection)
            await desk.collect()
            yield desk
        finally:
            store.close()
    except (aiormq.exceptions.AMQPError, ConnectionError) as error:
        raise BrokerError(
            f"RabbitMQ at {printable(deployment.amqp_url)} failed: {error}; "
            f"try again once it is well"
        ) from error
    finally:
        await connection.close()
