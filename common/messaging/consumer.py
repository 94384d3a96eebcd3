"""Taking messages from a participant's queues, through FastStream.

Each queue has a channel of its own. A delivery is acknowledged once its outcome is durable: the
commit of what it led to, or the broker's confirm for its copy in the dead-letter queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiormq.exceptions import AMQPError, ChannelNotFoundEntity
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from common import telemetry
from common.choreography import Participant
from common.envelope import Decoder, Undecodable
from common.kernel.groups import Failed, Kernel
from common.kernel.tables import Clock, utc_now
from common.messaging.acknowledgement import Acknowledger
from common.messaging.connection import HEARTBEAT_SECONDS, RETRY_SECONDS, BrokerError, named
from common.messaging.dead_letters import Death, Reason, dead_letter
from common.messaging.publisher import BrokerPublisher
from common.messaging.topology import DEAD_EXCHANGE, queues_of

log = logging.getLogger(__name__)

PREFETCH = 300
"""Deliveries a queue may have unacknowledged: enough for the next group to be full while one
commits."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0


class Consumer:
    """Feeds one participant's kernel from its queues."""

    def __init__(
        self,
        participant: Participant,
        kernel: Kernel,
        publisher: BrokerPublisher,
        url: str,
        *,
        drain_seconds: float,
        prefetch: int = PREFETCH,
        clock: Clock = utc_now,
    ) -> None:
        self._participant = participant
        self._kernel = kernel
        self._publisher = publisher
        self._clock = clock
        self._decoder = Decoder((*participant.consumes, *participant.intake))
        self.broker = RabbitBroker(
            named(url, f"{participant.name} consumer"),
            fail_fast=True,
            reconnect_interval=RETRY_SECONDS,
            client_properties={"heartbeat": HEARTBEAT_SECONDS},
            graceful_timeout=drain_seconds,
            apply_types=False,
            logger=None,
        )
        self._subscribers = [
            self.broker.subscriber(
                RabbitQueue(name, declare=False),
                channel=Channel(prefetch_count=prefetch),
                ack_policy=AckPolicy.MANUAL,
                decoder=_whole_message,
                no_reply=True,
            )
            for name in queues_of(participant)
        ]
        for subscriber, name in zip(self._subscribers, queues_of(participant), strict=True):
            subscriber(self._handler(name))

    @property
    def ready(self) -> bool:
        """Whether every queue is being read."""
        return all(
            subscriber.running
            and subscriber._queue_obj is not None  # FastStream tells no other way
            and not subscriber._queue_obj.channel.is_closed
            for subscriber in self._subscribers
        )

    async def start(self) -> None:
        """Connect and read. Raises `BrokerError`, e.g. if a queue does not exist."""
        try:
            await self.broker.start()
        except ChannelNotFoundEntity as error:
            raise BrokerError(
                f"the broker lacks a queue of {self._participant.name}: {error}; "
                f"declare it with `saga topology apply`"
            ) from error
        except (AMQPError, OSError) as error:
            raise BrokerError(f"cannot read from the broker: {error}") from error

    async def stop(self) -> None:
        """Take no more, wait for what was taken (bounded by `drain_seconds`), disconnect."""
        await self.broker.stop()

    def _handler(self, queue: str) -> Callable[[RabbitMessage], Awaitable[None]]:
        acknowledger: Acknowledger | None = None
        channel: Any = None

        async def handle(message: RabbitMessage) -> None:
            nonlocal acknowledger, channel
            raw = message.raw_message
            if acknowledger is None or raw.channel is not channel:  # Tags start anew with it.
                channel = raw.channel
                acknowledger = Acknowledger(raw.channel)
            mine = acknowledger
            death = await self._death_of(message.body, queue)
            if death is not None:
                await self._set_aside(message, death)
            if raw.delivery_tag is not None:
                mine.resolve(raw.delivery_tag)

        return handle

    async def _death_of(self, body: bytes, queue: str) -> Death | None:
        """Have the message decided on; why it is dead, if it is."""
        try:
            envelope = self._decoder.decode(body)
        except Exception as error:  # What the decoder did not foresee is undecodable too.
            reason = error.reason if isinstance(error, Undecodable) else Reason.UNDECODABLE
            telemetry.dead_lettered(self._participant.name, reason)
            return Death(Reason.UNDECODABLE, error, queue, self._clock())
        outcome = await self._kernel.handle(envelope)
        if isinstance(outcome, Failed):
            telemetry.dead_lettered(self._participant.name, Reason.FAILED)
            return Death(Reason.FAILED, outcome.error, queue, self._clock())
        return None

    async def _set_aside(self, message: RabbitMessage, death: Death) -> None:
        """Publish the dead letter, however long the broker takes to confirm it."""
        log.error(
            "dead-lettered %s %s from %s: %s: %s",
            message.raw_message.type,
            message.message_id,
            death.queue,
            type(death.error).__name__,
            death.error,
            exc_info=death.error if death.reason is Reason.FAILED else None,
        )
        letter = dead_letter(message.raw_message, death)
        backoff_seconds = BACKOFF_MIN_SECONDS
        while True:
            try:
                await self._publisher.publish(letter, DEAD_EXCHANGE, self._participant.name)
            except Exception as error:
                log.warning(
                    "dead letter not confirmed, trying again in %.1f s: %s", backoff_seconds, error
                )
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
            else:
                return


async def _whole_message(message: RabbitMessage) -> RabbitMessage:
    """In place of FastStream's decoding: hand the message to the handler as it came."""
    return message
