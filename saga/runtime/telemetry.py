"""Logs on standard error: JSON for programs, a line of text for people at a terminal.

A record says which message it is about (subject, event, trace) where it is logged while one is
being worked on. Nothing is prepared for that until a line is logged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from saga.runtime.urls import without_passwords
from saga.text import harmless

if TYPE_CHECKING:
    from saga.envelope import Envelope

log = logging.getLogger(__name__)

ABOUT: Final[ContextVar[Envelope[Any] | None]] = ContextVar("about", default=None)
"""The message that the current task works on."""
STACK_MAX_CHARACTERS: Final = 8_000
"""The end of a traceback says most, so that is what is kept of a longer one."""


class LogFormat(StrEnum):
    """How a record is written."""

    AUTO = "auto"
    """As text at a terminal, else as JSON."""
    JSON = "json"
    TEXT = "text"


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
        if record.exc_info and (error := record.exc_info[1]) is not None:
            document["error"] = {
                "type": type(error).__name__,
                "message": str(error),
                "stack": self.formatException(record.exc_info)[-STACK_MAX_CHARACTERS:],
            }
        return without_passwords(json.dumps(document))  # In ASCII: nothing a terminal obeys.


class TextFormatter(logging.Formatter):
    """A line to read, with a traceback below it where there is one: indented, so that nothing
    in it looks like another record."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s {service} %(levelname)s %(name)s: %(message)s%(about)s")

    def format(self, record: logging.LogRecord) -> str:
        about = " ".join(f"{name}={value}" for name, value in _about(record).items())
        record.about = f" [{about}]" if about else ""
        return without_passwords(super().format(record))

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
    if _for_people(format):
        sys.exit(f"error: {harmless(without_passwords(str(error)))}")
    configure_logging(service, "INFO", LogFormat.JSON)
    log.critical("%s", error)
    sys.exit(1)


def _for_people(format: LogFormat) -> bool:
    return format is LogFormat.TEXT or (format is LogFormat.AUTO and sys.stderr.isatty())


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
