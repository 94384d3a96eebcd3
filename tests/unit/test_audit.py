"""The record of decisions as files, and the keys that are kept as hashes."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from random import Random
from typing import Any, Final, Self

import pytest

from saga.auth import audit, keys
from saga.auth.audit import AuditError, AuditTrail, CallerKind, entries
from saga.auth.caller import AuthMethod, Caller, NotAllowed, covers
from saga.auth.keys import ApiKeys, KeysError, new_key, read_keys, write_keys
from saga.errors import InputError
from saga.runtime.kernel.tables import utc_now

MOMENT: Final = datetime(2030, 1, 31, 12, tzinfo=UTC)
OLGA = Caller("olga", AuthMethod.TOKEN, frozenset({"*:read"}))
KIM = replace(OLGA, subject="kim", owner="kim")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    audit.log.propagate = True


def kept(folder: Path, process: str, keep_bytes: int = 1_000_000) -> AuditTrail:
    return AuditTrail.kept(folder, process, keep_bytes, asked_for=True)


def decide(trail: AuditTrail, number: int, caller: Caller = OLGA) -> None:
    trail.decided(
        caller, action="GET /rooms/{room}", scope="rooms:read", subject=str(number), allowed=True
    )


def test_decisions_are_read_as_they_were_recorded_the_latest_first(tmp_path: Path) -> None:
    for process in ("one", "two"):
        trail = kept(tmp_path, process, 1_000_000)
        decide(trail, 1)
        trail.decided(None, action="GET /", scope="", allowed=False, reason="no\ntoken")

    found = [*entries(tmp_path)]

    assert [(one.process, one.who, one.allowed, one.reason) for one in found] == [
        ("two", None, False, "no\ntoken"),
        ("two", "olga", True, ""),
        ("one", None, False, "no\ntoken"),
        ("one", "olga", True, ""),
    ]
    assert all(len(file.read_text().splitlines()) <= 1 for file in tmp_path.glob("*.jsonl"))


def test_two_participants_in_one_process_have_a_record_each(tmp_path: Path) -> None:
    one, two = kept(tmp_path, "one"), kept(tmp_path, "two")
    for number in range(4):
        decide(one if number % 2 else two, number)

    assert [(e.process, e.subject) for e in entries(tmp_path)] == [
        ("one", "3"),
        ("two", "2"),
        ("one", "1"),
        ("two", "0"),
    ]


def test_the_trail_is_turned_over_and_only_so_much_of_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_MAX_BYTES", 2_000)
    monkeypatch.setattr(audit, "_LOOK_AFTER_LINES", 5)
    trail = kept(tmp_path, "one", 10_000)

    for number in range(300):
        decide(trail, number)

    sizes = [file.stat().st_size for file in tmp_path.glob("*.jsonl")]
    assert len(sizes) > 2
    assert sum(sizes) < 12_000
    subjects = [int(one.subject or -1) for one in entries(tmp_path)]
    assert subjects == [*range(299, 299 - len(subjects), -1)]


def test_callers_of_one_kind_push_out_no_decision_about_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_MAX_BYTES", 2_000)
    monkeypatch.setattr(audit, "STRANGERS_KEEP_BYTES", 6_000)
    monkeypatch.setattr(audit, "_LOOK_AFTER_LINES", 5)
    trail = kept(tmp_path, "one", 10_000)
    for number in range(20):
        decide(trail, number)
    for number in range(300):
        trail.decided(None, action="GET /rooms", scope="", allowed=False, reason="no token")
        decide(trail, number, KIM)
    for number in range(20, 30):  # Nor do the known ones push the strangers' out.
        decide(trail, number)

    found = [*entries(tmp_path)]
    assert [int(e.subject or -1) for e in found if e.who == "olga"] == [*range(29, -1, -1)]
    assert 0 < sum(e.who == "kim" for e in found) < 300
    strangers = [*tmp_path.glob("one-strangers*.jsonl")]
    assert len(strangers) >= 2
    assert sum(file.stat().st_size for file in strangers) < 8_000
    assert 0 < sum(e.who is None for e in found) < 300


def test_processes_that_share_a_file_lose_nothing_when_it_is_turned_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_MAX_BYTES", 1_000)
    monkeypatch.setattr(audit, "_LOOK_AFTER_LINES", 3)
    both = [audit.Trail(tmp_path, "one", 1_000_000) for _ in range(2)]

    for number in range(200):
        decide(AuditTrail("one", {CallerKind.ALL: both[number % 2]}), number)

    assert sorted(int(one.subject or -1) for one in entries(tmp_path)) == [*range(200)]


async def test_decisions_wait_for_others_and_keep_the_time_at_which_they_were_made(
    tmp_path: Path,
) -> None:
    trail = kept(tmp_path, "one")
    before = utc_now()
    decide(trail, 1)
    after = utc_now()
    assert (tmp_path / "one.jsonl").stat().st_size == 0

    async with asyncio.timeout(30):
        while not (tmp_path / "one.jsonl").stat().st_size:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)

    (found,) = entries(tmp_path)
    assert before <= found.at <= after


async def test_not_more_than_so_many_decisions_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_WAITING_MAX", 5)
    trail = kept(tmp_path, "one")

    for number in range(12):
        decide(trail, number)

    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 10
    trail.close()
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    assert [json.loads(line)["process"] for line in lines] == ["one"] * 12


RECORDER = """
import asyncio, os, signal, sys
from pathlib import Path
from saga.auth.audit import AuditTrail
from saga.auth.caller import AuthMethod, Caller

def decide(trail, kind, number):
    olga = Caller("olga", AuthMethod.TOKEN, frozenset({"*"}), "olga" if kind == "own" else None)
    trail.decided(
        None if kind == "stranger" else olga,
        action=kind,
        scope="rooms:write" if kind in ("change", "own") else "rooms:read",
        subject=str(number),
        allowed=kind not in ("refusal", "stranger"),
        personal=kind == "look",
    )

async def main():
    trail = AuditTrail.kept(Path(sys.argv[1]), "one", 1_000_000, asked_for=True)
    for number, kind in enumerate(sys.argv[2:]):
        decide(trail, kind, number)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["look", "refusal", "stranger", "change"])
def test_what_matters_most_is_recorded_even_if_the_process_is_killed_at_once(
    kind: str, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", RECORDER, str(tmp_path), kind], check=False, timeout=60
    )

    assert killed.returncode == -signal.SIGKILL
    assert [one.action for one in entries(tmp_path)] == [kind]


def test_ordinary_lines_before_one_that_matters_are_kept_with_it_and_later_ones_may_be_lost(
    tmp_path: Path,
) -> None:
    subprocess.run(
        [sys.executable, "-c", RECORDER, str(tmp_path), "read", "own", "look", "read", "own"],
        check=False,
        timeout=60,
    )

    # What an owner does for themselves is in another file, and waits there.
    assert [one.action for one in entries(tmp_path)] == ["look", "read"]


async def test_a_line_that_cannot_be_made_costs_no_other_one_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trail = kept(tmp_path, "one")
    decide(trail, 1)
    broken: Any = object()
    trail.decided(
        replace(OLGA, name=broken), action="GET /broken", scope="rooms:read", allowed=True
    )
    decide(trail, 2)
    trail.close()

    assert [one.subject for one in entries(tmp_path)] == ["2", "1"]
    (told,) = [one.getMessage() for one in caplog.records if "lacks a line" in one.getMessage()]
    assert "GET /broken" in told


def test_a_line_that_cannot_be_made_fails_no_request_where_lines_are_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    trail = AuditTrail.kept(tmp_path / "file" / "x", "one", 1_000_000, asked_for=False)
    try:
        broken: Any = object()
        trail.decided(replace(OLGA, name=broken), action="GET /", scope="", allowed=True)
    finally:
        audit.log.handlers.clear()

    assert "lacks a line" in caplog.text


# --- lines that are out of order ------------------------------------------------------------------


def plant(file: Path, ats: Iterable[float]) -> None:
    """Lines of the file of several processes, with these times in seconds after some moment."""
    with file.open("a", encoding="utf-8") as lines:
        for number, at in enumerate(ats):
            line = {
                "at": (MOMENT + timedelta(seconds=at)).isoformat(),
                "process": "one",
                "allowed": True,
                "who": "olga",
                "how": "token",
                "action": f"{number}",
            }
            lines.write(json.dumps(line) + "\n")


def out_of_order(seed: int, count: int) -> list[float]:
    """Times as processes write them that share a file: each some time after it decided."""
    random = Random(seed)
    decided = [random.uniform(0, 60) for _ in range(count)]
    delays = [random.choice((0.0, 0.05, audit.OUT_OF_ORDER_SECONDS)) for _ in decided]
    written = sorted(zip(decided, delays, strict=True), key=sum)
    return [at for at, _ in written]


@pytest.mark.parametrize("seed", range(5))
def test_lines_of_several_processes_are_found_up_to_any_moment_in_the_order_of_time(
    seed: int, tmp_path: Path
) -> None:
    ats = out_of_order(seed, 600)
    assert ats != sorted(ats)
    plant(tmp_path / "one.jsonl", ats)

    for until in (None, *range(-1, 62, 3)):
        moment = None if until is None else MOMENT + timedelta(seconds=until)
        found = [one.at for one in entries(tmp_path, moment)]
        wanted = [MOMENT + timedelta(seconds=at) for at in ats if until is None or at <= until]
        assert found == sorted(wanted, reverse=True), until


def test_the_one_line_of_before_that_was_written_late_is_not_missed(tmp_path: Path) -> None:
    late = audit.OUT_OF_ORDER_SECONDS * 0.9
    ats = [
        *(n / 10 for n in range(100)),
        10 + late,
        *([10 + late] * 200),
        10.0,
        *([11 + late] * 300),
    ]
    plant(tmp_path / "one.jsonl", ats)

    latest = next(entries(tmp_path, MOMENT + timedelta(seconds=10)))

    assert latest.at == MOMENT + timedelta(seconds=10)


def test_a_disk_that_takes_half_a_line_costs_no_line_that_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trail = kept(tmp_path, "one")
    write, room = os.write, [30, 0]

    def nearly_full(descriptor: int, data: bytes) -> int:
        if not room:
            return write(descriptor, data[:50])  # As a disk may: the rest is to be given again.
        if taken := room.pop(0):
            return write(descriptor, data[:taken])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", nearly_full)
    for number in range(3):
        decide(trail, number)

    assert "lacks lines" in caplog.text
    assert [one.subject for one in entries(tmp_path)] == ["2", "1"]


def test_texts_that_no_json_can_hold_are_recorded_as_their_escapes(tmp_path: Path) -> None:
    trail = kept(tmp_path, "one", 1_000_000)
    bad = "a\ud800"
    trail.decided(
        Caller(bad, AuthMethod.TOKEN, frozenset(), name=bad),
        action=bad,
        scope="",
        subject=bad,
        allowed=False,
        reason=bad,
        address=bad,
    )
    trail.decided(None, action="GET /", scope="", allowed=False, reason="\ud800" * 1_000)

    stranger, known = entries(tmp_path)
    assert len(stranger.reason) == audit.TEXT_MAX_CHARACTERS
    said = {known.who, known.name, known.action, known.subject, known.reason, known.address}
    assert said == {"a\\ud800"}


@pytest.mark.parametrize("text", ['"', "\\", "%b", "\n", "}", ",", "é\u2028", "x" * 300, ""])
def test_a_line_tells_each_thing_as_it_was_whatever_others_were_told_before(
    text: str, tmp_path: Path
) -> None:
    trail = kept(tmp_path, "one")
    told = ("who", "name", "action", "subject", "reason", "address")
    for changed in told:
        for _ in range(2):
            texts = {each: each for each in told} | {changed: text}
            caller = replace(OLGA, subject=texts["who"], name=texts["name"])
            rest: dict[str, Any] = {
                each: texts[each] for each in ("action", "subject", "reason", "address")
            }
            trail.decided(caller, scope="rooms:read", allowed=True, personal=True, **rest)
    trail.close()

    found = [json.loads(line) for line in (tmp_path / "one.jsonl").read_bytes().splitlines()]
    for number, line in enumerate(found):
        texts = {each: each for each in told} | {told[number // 2]: text[:255]}
        assert {each: line[each] for each in told} == texts
        assert line["process"] == "one"
        assert line["how"] == "token"
        assert line["scope"] == "rooms:read"
        assert line["allowed"] is line["personal"] is True
    assert len(found) == 2 * len(told)


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    trail = kept(tmp_path, "one", 1_000_000)
    decide(trail, 1)
    with (tmp_path / "one.jsonl").open("ab") as file:
        file.write(b"\xff\n{}\n" + b"x" * 100_000 + b"\nnull\n")
    decide(trail, 2)

    unread: list[Path] = []
    found = [*entries(tmp_path, unread=unread.append)]
    assert [one.subject for one in found] == ["2", "1"]
    assert unread == [tmp_path / "one.jsonl"] * 4


def test_a_folder_that_cannot_be_listed_is_not_taken_for_one_without_decisions(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(AuditError, match="cannot read"):
        next(entries(tmp_path / "file"))
    assert [*entries(tmp_path / "nowhere")] == []


def test_when_a_key_was_used_is_not_known_where_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / keys.USED_FOLDER).touch()

    with pytest.raises(KeysError, match="is not known"):
        keys.last_used(tmp_path, "c23b76b8d8")
    assert keys.last_used(tmp_path / "nowhere", "c23b76b8d8") is None


def test_a_folder_that_somebody_asked_for_has_to_take_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="AUDIT_DIR"):
        AuditTrail.kept(tmp_path / "file" / "x", "one", 1_000_000, asked_for=True)


def test_without_a_folder_decisions_go_to_the_logger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    trail = AuditTrail.kept(tmp_path / "file" / "x", "one", 1_000_000, asked_for=False)
    audit.log.addHandler(caplog.handler)
    try:
        decide(trail, 7)
    finally:
        audit.log.handlers.clear()

    assert json.loads(caplog.messages[-1])["subject"] == "7"
    assert logging.getLogger("saga.audit") is audit.log


# --- keys -----------------------------------------------------------------------------------------


def test_of_a_key_only_its_hash_is_kept_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "api_keys.json"
    text, key = new_key("reception", ["rooms:read"], owner="ada", now=utc_now())
    write_keys(file, [key])

    assert text.rpartition("_")[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert ApiKeys(file).caller(text) == Caller(
        f"key:{key.id}", AuthMethod.KEY, frozenset({"rooms:read"}), "ada"
    )


def test_the_owner_of_a_key_is_named_in_clear(tmp_path: Path) -> None:
    sealed = f"~1.{'A' * 22}.{'B' * 23}"
    with pytest.raises(InputError, match="in clear"):
        new_key("reception", ["rooms:read"], owner=sealed, now=utc_now())

    text, key = new_key("reception", ["rooms:read"], owner="ada", now=utc_now())
    write_keys(tmp_path / "api_keys.json", [key.model_copy(update={"owner": sealed})])
    with pytest.raises(NotAllowed, match="sealed"):
        ApiKeys(tmp_path / "api_keys.json").caller(text)


def test_a_key_that_is_not_quite_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "api_keys.json"
    text, key = new_key("reception", ["rooms:read"], now=utc_now())
    write_keys(file, [key])
    known = ApiKeys(file)
    other = new_key("other", ["*"], now=utc_now())[0]

    for wrong in (
        text[:-1], f"{text}A", text.upper(), other, f"{text[:19]}{other[19:]}", "", "x", "\ud800",
    ):  # fmt: skip
        with pytest.raises(NotAllowed) as error:
            known.caller(wrong)
        assert text.rpartition("_")[2] not in error.value.reason


def test_a_key_ends_when_it_expires(tmp_path: Path) -> None:
    file = tmp_path / "api_keys.json"
    past = utc_now() - timedelta(days=2)
    text, key = new_key("old", ["*"], expires_at=past + timedelta(days=1), now=past)
    write_keys(file, [key])

    with pytest.raises(NotAllowed, match="expired"):
        ApiKeys(file).caller(text)


def test_a_key_that_was_known_before_ends_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    file, now = tmp_path / "api_keys.json", utc_now()
    ends, ends_key = new_key("ends", ["*"], expires_at=now + timedelta(hours=1), now=now)
    revoked, revoked_key = new_key("revoked", ["*"], now=now)
    write_keys(file, [ends_key, revoked_key])
    known = ApiKeys(file)
    assert [known.caller(text).name for text in (ends, revoked)] == ["ends", "revoked"]

    write_keys(file, [ends_key.model_copy(update={"scopes": ("rooms:read",)})])
    with pytest.raises(NotAllowed, match="revoked"):
        known.caller(revoked)
    assert known.caller(ends).scopes == {"rooms:read"}

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(time.time(), tz)

    later = time.time() + 3_601
    monkeypatch.setattr(keys, "datetime", Later)
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(NotAllowed, match="expired"):
        known.caller(ends)


def test_keys_that_cannot_be_read_any_more_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    file = tmp_path / "api_keys.json"
    text, key = new_key("reception", ["*"], now=utc_now())
    write_keys(file, [key])
    known = ApiKeys(file)

    file.write_text("{")
    assert known.caller(text).name == "reception"
    assert "stay valid" in caplog.text
    file.unlink()
    with pytest.raises(NotAllowed):
        known.caller(text)


@pytest.mark.parametrize("content", ["{", "[]", '{"keys": [{}]}', '{"keys": 1}', " " * 1_000_001])
def test_a_file_that_holds_no_keys_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "api_keys.json"
    file.write_text(content)

    with pytest.raises(KeysError, match=r"api_keys\.json"):
        read_keys(file)


@pytest.mark.parametrize("scope", ["", "rooms", "rooms:", ":read", "Rooms:read", "a b:c", "*:*:*"])
def test_a_scope_that_is_none_makes_no_key(scope: str) -> None:
    with pytest.raises(InputError):
        new_key("x", [scope], now=utc_now())


def test_that_a_key_is_used_is_noted_once_a_minute(tmp_path: Path) -> None:
    file = tmp_path / "api_keys.json"
    text, key = new_key("reception", ["*"], now=utc_now())
    write_keys(file, [key])
    known = ApiKeys(file, tmp_path / "audit")
    assert keys.last_used(tmp_path / "audit", key.id) is None

    known.caller(text)
    noted = tmp_path / "audit" / "keys" / key.id
    os.utime(noted, (1, 1))
    known.caller(text)

    assert noted.stat().st_mtime == 1
    assert time.time() > 1


@pytest.mark.parametrize(
    ("granted", "scope", "is_covered"),
    [
        ("*", "personal:read", True),
        ("*:read", "rooms:read", True),
        ("*:read", "rooms:write", False),
        ("*:read", "personal:read", False),
        ("personal:read", "personal:read", True),
        ("rooms:*", "rooms:write", True),
        ("rooms:*", "rooms2:write", False),
        ("rooms:read", "rooms:write", False),
    ],
)
def test_what_is_granted_covers_so_much(granted: str, scope: str, is_covered: bool) -> None:
    assert covers(frozenset({granted}), scope) is is_covered
