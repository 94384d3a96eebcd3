"""Messages as a stranger's client sends them: with aio-pika, not over our own wire."""

from __future__ import annotations

from datetime import datetime

import aio_pika
from pydantic_core import from_json

from saga.envelope import CONTENT_TYPE


def message_of(body: bytes) -> aio_pika.Message:
    """The AMQP message that carries an envelope in its JSON form."""
    document = from_json(body)
    return aio_pika.Message(
        body,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=document["id"],
        type=document["type"],
        correlation_id=document["correlationid"],
        app_id=document["source"],
        timestamp=datetime.fromisoformat(document["time"]),
        content_type=CONTENT_TYPE,
    )
