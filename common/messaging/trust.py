"""Whom to believe about a message: pure functions over what the broker says of its way here.

The broker checks who may publish under a routing key, and only operators may publish by the default
exchange. It does not look into bodies or headers. So what these say counts only as far as the
routing key and the exchange vouch for it.
"""

from __future__ import annotations

from typing import Any, Final

from common.envelope import Envelope, Undecodable, source_of
from common.message import Event

EDITOR_SOURCE: Final = "/operators/dlq"
"""The CloudEvents `source` of corrected copies: nobody's own words about what it did."""
DEFAULT_EXCHANGE: Final = ""

MISROUTED: Final = "misrouted"
"""Why a message is refused whose way here does not vouch for what it says of itself."""


def check_sender(exchange: str, routing_key: str, envelope: Envelope[Any], queue: str) -> None:
    """Raise `Undecodable` for what the broker did not let in as what it says it is.

    Whoever published a message had to have the right to its routing key. So an event has to be what
    that key says, or a service could pass another's event off under a key of its own; and what
    comes by the default exchange has to have this queue's name as its key. (Up to 3.x, RabbitMQ
    also routes by the headers CC and BCC, and asks nobody's permission for that.)

    An event's source has to be its type's publisher, or a service could use another's ids.
    Corrected copies have a source of their own; they come by the default exchange. So do commands,
    which may come from anyone who may write there.
    """
    right = envelope.routing_key if exchange != DEFAULT_EXCHANGE else queue
    if routing_key != right:
        raise Undecodable(
            MISROUTED,
            f"{envelope.type} came into {queue} with the routing key {routing_key!r}, "
            f"not {right!r}: its sender may have no right to it",
        )
    if isinstance(envelope.data, Event):
        if exchange == DEFAULT_EXCHANGE and envelope.source == EDITOR_SOURCE:
            return
        check_source(envelope.type, envelope.data.publisher, envelope.source)


def check_source(type_: str, publisher: str | None, source: str) -> None:
    """Raise `Undecodable` for an event whose source is not its type's publisher, if that is known.

    The broker lets only the publisher use the type's routing keys.
    """
    if publisher is not None and source != source_of(publisher):
        raise Undecodable(
            MISROUTED,
            f"{type_} says it is from {source!r}, but {source_of(publisher)} publishes it",
        )
