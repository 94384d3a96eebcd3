"""Acknowledging several deliveries at once, never one that is still being worked on."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from saga.runtime.messaging.wire import ChannelLost

log = logging.getLogger(__name__)


class AckChannel(Protocol):
    """What is needed of a channel."""

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Raises `ChannelLost`."""

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """Raises `ChannelLost`."""


class Acknowledger:
    """Acknowledges the deliveries of one channel's only consumer.

    Their tags count from 1 without gaps. `resolve` a tag when its message is committed, or its
    copy in the dead-letter queue is confirmed. Everything resolved in one turn of the event loop is
    acknowledged together: with `multiple` up to the highest tag below which all are resolved, and
    one by one above that.
    """

    def __init__(self, channel: AckChannel) -> None:
        self._channel = channel
        self._floor = 0
        self._above: set[int] = set()
        self._acknowledged: set[int] = set()
        self._due_soon = False

    def resolve(self, tag: int) -> None:
        """The delivery may be acknowledged, soon."""
        self._above.add(tag)
        if not self._due_soon:
            self._due_soon = True
            asyncio.get_running_loop().call_soon(self._send)

    def reject(self, tag: int) -> None:
        """Leave the delivery to the broker, which makes it a dead letter as it is."""
        self._above.add(tag)
        self._acknowledged.add(tag)
        try:
            self._channel.nack(tag, requeue=False)
        except ChannelLost as error:
            log.info("rejection lost with its channel: %s", error)

    def _send(self) -> None:
        self._due_soon = False
        try:
            for tag, multiple in self._due():
                self._channel.ack(tag, multiple=multiple)
        except ChannelLost as error:
            # The broker delivers again what it saw no acknowledgement for; the inbox skips it.
            log.info("acknowledgement lost with its channel: %s", error)

    def _due(self) -> list[tuple[int, bool]]:
        """What to acknowledge now: tags, each with whether all below it are meant too."""
        floor = self._floor
        while floor + 1 in self._above:
            floor += 1
            self._above.discard(floor)
        acks: list[tuple[int, bool]] = []
        new = {tag for tag in range(self._floor + 1, floor + 1) if tag not in self._acknowledged}
        if len(new) == 1:
            acks.append((new.pop(), False))
        elif new:
            # `multiple` also covers tags acknowledged one by one before, which the broker has
            # forgotten; but the highest one must still be there.
            acks.append((max(new), True))
        acks += [(tag, False) for tag in sorted(self._above - self._acknowledged)]
        self._acknowledged = {tag for tag in self._above if tag > floor}
        self._floor = floor
        return acks
