"""What the last reconciliation of a system said, as a document in its data folder: the command and
the console write the same one, and the console shows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from pydantic import BaseModel

from saga.declaration import Saga
from saga.dlq.audit import who
from saga.document import SavedDocument
from saga.reconcile import Report
from saga.reconcile.verdicts import RuleStanding, verdicts
from saga.version import engine_version

OFFENDERS_MAX: Final = 200
"""Of one rule, and of one kind of decisions, that are kept; how many there were is kept too."""
DETAIL_MAX_CHARACTERS: Final = 1_000


class SavedViolation(BaseModel):
    """What breaks a rule."""

    subject: str
    detail: str


class SavedVerdict(BaseModel):
    """A rule, and what was found of it: how often it is `broken`, and the first violations."""

    name: str
    standing: RuleStanding
    broken: int = 0
    violations: list[SavedViolation] = []
    checked: int | None = None
    """Rows of states, or events, that it was held against; None if that is not counted."""


class SavedSubjects(BaseModel):
    """Subjects that an operator has to decide on: how many, and the first of them."""

    count: int
    subjects: list[str]


class SavedReport(SavedDocument):
    """What a reconciliation said; see `saga.reconcile.Report`."""

    file_name = "books.json"
    written_by = "saga reconcile"

    by: str
    """Who asked for it, and where."""
    command: str
    """What they asked."""
    seconds: float
    grace_seconds: float
    ok: bool
    violations: int
    verdicts: list[SavedVerdict]
    for_people: dict[str, SavedSubjects]
    checked: dict[str, int]
    dead_letters: dict[str, int]
    not_covered: list[str]
    unread: list[str]

    @classmethod
    def of(
        cls,
        saga: Saga,
        report: Report,
        *,
        command: str,
        began_at: datetime,
        took: timedelta,
        grace_seconds: float,
    ) -> SavedReport:
        """A report, as it is kept."""
        return cls(
            saga=saga.name,
            version=engine_version(),
            by=who(),
            command=command,
            began_at=began_at,
            seconds=took.total_seconds(),
            grace_seconds=grace_seconds,
            ok=report.ok,
            violations=len(report.violations),
            verdicts=[
                SavedVerdict(
                    name=one.name,
                    standing=one.standing,
                    broken=len(one.violations),
                    violations=[
                        SavedViolation(
                            subject=_in_utf8(violation.subject),
                            detail=_in_utf8(violation.detail[:DETAIL_MAX_CHARACTERS]),
                        )
                        for violation in one.violations[:OFFENDERS_MAX]
                    ],
                    checked=one.checked,
                )
                for one in verdicts(saga, report)
            ],
            for_people={
                name: SavedSubjects(
                    count=len(subjects), subjects=list(map(_in_utf8, subjects[:OFFENDERS_MAX]))
                )
                for name, subjects in report.for_people.items()
            },
            checked=dict(report.checked),
            dead_letters=dict(report.dead_letters),
            not_covered=list(report.not_covered),
            unread=list(report.unread),
        )


def _in_utf8(text: str) -> str:
    """What others wrote may have halves of characters in it, which no file takes."""
    return text.encode(errors="backslashreplace").decode()
