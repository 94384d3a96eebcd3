"""The dead letters of subjects, with their lives: each death, each replay, and how they ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from saga.dlq.letters import DeadLetter
from saga.dlq.selection import Selection
from saga.dlq.states import ItemState, LetterState
from saga.dlq.store import Store
from saga.dlq.tables import path_of
from saga.limits import moment_of
from saga.runtime.messaging.dead_letters import ATTEMPTS, ERROR, ERROR_TYPE


@dataclass(frozen=True, slots=True)
class Death:
    """One time that a message became a dead letter, after so many tries."""

    at: datetime
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Life:
    """A letter in the operator's store. `replays` are number, start, and what became of it."""

    letter: DeadLetter
    deaths: Sequence[Death]
    replays: Sequence[tuple[int, datetime, ItemState]]


def lives_of(url: str | None, subject: str) -> list[Life]:
    """The letters about one subject; blocks. Raises `DlqError`."""
    with _opened(url) as store:
        if store is None:
            return []
        return [
            Life(letter, _deaths(store, letter), store.replays.of_letter(letter.number))
            for letter in store.find(Selection(subject=subject))
        ]


def letters_in(url: str | None) -> list[DeadLetter]:
    """Every letter of the store; blocks. Raises `DlqError`."""
    with _opened(url) as store:
        return store.find(Selection(), contents=False) if store is not None else []


def sent_in(url: str | None) -> list[DeadLetter]:
    """The letters that were replayed and are not known to be done, with their contents; blocks.
    Raises `DlqError`."""
    with _opened(url) as store:
        return store.find(Selection(), [LetterState.SENT]) if store is not None else []


@contextmanager
def _opened(url: str | None) -> Iterator[Store | None]:
    """The store, if there is one; opening makes none."""
    if url is None or not path_of(url).is_file():
        yield None
        return
    store = Store(url)
    try:
        yield store
    finally:
        store.close()


def _deaths(store: Store, letter: DeadLetter) -> list[Death]:
    deaths = []
    for died, headers in store.copies_of(letter.number):
        attempts = headers.get(ATTEMPTS)
        deaths.append(
            Death(
                at=moment_of(died) or letter.last_failed_at,
                error=f"{headers.get(ERROR_TYPE) or letter.error_type}: "
                f"{headers.get(ERROR) or letter.error}",
                attempts=attempts if isinstance(attempts, int) else letter.attempts,
            )
        )
    return deaths
