"""What a reconciliation said, as it is kept for the console."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from order_saga import SAGA
from saga.reconcile import Report, Violation
from saga.reconcile import saved as saving
from saga.reconcile.saved import SavedReport
from saga.reconcile.verdicts import RuleStanding
from saga.testing import NOW


def report_of(*violations: Violation) -> Report:
    return Report(
        ok=not violations,
        checked={"events": 7},
        violations=violations,
        dead_letters={"payment": 2},
        for_people={"mail_unknown": ("a", "b")},
    )


def saved(report: Report) -> SavedReport:
    return SavedReport.of(
        SAGA,
        report,
        command="saga reconcile",
        began_at=NOW,
        took=timedelta(seconds=3),
        grace_seconds=10.0,
    )


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    said = saved(report_of(Violation("charged_twice", "order-1", "two charges")))

    said.save(tmp_path)

    assert SavedReport.read(tmp_path) == (said, "")
    assert (tmp_path / SavedReport.file_name).stat().st_mode & 0o077 == 0
    assert (said.violations, said.ok, said.seconds) == (1, False, 3.0)
    assert said.for_people["mail_unknown"].count == 2


def test_offenders_are_bounded_and_how_many_there_were_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saving, "OFFENDERS_MAX", 3)
    holds = RuleStanding.HOLDS
    rule = next(one.name for one in saved(report_of()).verdicts if one.standing is holds)
    found = [Violation(rule, f"order-{n}", "\ud800" + "x" * 5_000) for n in range(9)]

    said = saved(report_of(*found))

    (verdict,) = [one for one in said.verdicts if one.name == rule]
    assert (verdict.standing, verdict.broken) == (RuleStanding.BROKEN, 9)
    assert [each.subject for each in verdict.violations] == ["order-0", "order-1", "order-2"]
    assert all(len(each.detail) < 1_100 for each in verdict.violations)
    said.model_dump_json()  # Halves of characters are no trouble.


def test_what_began_later_stays(tmp_path: Path) -> None:
    last = saved(report_of())
    last.save(tmp_path)

    last.model_copy(update={"began_at": NOW - timedelta(seconds=1)}).save(tmp_path)
    assert SavedReport.read(tmp_path)[0] == last

    newer = last.model_copy(update={"began_at": NOW + timedelta(seconds=1)})
    newer.save(tmp_path)
    assert SavedReport.read(tmp_path)[0] == newer


def test_none_is_no_trouble_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert SavedReport.read(tmp_path) == (None, "")
    file = tmp_path / SavedReport.file_name

    for content in (b"{", b"\xff", b'{"saga": "orders"}'):
        file.write_bytes(content)
        found, why = SavedReport.read(tmp_path)
        assert found is None
        assert str(file) in why

    saved(report_of()).save(tmp_path)
    assert SavedReport.read(tmp_path)[1] == ""
