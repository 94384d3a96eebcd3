"""Setting a message aside: to wait for its next try, or for a person as a dead letter.

Either way it is a copy with everything needed to understand it and to try it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, HeadersType

from common.limits import ATTEMPT_MAX
from common.messaging.trust import believed_headers

ERROR_MAX_CHARACTERS = 1_000

REASON = "x-saga-reason"
ERROR_TYPE = "x-saga-error-type"
ERROR = "x-saga-error"
ATTEMPTS = "x-saga-attempts"
FINGERPRINT = "x-saga-fingerprint"
SERVICE_VERSION = "x-saga-service-version"
FIRST_FAILED_AT = "x-saga-first-failed-at"
LAST_FAILED_AT = "x-saga-last-failed-at"
REPLAYS = "x-saga-replays"
"""How often the operator's store has sent a message again."""
ORIGIN_QUEUE = "x-saga-origin-queue"
ORIGIN_EXCHANGE = "x-saga-origin-exchange"
ORIGIN_ROUTING_KEY = "x-saga-origin-routing-key"

ADDRESSEE = "addressee"
"""The CloudEvents attribute that names the one participant a corrected copy is for."""


class Reason(StrEnum):
    """Why a message is dead."""

    UNDECODABLE = "undecodable"
    FAILED = "failed"
    CONFLICTING = "conflicting"
    """Another message was done under its source and id."""


# The broker's own notes on dead-lettering. Published again, RabbitMQ 3 would count on from them.
_BROKERS_HEADERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")

_VARIABLE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of one try of a message from `queue`."""

    reason: Reason
    error: Exception
    queue: str
    at: datetime


def key_of(message_id: str | None, body: bytes) -> str:
    """What a message is recognised by: its AMQP message id, or, having none, its body."""
    return message_id or f"sha256:{hashlib.sha256(body).hexdigest()}"


def fingerprint(reason: Reason, error: Exception) -> str:
    """The same for failures that are alike but for ids and numbers: 12 hexadecimal digits."""
    alike = _VARIABLE.sub("*", f"{reason}/{type(error).__name__}/{error}")
    return hashlib.sha256(alike.encode()).hexdigest()[:12]


def headers_of(message: AbstractIncomingMessage, queue: str) -> dict[str, Any]:
    """The headers to be believed of a message from `queue`."""
    return believed_headers(
        message.exchange or "", message.routing_key or "", message.headers, queue
    )


def attempts_in(headers: Mapping[str, Any] | None) -> int:
    """How often a message with these headers has failed before; what is no number of failures
    counts as none."""
    attempts = (headers or {}).get(ATTEMPTS, 0)
    usable = isinstance(attempts, int) and 0 <= attempts < ATTEMPT_MAX
    return attempts if usable else 0


def set_aside(message: AbstractIncomingMessage, failure: Failure) -> aio_pika.Message:
    """The copy of `message` to publish: same body, same properties, and headers that say what
    happened, all times ISO 8601 in UTC. Where the message first came from is kept over retries."""
    at = failure.at.astimezone(UTC).isoformat()
    headers: HeadersType = {
        name: value
        for name, value in headers_of(message, failure.queue).items()
        if not name.startswith(_BROKERS_HEADERS)
    }
    headers.setdefault(FIRST_FAILED_AT, at)
    headers.setdefault(ORIGIN_EXCHANGE, message.exchange or "")
    headers.setdefault(ORIGIN_ROUTING_KEY, message.routing_key or "")
    headers |= {
        REASON: str(failure.reason),
        ERROR_TYPE: type(failure.error).__name__,
        ERROR: str(failure.error)[:ERROR_MAX_CHARACTERS],
        FINGERPRINT: fingerprint(failure.reason, failure.error),
        ATTEMPTS: attempts_in(headers) + 1,
        LAST_FAILED_AT: at,
        ORIGIN_QUEUE: failure.queue,
        SERVICE_VERSION: version("order-saga"),
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
