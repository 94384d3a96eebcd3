"""What every participant does that asks an outside for something, and may have to give it back.

A question fits in no transaction: it is committed as an intent, asked under an idempotency key, and
its answer is committed. What a crash leaves in between is asked again. A cancellation may come at
any of these moments, before the question too, and must not guess: what may have been taken is asked
about again under the same key, and what turns out to be taken is given back. An outside that was
never asked before the cancellation is never asked after it; that is what `void` marks.

The participant's own reactions say which intents and events these are:

    def book(event: TripPlanned, seat: Seat) -> BookSeat | None:
        return ask(seat.phase, BookSeat(...))
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from saga.message import Event, Intent

Q = TypeVar("Q", bound=Intent)
"""The question."""
S = TypeVar("S", bound=Intent)
"""The same question once more, because of a cancellation."""
U = TypeVar("U", bound=Intent)
"""The question to give it back."""
T = TypeVar("T", bound=Event)
"""It was taken."""
R = TypeVar("R", bound=Event)
"""It was refused."""
V = TypeVar("V", bound=Event)
"""Nothing was taken, and nothing will be."""
B = TypeVar("B", bound=Event)
"""It was given back."""


class Phase(StrEnum):
    """Where something stands that an outside is asked for."""

    NEW = "new"
    """The outside was not asked."""
    ASKING = "asking"
    """The outside may have given it without our knowing yet."""
    SETTLING = "settling"
    """The same, and it is not wanted any more."""
    TAKEN = "taken"
    REFUSED = "refused"
    UNDOING = "undoing"
    """The outside may have taken it back without our knowing yet."""
    UNDONE = "undone"
    VOID = "void"
    """It was not wanted any more before it was taken: the outside is not asked from here on."""


def ask(phase: Phase, question: Callable[[], Q]) -> Q | None:
    """Ask for it; again, if that was cut short."""
    return question() if phase in (Phase.NEW, Phase.ASKING) else None


def record(
    phase: Phase,
    given: bool,
    *,
    taken: Callable[[], T],
    refused: Callable[[], R],
    void: Callable[[], V],
    undo: Callable[[], U],
) -> T | R | V | tuple[T, U] | U | None:
    """Take note of the answer: whether it was given. What is not wanted any more is given back."""
    match phase:
        case Phase.ASKING:
            return taken() if given else refused()
        case Phase.SETTLING:
            return (taken(), undo()) if given else void()
        case Phase.UNDOING:  # The cancellation's own question, answered twice.
            return undo()
        case _:
            return None


def take_back(
    phase: Phase,
    *,
    void: Callable[[], V],
    settle: Callable[[], S],
    undo: Callable[[], U],
) -> V | S | U | None:
    """See to it that nothing is taken in the end, whatever was asked until now."""
    match phase:
        case Phase.NEW:  # Overtook what would have had it asked for.
            return void()
        case Phase.ASKING | Phase.SETTLING:
            return settle()
        case Phase.TAKEN | Phase.UNDOING:
            return undo()
        case _:
            return None


def record_undone(phase: Phase, undone: Callable[[], B]) -> B | None:
    """Take note that it was given back."""
    return undone() if phase is Phase.UNDOING else None
