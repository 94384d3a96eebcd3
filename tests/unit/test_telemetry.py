"""What a log record says, for programs and for people."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from saga.envelope import Envelope, trace_id_of, wrap
from saga.message import Priority
from saga.runtime.telemetry import ABOUT, LogFormat, configure_logging, give_up
from tests.words import Voided

log = logging.getLogger("tests.telemetry")
THING = UUID(int=7)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is the process's: put it back."""
    root, hook, about = logging.getLogger(), sys.excepthook, ABOUT.get()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)
    ABOUT.set(about)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def standard_error(
    monkeypatch: pytest.MonkeyPatch, format: LogFormat, stream: io.StringIO | None = None
) -> io.StringIO:
    said = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    configure_logging("order", "info", format)
    return said


def message() -> Envelope[Any]:
    return wrap(
        Voided(thing=THING),
        id="event-1",
        source="/services/asker",
        time=datetime(2030, 1, 1, tzinfo=UTC),
        priority=Priority.NORMAL,
    )


def test_a_record_is_one_json_document_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)

    log.warning("two\nlines about %s", "“this”")

    (line,) = said.getvalue().splitlines()
    record = json.loads(line)
    moment = datetime.fromisoformat(record.pop("time"))
    assert moment.utcoffset() is not None
    assert record == {
        "level": "warning",
        "service": "order",
        "logger": "tests.telemetry",
        "message": "two\nlines about “this”",
    }


def test_a_record_names_the_message_its_task_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)

    async def work() -> None:
        ABOUT.set(message())
        log.info("worked on")

    async def two_tasks() -> None:
        await asyncio.create_task(work())
        log.info("something else")

    asyncio.run(two_tasks())

    first, second = map(json.loads, said.getvalue().splitlines())
    assert first["subject"] == str(THING)
    assert first["event"] == "event-1"
    assert first["trace"] == trace_id_of(str(THING))
    assert not {"subject", "event", "trace"} & second.keys()


def test_what_is_said_with_a_record_counts_more_than_what_its_task_works_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)
    ABOUT.set(message())

    log.info("about another", extra={"event": "event-2"})

    assert json.loads(said.getvalue())["event"] == "event-2"


def test_a_record_may_name_a_subject_of_any_saga(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)

    log.warning("cannot do what is due", extra={"subject": "lease-1"})

    assert json.loads(said.getvalue())["subject"] == "lease-1"


def test_an_error_has_its_stack_within_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)

    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("it failed")

    record = json.loads(said.getvalue())
    assert record["error"]["type"] == "ValueError"
    assert record["error"]["message"] == "no such thing"
    assert "test_telemetry.py" in record["error"]["stack"]


@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.TEXT])
def test_a_password_in_an_address_is_not_written(
    format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = standard_error(monkeypatch, format)

    log.error("lost amqp://order:hush-hush@rabbitmq:5672/ and http://plain.example/a@b:c")

    assert "hush-hush" not in said.getvalue()
    assert "amqp://order:***@rabbitmq:5672/ and http://plain.example/a@b:c" in said.getvalue()


@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.TEXT])
def test_a_text_of_others_is_neither_obeyed_by_a_terminal_nor_another_record(
    format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = standard_error(monkeypatch, format)
    forged = "\x1b[2J\x9b\u202e\n2030-01-01 00:00:00,000 order INFO paid"

    try:
        raise ValueError(forged)
    except ValueError:
        log.exception("a message of type %s", forged, extra={"event": forged})

    first, *more = said.getvalue().splitlines()
    assert all(line.isprintable() for line in (first, *more))
    assert all(line.startswith("  ") for line in more)
    if format is LogFormat.JSON:
        assert json.loads(first)["message"] == f"a message of type {forged}"
        assert not more


def test_at_a_terminal_a_record_is_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.AUTO, Terminal())
    ABOUT.set(message())

    log.info("ready")

    trace = trace_id_of(str(THING))
    about = f"[subject={THING} event=event-1 trace={trace}]"
    assert said.getvalue().endswith(f"order INFO tests.telemetry: ready {about}\n")


def test_away_from_a_terminal_it_is_json_unless_text_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_json = standard_error(monkeypatch, LogFormat.AUTO)
    log.info("ready")
    assert json.loads(assert_json.getvalue())["message"] == "ready"

    text = standard_error(monkeypatch, LogFormat.TEXT)
    log.info("ready")
    assert text.getvalue().endswith("ready\n")


def test_an_error_nobody_foresaw_is_a_record_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)
    error = RuntimeError("impossible")

    sys.excepthook(RuntimeError, error, None)

    record = json.loads(said.getvalue())
    assert record["level"] == "critical"
    assert record["error"]["message"] == "impossible"


def test_giving_up_is_one_record_and_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)
    monkeypatch.setenv("LOG_FORMAT", "json")

    with pytest.raises(SystemExit) as end:
        give_up("order", OSError("cannot listen"))

    assert end.value.code == 1
    record = json.loads(said.getvalue())
    assert (record["level"], record["service"], record["message"]) == (
        "critical",
        "order",
        "cannot listen",
    )


def test_giving_up_for_an_error_without_words_says_what_kind_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = standard_error(monkeypatch, LogFormat.JSON)
    monkeypatch.setenv("LOG_FORMAT", "json")

    with pytest.raises(SystemExit):
        give_up("order", TimeoutError())

    assert json.loads(said.getvalue())["message"] == "TimeoutError"
