"""What came of deciding again: counted, with one example each, so that memory has a limit."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final

LATE_SHARE: Final = 0.05
"""Of the messages that a reaction has taken: so many may have come late without a word, whatever
would have followed from each. Messages overtake each other where one is tried again, or replicas
take turns; that most of them did is no explanation."""
KINDS_MAX: Final = 10_000
"""Differences, and things that were not compared, which are told apart; the others are counted
together."""


class DifferenceKind(StrEnum):
    """In what way a decision is another one."""

    OTHER_EVENT = "publishes another event"
    OTHER_FIELDS = "publishes other values"
    DROPPED = "publishes no such field"
    SPEAKS = "publishes where it published nothing"
    SILENT = "publishes nothing where it published"
    RAISES = "raises an error"
    DUE = "is due at another time"
    PATH = "publishes the same by another path"
    EARLY = "publishes where it published nothing, unless the message came late"


@dataclass(frozen=True, slots=True)
class DifferenceGroup:
    """What is counted as one difference: a reaction, the kind, and what is published now and then.

    `reaction` is that of this working tree; where it has none, what was taken is named instead.
    """

    participant: str
    reaction: str
    kind: DifferenceKind
    what: str


@dataclass(slots=True)
class FoundDifference:
    """How often, and one subject where it is so; `recorded` and `decided` are of that one."""

    group: DifferenceGroup
    count: int
    subject: str
    recorded: str
    decided: str


@dataclass(slots=True)
class NotCompared:
    """How often something could not be compared, or was not looked at, and one subject of these."""

    count: int
    subject: str


@dataclass
class PastFindings:
    """What was compared in one run, and what was found."""

    published: Counter[str] = field(default_factory=Counter)
    """Keyed by participant: decisions that were recorded, and made again."""
    silent: Counter[str] = field(default_factory=Counter)
    """Keyed by participant: messages that led to nothing, and do so again."""
    pending: Counter[str] = field(default_factory=Counter)
    """Keyed by participant: messages on their way, of which there is nothing to compare yet."""
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Keyed by participant and reaction: the messages that it was compared by."""
    ran: set[tuple[str, str]] = field(default_factory=set)
    """Participants and their reactions that anything recorded came to."""
    differing: dict[DifferenceGroup, FoundDifference] = field(default_factory=dict)
    not_told: dict[str, NotCompared] = field(default_factory=dict)
    """Keyed by what: that of which the record cannot tell whether it is the same."""
    not_looked_at: dict[str, NotCompared] = field(default_factory=dict)
    """Keyed by why: what would have to be there to be compared, and is not."""

    def differ(
        self, group: DifferenceGroup, subject: str, recorded: str, decided: str, count: int = 1
    ) -> None:
        """Count a difference."""
        if group not in self.differing and len(self.differing) >= KINDS_MAX:
            group = DifferenceGroup(group.participant, group.reaction, group.kind, "and others")
        found = self.differing.get(group)
        if found is None:
            self.differing[group] = FoundDifference(group, count, subject, recorded, decided)
        else:
            found.count += count

    def drain(self) -> PastFindings:
        """What was found since this was asked last."""
        kept = [getattr(self, each.name) for each in fields(self)]
        found = PastFindings(*(copy(each) for each in kept))
        for each in kept:
            each.clear()
        return found

    def add(self, other: PastFindings) -> None:
        """Count what was found elsewhere as well."""
        self.published += other.published
        self.silent += other.silent
        self.pending += other.pending
        self.taken += other.taken
        self.ran |= other.ran
        for one in other.differing.values():
            self.differ(one.group, one.subject, one.recorded, one.decided, one.count)
        for what, seen in other.not_told.items():
            self.leave(what, seen.subject, seen.count)
        for why, seen in other.not_looked_at.items():
            self.miss(why, seen.subject, seen.count)

    def leave(self, what: str, subject: str, count: int = 1) -> None:
        """Count what the record does not tell."""
        _add(self.not_told, what, subject, count)

    def miss(self, why: str, subject: str, count: int = 1) -> None:
        """Count what was not looked at."""
        _add(self.not_looked_at, why, subject, count)

    @property
    def compared(self) -> int:
        return self.published.total() + self.silent.total()

    def differences(self) -> list[FoundDifference]:
        """The differences, the most frequent first."""
        return self._sorted(late=False)

    def late(self) -> list[FoundDifference]:
        """What is no difference if these few messages came late."""
        return self._sorted(late=True)

    def _sorted(self, *, late: bool) -> list[FoundDifference]:
        early: Counter[tuple[str, str]] = Counter()
        for group, one in self.differing.items():
            if group.kind is DifferenceKind.EARLY:
                early[group.participant, group.reaction] += one.count
        few = {key for key, count in early.items() if count <= LATE_SHARE * self.taken[key]}
        found = [
            one
            for group, one in self.differing.items()
            if late
            is (group.kind is DifferenceKind.EARLY and (group.participant, group.reaction) in few)
        ]
        return sorted(found, key=lambda one: (-one.count, str(one.group)))


def _add(counts: dict[str, NotCompared], key: str, subject: str, count: int) -> None:
    if key not in counts and len(counts) >= KINDS_MAX:
        key = "and others"
    if key in counts:
        counts[key].count += count
    else:
        counts[key] = NotCompared(count, subject)
