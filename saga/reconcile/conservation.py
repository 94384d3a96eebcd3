"""No message is lost; and which subjects nothing more will happen to by itself."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

from saga.reconcile.facts import MessageFates
from saga.reconcile.history import OwedMessage
from saga.view import Broken, Violation
from saga.wording import counted

MISSING_TOLD: Final = 5
"""Missing events about one subject whose numbers are listed."""


class Rest:
    """Which subjects are at rest: neither is any event about one within the grace, nor waits a
    message about it to be tried again."""

    def __init__(self, deliveries: MessageFates) -> None:
        self._deliveries = deliveries
        self._retried = {
            letter.subject for letters in deliveries.waiting.values() for letter in letters
        }

    def __call__(self, subject: str) -> bool:
        history = self._deliveries.history
        return (
            subject not in self._retried
            and is_still(self._deliveries, history.last_event_at.get(subject))
            and is_still(self._deliveries, history.latest_event_at.get(subject))
        )

    def busy(self, participant: str, subject: str) -> bool:
        """Whether a participant may still have something about a subject in its hands: a message,
        or a request of which no event tells yet, nor how old it is."""
        if self._deliveries.grace_seconds and subject not in self._deliveries.history.last_event_at:
            return True
        return subject in self._in_hand.get(participant, ())

    @cached_property
    def _in_hand(self) -> Mapping[str, Set[str | None]]:
        dead = {
            (participant, letter.key)
            for participant, letters in self._deliveries.letters.items()
            for letter in letters
        }
        return {
            participant: {o.subject for key, o in undone.items() if (participant, key) not in dead}
            for participant, undone in self._deliveries.undone.items()
        }


def is_still(deliveries: MessageFates, at: datetime | None) -> bool:
    """Whether what happened at that time is longer ago than the grace.

    A time that is further than the grace in the future was told by a clock that is wrong, or has
    been set back since. That time cannot be waited for, so it counts as long ago; and without a
    grace no time counts at all.
    """
    if at is None or not deliveries.grace_seconds:
        return True
    grace = timedelta(seconds=deliveries.grace_seconds)
    return not deliveries.started_at - grace < at <= deliveries.started_at + grace


class Waiting:
    """Says what a subject waits for: its dead letters, and what no participant has dealt with."""

    def __init__(self, deliveries: MessageFates) -> None:
        self._reasons: defaultdict[str, list[str]] = defaultdict(list)
        dead: set[tuple[str, str]] = set()
        for participant, letters in deliveries.letters.items():
            for letter in letters:
                dead.add((participant, letter.key))
                if letter.subject is not None:
                    self._reasons[letter.subject].append(
                        f"waiting on dead letter {letter.key} of {participant} ({letter.reason})"
                    )
        for participant, undone in deliveries.undone.items():
            for key, owed in undone.items():
                if owed.subject is not None and (participant, key) not in dead:
                    self._reasons[owed.subject].append(
                        f"{participant} has not dealt with {owed.type} {key}"
                    )

    def explain(self, subject: str) -> str:
        return "".join(f"; {reason}" for reason in self._reasons.get(subject, ()))


def judge(deliveries: MessageFates) -> Iterator[Violation]:
    """Every message that is missing."""
    for name, rule in RULES.items():
        for subject, detail in rule(deliveries):
            yield Violation(name, subject, detail)


def undecided(deliveries: MessageFates) -> int:
    """Messages that may be lost or only on their way: a busy consumer may hold them."""
    count = 0
    for participant, undone in deliveries.undone.items():
        backlog = deliveries.backlogs.get(participant)
        if backlog is not None and backlog.read:
            known = _accounted_for(deliveries, participant)
            count += sum(
                key not in known and _on_its_way(deliveries, participant, key, owed)
                for key, owed in undone.items()
            )
    return count


def unpublished(deliveries: MessageFates) -> Iterator[Broken]:
    """What a participant has counted as said is in the history or in its outbox."""
    for participant, subjects in deliveries.sequences.items():
        for subject, sequence in subjects.items():
            found = deliveries.history.missing(participant, subject, sequence)
            missing = list(itertools.islice(found, MISSING_TOLD + 1))
            if missing:
                told = ", ".join(map(str, missing[:MISSING_TOLD]))
                yield (
                    subject,
                    f"of the {counted(sequence, 'event')} of {participant} about it, number "
                    f"{told}{' ...' if missing[MISSING_TOLD:] else ''} is neither "
                    f"in the history nor in the outbox",
                )


def lost(deliveries: MessageFates) -> Iterator[Broken]:
    """Every message is done by each participant it concerns, or settled by an operator, or in one
    of its queues, waiting to be tried again, or dead."""
    for participant, undone in deliveries.undone.items():
        known = _accounted_for(deliveries, participant)
        for key, owed in undone.items():
            if key in known or _on_its_way(deliveries, participant, key, owed):
                continue
            if owed.decodable:
                what = f"{owed.type} about {owed.subject} is neither done nor in a queue"
            else:
                what = f"the message sent to {owed.type}, which it cannot read, is not dead"
            yield f"{participant}/{key}", f"{what} of {participant}"


RULES: Final[Mapping[str, Callable[[MessageFates], Iterable[Broken]]]] = {
    rule.__name__: rule for rule in (unpublished, lost)
}
"""Keyed by name."""


def _on_its_way(deliveries: MessageFates, participant: str, key: str, owed: OwedMessage) -> bool:
    """Whether an undone message may be in a work queue, or in the hands of its consumer.

    What a consumer holds cannot be seen from outside. So with a consumer at work, a message is
    only missed once nothing waits before it and it is older than the grace.
    """
    backlog = deliveries.backlogs.get(participant)
    if backlog is None:
        return False
    if not backlog.read:
        return key in backlog.waiting
    return backlog.ready > 0 or not is_still(deliveries, owed.at)


def _accounted_for(deliveries: MessageFates, participant: str) -> Set[str]:
    """The keys of a participant's messages that are dead, waiting, or settled by an operator."""
    letters = (*deliveries.letters.get(participant, ()), *deliveries.waiting.get(participant, ()))
    return {letter.key for letter in letters} | deliveries.settled.get(participant, frozenset())
