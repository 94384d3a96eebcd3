"""Whom to believe about a message: pure functions over what the broker says of its way here.

The broker checks who may publish under a routing key, and only operators may publish by the default
exchange. It does not look into bodies or headers. So what these say counts only as far as the
routing key and the exchange vouch for it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, Final

from saga.envelope import Envelope, Undecodable, believed_of
from saga.message import Command

EDITOR_SOURCE: Final = "/operators/dlq"
"""The CloudEvents `source` of corrected copies: no service's own statement of what it did."""
DEFAULT_EXCHANGE: Final = ""

MISROUTED: Final = "misrouted"
"""Why a message is refused whose way here does not vouch for what it says of itself."""


def check_sender(exchange: str, routing_key: str, envelope: Envelope[Any], queue: str) -> None:
    """Raise `Undecodable` for what the broker did not let in as what it says it is.

    The publisher of a message had to have the right to its routing key. So an event has to be what
    that key says, or a service could pass another's event off under a key of its own; and what
    comes by the default exchange has to have this queue's name as its key. (Up to 3.x, RabbitMQ
    also routes by the headers CC and BCC, and checks no permission for that.)

    An event's source has to be its type's publisher, or a service could use another's ids, and what
    comes as a command from a participant, one of its type's senders. Corrected copies have a source
    of their own; they come by the default exchange. So do commands from outside, which may come
    from any user that may write there.
    """
    right = envelope.routing_key if exchange != DEFAULT_EXCHANGE else queue
    if routing_key != right:
        raise Undecodable(
            MISROUTED,
            f"{envelope.type} came into {queue} with the routing key {routing_key!r}, "
            f"not {right!r}: its sender may have no right to it",
        )
    by_operator = isinstance(envelope.data, Command) or envelope.source == EDITOR_SOURCE
    if exchange == DEFAULT_EXCHANGE and by_operator:
        return
    check_source(envelope.type, believed_of(type(envelope.data)), envelope.source)


def check_source(type_: str, believed: AbstractSet[str] | None, source: str) -> None:
    """Raise `Undecodable` for an event whose source is not its type's publisher, or a command whose
    source is none of its type's senders. `believed` are those, None where they are not known.

    The broker lets only them use the type's routing keys.
    """
    if believed is not None and source not in believed:
        by = (
            f"{' or '.join(sorted(believed))} publishes it"
            if believed
            else "no participant sends it"
        )
        raise Undecodable(MISROUTED, f"{type_} says it is from {source!r}, but {by}")
