"""`saga reconcile`: whether the books of all participants, the provider's and the broker agree.

Facts are gathered first, then judged by pure rules (`rules`), which docs and reports name. The
system may be running: nothing is locked, and what is found must still be there when everything is
read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiormq

from common.choreography import Choreography, Participant
from common.envelope import Undecodable
from common.kernel.tables import utc_now
from common.messaging.connection import BrokerError, connect
from common.messaging.topology import dead_letter_queue, queues_of
from common.messaging.wire import Connection
from common.urls import printable
from inventory_service.domain import PARTICIPANT as INVENTORY
from saga import discovery
from saga.deployment import Deployment
from saga.dlq import DlqError, store
from saga.reconcile import broker, databases
from saga.reconcile.databases import Books
from saga.reconcile.facts import Facts, Letter, ReconcileError
from saga.reconcile.history import History
from saga.reconcile.rules import RULES, Violation, judge, orders_at_rest, undecided

__all__ = ["GRACE_SECONDS", "RULES", "ReconcileError", "Report", "Violation", "reconcile"]

GRACE_SECONDS = 5.0
SETTLE_SECONDS = 3.0
PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `dataclasses.asdict` makes plain JSON of it.

    `checked` counts what was looked at, and says what could not be:

    - `orders`, `orders_at_rest`, `payments`, `provider_charges`, `reservations`, `skus`;
    - `events`: messages in the history, of which `events_undecodable` no participant can read;
      `events_unpublished`: events still in an outbox;
    - `events_undecided`: messages not done that a consumer at work may still hold; 0 on a system
      at rest;
    - `messages_waiting`: messages that wait to be tried again; `settled_by_hand`: dead letters that
      a person discarded, or replaced by a corrected copy;
    - `history_first_offset`: above 0, retention has removed so many events, and conservation was
      checked for the others only;
    - `skus_trimmed`: SKUs whose deliveries are no longer all in the history, so that what was put
      on the shelf is not known.

    - `mails_unknown`: mails of which nobody knows whether they were sent; `mails_in_question`:
      those that may have been sent before a restore, about orders that have not ended since.

    `dead_letters` counts by participant. `mails_unknown` are the orders about whose mails a person
    has to decide.
    """

    ok: bool
    checked: dict[str, int]
    violations: tuple[Violation, ...]
    dead_letters: dict[str, int]
    mails_unknown: tuple[str, ...] = ()


async def reconcile(
    deployment: Deployment,
    *,
    grace_seconds: float = GRACE_SECONDS,
    settle_seconds: float = SETTLE_SECONDS,
) -> Report:
    """Read everything and judge it; takes seconds per 10,000 orders.

    Only orders still for `grace_seconds` are held to the at-rest rules; 0 when the system is known
    to be at rest. Before a violation is reported everything is read again, at least once and for
    `settle_seconds`, and it must have been there each time.

    Raises `ReconcileError` and `BrokerError`.
    """
    participants = discovery.participants()
    choreography = Choreography(participants.values())
    deadline = time.monotonic() + settle_seconds
    facts, books = await _gather(deployment, participants, choreography, grace_seconds)
    found = {_identity(violation): violation for violation in judge(facts)}
    again = True
    while (found or undecided(facts)) and (again or time.monotonic() < deadline):
        again = False
        await asyncio.sleep(min(PAUSE_SECONDS, settle_seconds))
        facts, books = await _gather(deployment, participants, choreography, grace_seconds)
        found = {
            identity: violation
            for violation in judge(facts)
            if (identity := _identity(violation)) in found
        }
    return Report(
        ok=not found,
        checked=_checked(facts, books),
        violations=tuple(found.values()),
        dead_letters={
            name: len({letter.key for letter in letters}) for name, letters in facts.letters.items()
        },
        mails_unknown=tuple(books.mails_unknown),
    )


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
) -> dict[str, list[Letter]]:
    """What is dead, by participant: in the queues first, then in the store they are moved to."""
    letters = {
        participant.name: await broker.browse(connection, dead_letter_queue(participant.name))
        for participant in choreography.participants
    }
    here, _ = await asyncio.to_thread(store.look, deployment.dead_letters_url)
    for kept in here:
        letters.setdefault(kept.participant, []).append(Letter(kept.key, kept.subject, kept.reason))
    return letters


def _identity(violation: Violation) -> tuple[str, str]:
    return violation.rule, violation.subject


async def _gather(
    deployment: Deployment,
    participants: Mapping[str, Participant],
    choreography: Choreography,
    grace_seconds: float,
) -> tuple[Facts, Books]:
    """Read everything once, in the order that `Facts` explains."""
    started_at = utc_now()
    history = History(choreography)
    connection = await connect(deployment.amqp_url, name="saga reconcile")
    try:
        books = await asyncio.to_thread(databases.read_books, deployment, participants)
        books.provider = await databases.read_provider(deployment.sandbox_url)
        for body in books.outbox:
            history.take_unpublished(body)
        history.made_anew = await asyncio.to_thread(databases.streams_before, deployment)
        said = sum(sum(subjects.values()) for subjects in books.sequences.values())
        await broker.read_history(connection, history, written_to=said > len(books.outbox))
        undone = await asyncio.to_thread(databases.undone, deployment, participants, history.owed)
        letters = await _dead(connection, deployment, choreography)
        _, by_person = await asyncio.to_thread(store.look, deployment.dead_letters_url)
        owners = {queue: p.name for p in choreography.participants for queue in queues_of(p)}
        waiting = await broker.waiting(connection, owners)
        backlogs = {
            p.name: await broker.backlog(connection, queues_of(p))
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
    facts = Facts(
        started_at=started_at,
        grace_seconds=grace_seconds,
        history=history,
        orders=books.orders,
        payments=books.payments,
        held_orders=books.held_orders,
        held_units=books.held_units,
        stock=books.stock,
        provider=books.provider,
        sequences=books.sequences,
        undone=undone,
        letters=letters,
        waiting=waiting,
        settled=settled,
        backlogs=backlogs,
        unpublished=len(books.outbox),
    )
    return facts, books


def _checked(facts: Facts, books: Books) -> dict[str, int]:
    history = facts.history
    return {
        "orders": len(facts.orders),
        "orders_at_rest": len(orders_at_rest(facts) & facts.orders.keys()),
        "payments": len(facts.payments),
        "provider_charges": len(facts.provider),
        "reservations": books.reservations,
        "skus": len(facts.stock),
        "events": history.messages,
        "events_undecodable": history.undecodable,
        "events_unpublished": facts.unpublished,
        "events_undecided": undecided(facts),
        "dead_letter_copies": sum(
            len(letters) - len({letter.key for letter in letters})
            for letters in facts.letters.values()
        ),
        "messages_waiting": sum(map(len, facts.waiting.values())),
        "settled_by_hand": sum(map(len, facts.settled.values())),
        "history_first_offset": history.first_offset,
        "mails_unknown": len(books.mails_unknown),
        "mails_in_question": books.mails_in_question,
        "skus_trimmed": sum(not history.complete(INVENTORY.name, sku) for sku in facts.stock),
    }
