"""Logs on standard error: JSON for programs, a line of text for people at a terminal.

A record says which message it is about (subject, event, trace) where it is logged while one is
being worked on. Nothing is prepared for that until a line is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from saga.personal.masks import Hidden
from saga.personal.seal import masked_in
from saga.runtime.urls import without_passwords
from saga.text import harmless

if TYPE_CHECKING:
    from saga.envelope import Envelope

log = logging.getLogger(__name__)

ABOUT: Final[ContextVar[Envelope[Any] | None]] = ContextVar("about", default=None)
"""The message that the current task works on."""
NAMED: Final[ContextVar[Hidden | None]] = ContextVar("named", default=None)
"""Whom the request that is answered, or the message that has failed, names."""
STACK_MAX_CHARACTERS: Final = 8_000
"""The end of a traceback says most, so that is what is kept of a longer one."""


class LogFormat(StrEnum):
    """How a record is written."""

    AUTO = "auto"
    """As text at a terminal, else as JSON."""
    JSON = "json"
    TEXT = "text"


@contextlib.contextmanager
def naming(named: Hidden) -> Iterator[None]:
    """What is logged meanwhile is about who is `named`, and does not say who that is."""
    token = NAMED.set(named)
    try:
        yield
    finally:
        NAMED.reset(token)


def name_nobody() -> None:
    """Mask in log records whom the request or the message at hand names (`NAMED`), whatever handles
    them: the text of an exception takes its place, since handlers may show what its frames
    hold. For within another application, whose handlers and formatters are its own. Wraps the
    record factory that there is; done again, it does nothing."""
    before = logging.getLogRecordFactory()
    if not isinstance(before, _Discreet):
        logging.setLogRecordFactory(_Discreet(before))


class _Discreet:
    """Makes log records as another factory does, which then give no names."""

    def __init__(self, before: Callable[..., logging.LogRecord]) -> None:
        self._before = before

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._before(*args, **kwargs)
        named = NAMED.get()
        if named:
            _mask(record, named)
        return record


@dataclass(frozen=True, slots=True)
class _LoggedError:
    """What is left of an exception in a record."""

    type: str
    message: str
    stack: str


def _mask(record: logging.LogRecord, named: Hidden) -> None:
    """Leave in a record no text with a value of these. The arguments stay apart: some formatters
    take them by their places."""
    record.msg = _masked(record.msg, named)
    if isinstance(record.args, Mapping):
        record.args = {name: _masked(value, named) for name, value in record.args.items()}
    elif record.args:
        record.args = tuple(_masked(value, named) for value in record.args)
    if record.exc_info and (error := record.exc_info[1]) is not None:
        stack = _FORMATTER.formatException(record.exc_info)
        record.exc_text = named.text(stack)
        record.error = _LoggedError(type(error).__name__, named.text(str(error)), record.exc_text)
        record.exc_info = None
    if record.stack_info:
        record.stack_info = named.text(record.stack_info)


def _masked(value: Any, named: Hidden) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    said = str(value)
    masked = named.text(said)
    return value if masked == said and isinstance(value, str) else masked


_FORMATTER: Final = logging.Formatter()


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        failed: _LoggedError | None = getattr(record, "error", None)
        if failed is None and record.exc_info and (error := record.exc_info[1]) is not None:
            stack = self.formatException(record.exc_info)
            failed = _LoggedError(type(error).__name__, str(error), stack)
        if failed is not None:
            document["error"] = {
                "type": failed.type,
                "message": failed.message,
                "stack": failed.stack[-STACK_MAX_CHARACTERS:],
            }
        # In ASCII: nothing a terminal obeys.
        return without_passwords(_naming_nobody(record, json.dumps(document)))


class TextFormatter(logging.Formatter):
    """A line to read, with a traceback below it where there is one: indented, so that nothing
    in it looks like another record."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s {service} %(levelname)s %(name)s: %(message)s%(about)s")

    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{name}={value}" for name, value in _about(record).items())
        record.about = f" [{about}]" if about else ""
        return without_passwords(_naming_nobody(record, super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return harmless(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        return textwrap.indent(harmless(super().formatException(ei), lines=True), "  ")

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's own name
        return textwrap.indent(harmless(super().formatStack(stack_info), lines=True), "  ")


def configure_logging(service: str, level: str, format: LogFormat) -> None:
    """Log to standard error from now on, warnings and what ends the process included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((TextFormatter if _for_people(format) else JsonFormatter)(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    name_nobody()
    logging.captureWarnings(True)
    for noisy in ("httpx", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # They report each lost connection on several loggers, even twice a second. Ours name the cause
    # once (`saga.runtime.retry_loop`).
    for noisy in ("aio_pika", "aiormq"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    sys.excepthook = _unforeseen


def give_up(service: str, error: Exception) -> NoReturn:
    """End the process with status 1, and one line that says why. Needs no logging configured: the
    settings may be what is wrong."""
    asked = os.environ.get("LOG_FORMAT", "").lower()
    format = LogFormat(asked) if asked in tuple(LogFormat) else LogFormat.AUTO
    why = str(error) or type(error).__name__  # A timeout's says nothing.
    if _for_people(format):
        sys.exit(f"error: {harmless(without_passwords(why))}")
    configure_logging(service, "INFO", LogFormat.JSON)
    log.critical("%s", why)
    sys.exit(1)


def _for_people(format: LogFormat) -> bool:
    return format is LogFormat.TEXT or (format is LogFormat.AUTO and sys.stderr.isatty())


def _naming_nobody(record: logging.LogRecord, text: str) -> str:
    """A record's text, a traceback in it for instance, without the values that its message or its
    request is known to name, and with short marks in the place of sealed ones."""
    named = NAMED.get()
    return masked_in(text) if named is None else named.text(text)


def _about(record: logging.LogRecord) -> dict[str, str]:
    """The message that the record is about: what was said with it, or else the task's."""
    envelope = ABOUT.get()
    found: dict[str, str | None] = {}
    if envelope is not None:
        trace = envelope.traceparent
        found = {
            "subject": envelope.subject,
            "event": envelope.id,
            "trace": trace.split("-")[1] if trace else None,
        }
    for name in ("subject", "event", "trace"):
        found[name] = getattr(record, name, None) or found.get(name)
    return {name: value for name, value in found.items() if value}


def _utc(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unforeseen(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("the process ends with an unexpected error", exc_info=(kind, error, traceback))
