"""Setting a message aside, with everything needed to understand it and to try it again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, HeadersType

ERROR_MAX_CHARACTERS = 1_000

REASON = "x-saga-reason"
ERROR_TYPE = "x-saga-error-type"
ERROR = "x-saga-error"
ATTEMPTS = "x-saga-attempts"
FIRST_FAILED_AT = "x-saga-first-failed-at"
LAST_FAILED_AT = "x-saga-last-failed-at"
ORIGIN_QUEUE = "x-saga-origin-queue"
ORIGIN_EXCHANGE = "x-saga-origin-exchange"
ORIGIN_ROUTING_KEY = "x-saga-origin-routing-key"


class Reason(StrEnum):
    """Why a message is dead."""

    UNDECODABLE = "undecodable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Death:
    """What killed a message in `queue`."""

    reason: Reason
    error: Exception
    queue: str
    at: datetime


def dead_letter(message: AbstractIncomingMessage, death: Death) -> aio_pika.Message:
    """The copy of `message` for the dead-letter exchange: same body, same properties, and headers
    that say what happened. Times are ISO 8601 in UTC."""
    at = death.at.astimezone(UTC).isoformat()
    headers: HeadersType = dict(message.headers or {})
    headers |= {
        REASON: str(death.reason),
        ERROR_TYPE: type(death.error).__name__,
        ERROR: str(death.error)[:ERROR_MAX_CHARACTERS],
        ATTEMPTS: _attempts(headers) + 1,
        FIRST_FAILED_AT: headers.get(FIRST_FAILED_AT, at),
        LAST_FAILED_AT: at,
        ORIGIN_QUEUE: death.queue,
        ORIGIN_EXCHANGE: message.exchange or "",
        ORIGIN_ROUTING_KEY: message.routing_key or "",
    }
    return aio_pika.Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        correlation_id=message.correlation_id,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )


def _attempts(headers: HeadersType) -> int:
    attempts = headers.get(ATTEMPTS, 0)
    return attempts if isinstance(attempts, int) else 0
