"""Where a dead letter stands, and what became of it in a replay."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class LetterState(StrEnum):
    """Where a letter stands. `sent` is out and not yet heard of; `done` is known to be done."""

    DEAD = "dead"
    SENDING = "sending"
    SENT = "sent"
    DONE = "done"
    DISCARDED = "discarded"
    REPLACED = "replaced"


HERE: Final = (LetterState.DEAD, LetterState.SENDING)
"""The states of letters whose message is nowhere else."""
SETTLED: Final = (LetterState.DISCARDED, LetterState.REPLACED)
"""The states of letters that an operator has settled."""


class ItemState(StrEnum):
    """What became of one letter of a replay.

    `sent` is not yet heard of, `unanswered` was not heard of in time, `skipped` was not sent and
    `refused` was not taken by the broker.
    """

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    UNANSWERED = "unanswered"
    SKIPPED = "skipped"
    REFUSED = "refused"


class LetterScope(StrEnum):
    """Which letters are listed; `dead` are those whose message is nowhere else, `all` those that
    are done too."""

    DEAD = "dead"
    SENT = "sent"
    DONE = "done"
    DISCARDED = "discarded"
    REPLACED = "replaced"
    ALL = "all"

    @property
    def states(self) -> tuple[LetterState, ...]:
        if self is LetterScope.ALL:
            return tuple(LetterState)
        return HERE if self is LetterScope.DEAD else (LetterState(self.value),)


OPEN: Final = (ItemState.WAITING, ItemState.SENDING, ItemState.SENT)
"""What it is not known yet of a letter of a replay how it ended."""
