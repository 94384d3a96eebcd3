"""What a dead letter is, what goes out again, and how a replay is paced."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pamqp import encode

from saga.dlq import SelectionChanged, tables
from saga.dlq.edit import text_of, with_values
from saga.dlq.letters import (
    REPLAYS,
    Copy,
    DeadLetter,
    copy_of,
    digest_of,
    from_text,
    posting_of,
    printable_body,
    to_json,
)
from saga.dlq.replay import CATCH_UP, ReplaySettings, _Pace
from saga.dlq.selection import FrozenSelection, Selection
from saga.dlq.states import HERE, LetterState
from saga.dlq.store import Store
from saga.errors import InputError
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import KEPT, key_of
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import DEAD_EXCHANGE
from saga.text import harmless

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DIED = "2029-12-31T23:59:00+00:00"


def delivered(
    body: bytes = b'{"id": "event-1", "type": "order.placed", "subject": "order-1"}',
    message_id: str | None = "event-1",
    headers: dict[str, Any] | None = None,
    **ours: Any,
) -> Delivery:
    table = {name.replace("_", "-"): value for name, value in ours.items()} | (headers or {})
    properties = {
        "headers": encode.field_table(table),
        "timestamp": int(NOW.timestamp()).to_bytes(8),
        "type": frames.short("order.placed"),
    }
    if message_id is not None:
        properties["message_id"] = frames.short(message_id)
    return Delivery(1, False, DEAD_EXCHANGE, "payment", frames.join(properties), body)


def letter_of(copy: Copy, **values: Any) -> DeadLetter:
    fields = {
        name: getattr(copy, name)
        for name in DeadLetter.__dataclass_fields__
        if name in Copy.__dataclass_fields__
    }
    return DeadLetter(
        **fields | {"number": 1, "state": LetterState.DEAD, "copies": 1, "note": ""} | values
    )


def test_a_copy_tells_what_its_service_noted() -> None:
    copy = copy_of(
        delivered(
            x_saga_reason="failed",
            x_saga_error_type="Away",
            x_saga_error="no answer",
            x_saga_fingerprint="abc",
            x_saga_attempts=4,
            x_saga_replays=2,
            x_saga_origin_queue="payment.high",
            x_saga_first_failed_at="2029-12-31T23:58:00+00:00",
            x_saga_last_failed_at=DIED,
        ),
        "payment",
        NOW,
    )
    assert (copy.key, copy.event_id, copy.subject) == ("event-1", "event-1", "order-1")
    assert (copy.queue, copy.fingerprint, copy.attempts) == ("payment.high", "abc", 4)
    assert (copy.died, copy.replays) == (DIED, 2)
    assert copy.first_failed_at < copy.last_failed_at < NOW


def test_a_copy_tells_what_the_broker_noted() -> None:
    death = {"reason": "delivery_limit", "queue": "payment.high", "time": NOW}
    copy = copy_of(delivered(headers={"x-death": [death]}), "payment", NOW)
    assert (copy.reason, copy.queue, copy.last_failed_at) == (
        "delivery_limit",
        "payment.high",
        NOW,
    )
    assert copy.died == NOW.isoformat()


def test_of_what_the_broker_set_aside_only_a_retrys_headers_of_ours_are_believed() -> None:
    death = {"reason": "delivery_limit", "queue": "payment.high", "time": NOW}
    for exchange, attempts in (("saga.events", 0), ("", 4)):
        headers = {"x-death": [death | {"exchange": exchange}]}
        copy = copy_of(delivered(headers=headers, x_saga_attempts=4), "payment", NOW)
        assert copy.attempts == attempts


def test_a_message_under_the_id_of_another_one_is_known_by_its_body() -> None:
    message = delivered(message_id="m", x_saga_reason="conflicting")
    assert copy_of(message, "p", NOW).key == key_of(None, message.body)


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_cannot_be_reckoned_with_counts_as_none(time: str) -> None:
    copy = copy_of(
        delivered(x_saga_first_failed_at=time, x_saga_last_failed_at=time), "payment", NOW
    )
    assert copy.first_failed_at == copy.last_failed_at == NOW


def test_what_is_longer_than_any_name_is_none() -> None:
    body = f'{{"id": "{"i" * 200_000}", "type": "{"t" * 200_000}", "subject": "s"}}'.encode()
    copy = copy_of(delivered(body), "payment", NOW)
    assert (copy.event_id, copy.type, copy.subject) == (None, "order.placed", "s")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-death": "yesterday"},
        {"x-death": [1]},
        {"x-saga-attempts": "many", "x-saga-last-failed-at": "yesterday"},
        {"x-saga-reason": 7, "x-saga-replays": -1},
    ],
)
def test_whatever_the_headers_say_a_copy_is_made(headers: dict[str, Any]) -> None:
    copy = copy_of(delivered(b"\xff", headers=headers), "payment", NOW)
    assert (copy.queue, copy.attempts, copy.replays) == ("payment.normal", 0, 0)
    assert copy.last_failed_at == NOW


def test_an_undecodable_message_is_known_by_its_message_id_not_by_what_it_says() -> None:
    assert copy_of(delivered(message_id="m", x_saga_reason="undecodable"), "p", NOW).key == "m"
    assert copy_of(delivered(message_id="m", x_saga_reason="failed"), "p", NOW).key == "event-1"
    assert key_of(None, b"{").startswith("sha256:")


def test_nothing_is_left_of_a_messages_failures_but_how_often_it_was_replayed() -> None:
    copy = copy_of(
        delivered(
            traceparent="00-trace",
            x_saga_attempts=4,
            x_saga_error="no answer",
            x_saga_last_failed_at=DIED,
            CC=["elsewhere"],
            headers={"x-death": [], "x-first-death-queue": "q", "x-delivery-count": 3},
        ),
        "payment",
        NOW,
    )
    posting = posting_of(letter_of(copy), replays=2)
    message = frames.properties_in(posting.properties)
    assert message.headers is not None
    assert set(message.headers) == {"traceparent", REPLAYS, KEPT}
    assert message.headers["traceparent"] == "00-trace"
    assert message.headers[REPLAYS] == 2
    assert frames.properties_in(message.headers[KEPT]).headers == {"CC": ["elsewhere"]}
    assert (message.message_id, message.type, message.timestamp) == ("event-1", "order.placed", NOW)
    assert message.expiration is None


def test_headers_survive_being_kept_as_text() -> None:
    headers = {"a": [1, None, {"b": bytearray(b"\xff")}], "at": NOW, "t": "text", "f": 1.5}
    assert from_text(to_json(headers)) == headers


def test_a_body_is_printed_as_what_it_is() -> None:
    assert printable_body(b'{"a": 1}') == {"payload": {"a": 1}}
    assert printable_body(b"[1") == {"payload_text": "[1"}
    assert printable_body(b"\xff") == {"payload_base64": "/w=="}


# --- editing --------------------------------------------------------------------------------------

DOCUMENT = text_of(b'{"type": "t", "data": {"lines": [{"quantity": 1}], "note": "n"}}')


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("data.lines.0.quantity=2", ("data", "lines", 0, "quantity"), 2),
        ("lines.0.quantity=2", ("data", "lines", 0, "quantity"), 2),
        ("note=a=b", ("data", "note"), "a=b"),
        ('note="7"', ("data", "note"), "7"),
        ("type=order.placed", ("type",), "order.placed"),
        ("new=null", ("data", "new"), None),
    ],
)
def test_a_value_is_set_where_its_path_leads(
    setting: str, path: tuple[str | int, ...], value: object
) -> None:
    found = json.loads(with_values(DOCUMENT, [setting]))
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.parametrize(
    "setting", ["note", "=1", "a..b=1", "lines.1.quantity=2", "lines.x=1", "note.x=1", "a.b=1"]
)
def test_a_path_that_leads_nowhere_is_named(setting: str) -> None:
    with pytest.raises(InputError, match="--set"):
        with_values(DOCUMENT, [setting])


# --- pacing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 20.0, 500.0])
def test_a_pace_is_kept_however_often_it_is_asked(rate: float) -> None:
    now = 100.0
    pace = _Pace(rate, lambda: now)
    sent = 0
    for _ in range(2_000):
        now += 0.03
        count = pace.allows(100)
        pace.spend(count)
        sent += count
    assert math.isclose(sent, 60 * rate, rel_tol=0.02, abs_tol=2)


def test_after_a_pause_a_pace_catches_up_only_a_little_faster() -> None:
    now = 100.0
    pace = _Pace(100.0, lambda: now)
    now += 10.0
    first = pace.allows(1_000)
    pace.spend(first)
    assert first == 25
    sent = 0
    for _ in range(100):
        now += 0.01
        count = pace.allows(1_000)
        pace.spend(count)
        sent += count
    assert 100 <= sent <= 100 * CATCH_UP + 1


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"max_failing": 1.1},
        {"max_failing": math.nan},
        {"max_replays": 0},
        {"timeout_seconds": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ReplaySettings(**values)


# --- unexpected errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"$bytes": "!"},
        {"$bytes": 5},
        {"$time": "soon"},
        {"$$number": {"$number": "x"}},
        {"$bytes": "AA==", "b": 1},
        [math.nan, math.inf, -math.inf, 1e300],
        [b"\xff", NOW, None, True, 2**63 - 1, "\x1b"],
    ],
)
def test_headers_that_look_like_our_marks_are_kept_and_read_as_they_were(value: Any) -> None:
    text = to_json({"a": value})
    json.loads(text, parse_constant=pytest.fail)
    assert repr(from_text(text)) == repr({"a": value})


def test_what_was_kept_before_marks_were_told_apart_is_still_read() -> None:
    assert from_text('{"a": {"$bytes": "!"}, "b": NaN}')["a"] == {"$bytes": "!"}


def test_a_body_that_only_python_takes_for_json_is_shown_as_text() -> None:
    assert printable_body(b'{"a": NaN}') == {"payload_text": '{"a": NaN}'}


def dead(body: bytes, message_id: str = "the same", died: str = DIED) -> Copy:
    return copy_of(
        delivered(body, message_id, x_saga_reason="undecodable", x_saga_last_failed_at=died),
        "payment",
        NOW,
    )


def test_messages_of_one_id_and_other_bodies_are_letters_of_their_own(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'letters.db'}")
    first, second, third = dead(b"{1"), dead(b"{2"), dead(b"{3")
    assert store.take([first, second], NOW) == 2
    assert store.take([second, third, first], NOW) == 1
    letters = store.find(Selection())
    assert {letter.body for letter in letters} == {b"{1", b"{2", b"{3"}
    assert [letter.copies for letter in letters] == [1, 1, 1]
    store.close()


@pytest.mark.parametrize("by", ["fingerprint", "type", "service"])
def test_groups_are_counted_from_an_index_alone(tmp_path: Path, by: str) -> None:
    store = Store(f"sqlite:///{tmp_path / 'letters.db'}")
    store.take([dead(b"{%d" % number) for number in range(5)], NOW)
    asked: list[tuple[str, Any]] = []
    engine = store._engine
    sa.event.listen(
        engine,
        "before_cursor_execute",
        lambda _, __, text, values, *___: asked.append((text, values)),
    )

    groups = store.groups(Selection(), HERE, by, limit=3)
    store.deaths(Selection(), HERE, by, groups, NOW, 4)

    with engine.connect() as connection:
        plans = [
            [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)]
            for text, values in asked
            if text.lstrip().startswith("SELECT")
        ]
    store.close()
    looks = [step for plan in plans for step in plan if " letters" in step]
    assert len(looks) > 5
    by_number = "SEARCH letters USING INTEGER PRIMARY KEY (rowid=?)"
    assert looks.count(by_number) == 1  # What is said of the last error.
    assert all("USING COVERING INDEX" in step for step in looks if step != by_number)


def test_letters_of_several_states_are_one_group(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'letters.db'}")
    store.take([dead(b"{%d" % number) for number in range(3)], NOW)
    with store._engine.begin() as connection:
        table = tables.letters
        being_sent = table.c.number == 2
        connection.execute(table.update().where(being_sent).values(state=LetterState.SENDING))

    (group,) = store.groups(Selection(), HERE, "fingerprint")
    (alone,) = store.groups(Selection(), [LetterState.SENDING], "fingerprint")
    everything = store.groups(Selection(), (), "type", limit=1)

    assert (group.letters, alone.letters, everything[0].letters) == (3, 1, 3)
    assert store.groups(Selection(), [LetterState.DISCARDED], "fingerprint", limit=1) == []
    store.close()


def test_copies_that_died_at_the_same_time_are_told_apart_by_what_is_in_them(
    tmp_path: Path,
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'letters.db'}")
    one = dead(b"{")
    other = copy_of(
        delivered(
            b"{",
            "the same",
            x_saga_reason="undecodable",
            x_saga_last_failed_at=DIED,
            a="b",
        ),
        "payment",
        NOW,
    )
    assert store.take([one, other, one], NOW) == 2
    assert store.take([other, one], NOW) == 0
    (letter,) = store.find(Selection())
    assert letter.copies == 2
    assert [died for died, _ in store.copies_of(letter.number)] == [DIED, DIED]
    store.close()


def test_a_message_that_the_broker_delivers_again_is_the_same_copy() -> None:
    once, again = (delivered(b"{", "id", {"a": 1} | count) for count in ({}, COUNTED))
    assert digest_of(once.raw, b"{") == digest_of(again.raw, b"{")


COUNTED: dict[str, Any] = {"x-delivery-count": 1}


def test_text_of_others_cannot_command_a_terminal() -> None:
    assert harmless("a\x1b[2J\x9b\u202e\nb") == "a\\x1b[2J\\x9b\\u202e\\nb"
    assert harmless("é\nb\r", lines=True) == "é\nb\\r"


def failed(id: str, minute: int = 0) -> Copy:
    at = datetime(2020, 1, 1, 12, minute, tzinfo=UTC)
    return copy_of(delivered(b"{" + id.encode(), id), "payment", at)


def test_what_arrives_or_grows_old_later_leaves_what_was_confirmed_as_it_was(
    tmp_path: Path,
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'letters.db'}")
    an_hour_old, at = Selection(older_than=3_600), datetime(2020, 1, 1, 13, tzinfo=UTC)
    store.take([failed("1"), failed("2"), failed("3", minute=30)], NOW)
    shown = store.numbers(an_hour_old, HERE, now=at)
    confirmed = FrozenSelection.read(str(FrozenSelection.of(shown, at)))
    store.take([failed("4")], NOW)

    assert len(store.numbers(an_hour_old, HERE)) == 4
    assert store.discard(an_hour_old, "these two", confirmed=confirmed) == shown == [1, 2]
    with pytest.raises(SelectionChanged, match="2 by now"):
        store.discard(an_hour_old, "once more", confirmed=confirmed)
    store.close()


@pytest.mark.parametrize("text", ["", "x", "1/2", "1/never/x", "-1/2026-01-01/x", "1/0001-01-01/x"])
def test_what_no_page_has_confirmed_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="look again"):
        FrozenSelection.read(text)
