"""What the last reconciliation of a system said, as a document in its data folder: the command and
the console write the same one, and the console shows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from saga.declaration import Saga
from saga.dlq.audit import who
from saga.limits import Moment
from saga.reconcile import Report
from saga.reconcile.verdicts import RuleStanding, verdicts
from saga.runtime.files import write_whole
from saga.version import engine_version

FILE_NAME: Final = "books.json"
"""In the data folder."""
OFFENDERS_MAX: Final = 200
"""Of one rule, and of one kind of decisions, that are kept; how many there were is kept too."""
DETAIL_MAX_CHARACTERS: Final = 1_000
_FILE_MODE: Final = 0o600


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
    """Subjects that a person has to decide on: how many, and the first of them."""

    count: int
    subjects: list[str]


class SavedReport(BaseModel):
    """What a reconciliation said; see `saga.reconcile.Report`."""

    saga: str
    version: str
    """Of the engine."""
    by: str
    """Who asked for it, and where."""
    command: str
    """What they asked."""
    began_at: Moment
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

    def save(self, folder: Path) -> None:
        """Write it, unless there is one of a reconciliation that began later. Raises `OSError`."""
        there, _ = self.load(folder)
        if there is None or there.saga != self.saga or there.began_at <= self.began_at:
            write_whole(folder / FILE_NAME, self.model_dump_json(indent=1) + "\n", _FILE_MODE)

    @classmethod
    def load(cls, folder: Path) -> tuple[SavedReport | None, str]:
        """The last one of a system, or None; then, if there is a document, why it cannot be
        read."""
        path = folder / FILE_NAME
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8")), ""
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"cannot read {path}: {error.strerror}"
        except UnicodeDecodeError:
            return None, f"cannot read {path}: it is not UTF-8"
        except ValidationError:
            return (
                None,
                f"cannot read {path}: it is not what `saga reconcile` of this version writes",
            )


def _in_utf8(text: str) -> str:
    """What others wrote may have halves of characters in it, which no file takes."""
    return text.encode(errors="backslashreplace").decode()
