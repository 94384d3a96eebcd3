"""`saga reconcile`: whether the books of all participants, the outsides' and the broker agree.

Facts are gathered first, then judged by pure rules: those of the saga, those that follow from the
roles of its events (`saga.rules`), and that no message is lost (`conservation`). The system may be
running: nothing is locked, and what is found must still be there when everything is read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import aiormq

from saga import discovery
from saga.choreography import Choreography
from saga.declaration import Saga
from saga.deployment import Deployment
from saga.dlq import DlqError, lookup
from saga.envelope import Decoder, Undecodable
from saga.generate.naming import names_of
from saga.reconcile import broker, conservation, databases
from saga.reconcile.conservation import Rest, Waiting, undecided
from saga.reconcile.databases import Books
from saga.reconcile.facts import MessageFates, ReconcileError, RestingMessage
from saga.reconcile.history import History
from saga.rules import RULES, Rules
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.partitions import with_partitions
from saga.runtime.messaging.topology import dead_letter_queue, queues_of
from saga.runtime.messaging.wire import Connection
from saga.runtime.urls import printable
from saga.view import View, Violation

__all__ = [
    "GRACE_SECONDS",
    "ReconcileError",
    "Report",
    "Violation",
    "judge",
    "reconcile",
    "rule_names",
]

GRACE_SECONDS = 5.0
SETTLE_SECONDS = 3.0
PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `dataclasses.asdict` makes plain JSON of it.

    `checked` counts what was looked at, and says what could not be:

    - the rows of each table of states, and what else participants count;
    - `<subjects>_at_rest`: those that were held to the at-rest rules;
    - `<outside>_lines`: what its books hold;
    - `events`: messages in the history, of which `events_undecodable` no participant can read;
      `events_unpublished`: events still in an outbox;
    - `events_undecided`: messages not done that a consumer at work may still hold; 0 on a system
      at rest;
    - `messages_waiting`: messages that wait to be tried again; `settled_by_hand`: dead letters that
      an operator discarded, or replaced by a corrected copy;
    - `history_first_offset`: above 0, retention has removed so many events, and conservation was
      checked for the others only;
    - `subjects_trimmed`: subjects of which a rule cannot say anything for that reason.

    `dead_letters` counts by participant. `for_people` are by rule the subjects that an operator has
    to decide on. `not_covered` names what nothing looks at: then all is not said to be well.
    `unread` says why books of outsides that keep none were not read, nor the databases of
    participants in other languages.
    """

    ok: bool
    checked: dict[str, int]
    violations: tuple[Violation, ...]
    dead_letters: dict[str, int]
    for_people: dict[str, tuple[str, ...]] = field(default_factory=dict)
    not_covered: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Gathered:
    """One reading of everything."""

    books: Books
    outside: dict[str, Any]
    deliveries: MessageFates
    view: View


def rule_names(saga: Saga) -> list[str]:
    """The names of all rules that are applied to a running system."""
    return [*(i.name for i in saga.judged(really=True)), *RULES, *conservation.RULES]


async def reconcile(
    deployment: Deployment,
    *,
    saga: Saga | None = None,
    grace_seconds: float = GRACE_SECONDS,
    settle_seconds: float = SETTLE_SECONDS,
) -> Report:
    """Read everything and judge it; takes seconds per 10,000 sagas.

    Only subjects still for `grace_seconds` are held to the at-rest rules; 0 when the system is
    known to be at rest. Before a violation is reported everything is read again, at least once and
    for `settle_seconds`, and it must have been there each time.

    Raises `ReconcileError` and `BrokerError`.
    """
    saga = saga or discovery.saga()
    rules = Rules(saga)
    deadline = time.monotonic() + settle_seconds
    gathered = await _gather(deployment, saga, grace_seconds)
    found = {
        _identity(violation): violation
        for violation in judge(rules, gathered.view, gathered.deliveries)
    }
    again = True
    while (found or undecided(gathered.deliveries)) and (again or time.monotonic() < deadline):
        again = False
        await asyncio.sleep(min(PAUSE_SECONDS, settle_seconds))
        gathered = await _gather(deployment, saga, grace_seconds)
        found = {
            identity: violation
            for violation in judge(rules, gathered.view, gathered.deliveries)
            if (identity := _identity(violation)) in found
        }
    letters = gathered.deliveries.letters
    not_covered = (*saga.unwatched(really=True), *saga.unread())
    return Report(
        ok=not found and not not_covered,
        checked=_checked(saga, gathered),
        violations=tuple(found.values()),
        dead_letters={name: len({each.key for each in of}) for name, of in letters.items()},
        for_people={
            each.name: tuple(sorted(subject for subject, _ in each.broken(gathered.view)))
            for each in saga.left_to_people
        },
        not_covered=not_covered,
        unread=(
            *(
                f"the books of {outside.name} were not read: {outside.no_books}"
                for outside in saga.outside
                if outside.no_books
            ),
            *saga.elsewhere(),
        ),
    )


def judge(rules: Rules, view: View, deliveries: MessageFates) -> list[Violation]:
    """Every violation, by rule and subject."""
    waiting = Waiting(deliveries)
    found = [*rules.judge(view, explain=waiting.explain), *conservation.judge(deliveries)]
    return sorted(found, key=_identity)


async def dead_letters(deployment: Deployment, choreography: Choreography) -> set[tuple[str, str]]:
    """The dead letters there are, each by its participant and key; copies count once.

    Raises `ReconcileError` and `BrokerError`.
    """
    connection = await connect(deployment.amqp_url, name="saga dead letters")
    try:
        letters = await _dead(connection, deployment, choreography)
    finally:
        await connection.close()
    return {(name, letter.key) for name, found in letters.items() for letter in found}


async def _dead(
    connection: Connection, deployment: Deployment, choreography: Choreography
) -> dict[str, list[RestingMessage]]:
    """What is dead, by participant: in the queues first, then in the store they are moved to."""
    letters = {
        participant.name: await broker.browse(connection, dead_letter_queue(participant.name))
        for participant in choreography.participants
    }
    here, _ = await asyncio.to_thread(lookup.look, deployment.dead_letters_url)
    for kept in here:
        letters.setdefault(kept.participant, []).append(
            RestingMessage(kept.key, kept.subject, kept.reason)
        )
    return letters


def _identity(violation: Violation) -> tuple[str, str]:
    return violation.rule, violation.subject


async def _gather(deployment: Deployment, saga: Saga, grace_seconds: float) -> _Gathered:
    """Read everything once, in the order that `MessageFates` explains."""
    started_at = utc_now()
    choreography = saga.choreography
    history = history_for(saga)
    connection = await connect(deployment.amqp_url, name="saga reconcile")
    try:
        books = await asyncio.to_thread(databases.read_books, deployment, saga)
        outside = await asyncio.to_thread(databases.read_outside, deployment, saga)
        for body in books.outbox:
            history.take_unpublished(body)
        history.made_anew = await asyncio.to_thread(databases.streams_before, deployment)
        said = sum(sum(subjects.values()) for subjects in books.sequences.values())
        await broker.read_history(connection, history, written_to=said > len(books.outbox))
        undone = await asyncio.to_thread(databases.undone, deployment, saga, history.owed)
        letters = await _dead(connection, deployment, choreography)
        _, by_person = await asyncio.to_thread(lookup.look, deployment.dead_letters_url)
        owners = {queue: p.name for p in choreography.participants for queue in queues_of(p)}
        waiting = await broker.waiting(connection, owners)
        backlogs = {
            p.name: await broker.backlog(
                connection, await with_partitions(connection, queues_of(p))
            )
            for p in choreography.participants
        }
    except (aiormq.exceptions.AMQPError, ConnectionError) as error:
        raise BrokerError(
            f"RabbitMQ at {printable(deployment.amqp_url)} failed while it was read: {error}; "
            f"try again once it is well"
        ) from error
    except DlqError as error:
        raise ReconcileError(str(error)) from error
    except Undecodable as error:
        raise ReconcileError(
            f"an outbox holds what is no event of this version: {error}"
        ) from error
    finally:
        await connection.close()
    settled = {name: set(keys) for name, keys in history.replaced.items()}
    for kept in by_person:
        settled.setdefault(kept.participant, set()).add(kept.key)
    deliveries = MessageFates(
        started_at=started_at,
        grace_seconds=grace_seconds,
        history=history,
        # What one in another language has counted is not known; before its last event, all are.
        sequences=books.sequences
        | {p.name: history.last_numbers(p.name) for p in choreography.foreign},
        undone=undone,
        letters=letters,
        waiting=waiting,
        settled=settled,
        backlogs=backlogs,
        unpublished=len(books.outbox),
    )
    return _Gathered(books, outside, deliveries, view_of(books, outside, deliveries))


def history_for(saga: Saga, types: Collection[str] = (), decoder: Decoder | None = None) -> History:
    """A history that keeps what the saga's rules read, and the events of these types; `decoder`
    reads what the saga records, by default one that remembers nothing."""
    invariants = (*saga.invariants, *saga.left_to_people)
    return History(
        saga.choreography,
        read={*types, *(kind.type for each in invariants for kind in each.events)},
        asking={p.name for p in saga.participants if any(r.intends for r in p.reactions)},
        decoder=decoder,
    )


def view_of(books: Books, outside: Mapping[str, Any], deliveries: MessageFates) -> View:
    """What was read, as rules look at it."""
    rest = Rest(deliveries)
    return View(books.known, deliveries.history, outside.values(), rests=rest, busy=rest.busy)


def _checked(saga: Saga, gathered: _Gathered) -> dict[str, int]:
    deliveries, books = gathered.deliveries, gathered.books
    history = deliveries.history
    checked = {
        "events": history.messages,
        "events_undecodable": history.undecodable,
        "events_unpublished": deliveries.unpublished,
        "events_undecided": undecided(deliveries),
        "dead_letter_copies": sum(
            len(letters) - len({letter.key for letter in letters})
            for letters in deliveries.letters.values()
        ),
        "messages_waiting": sum(map(len, deliveries.waiting.values())),
        "settled_by_hand": sum(map(len, deliveries.settled.values())),
        "history_first_offset": history.first_offset,
        "subjects_trimmed": len(history.incomplete),
    }
    counts = books.rows | books.figures
    names = names_of(counts, taken=checked.keys())
    found = {names[owned]: books.rows[owned] for owned in books.rows}
    if saga.subject is not None:
        subjects = gathered.view.states(saga.subject)
        name = names[databases.table_of(saga, saga.subject)]
        found[f"{name}_at_rest"] = sum(map(gathered.view.rests, subjects))
    for outside, lines in gathered.outside.items():
        if isinstance(lines, Sized):
            found[f"{outside.replace(' ', '_')}_lines"] = len(lines)
    return found | checked | {names[owned]: books.figures[owned] for owned in books.figures}
