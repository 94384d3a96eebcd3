"""Taking messages from a participant's queues, through FastStream.

Each queue has a channel of its own. A delivery is acknowledged once its outcome is durable: the
commit of what it led to, or the broker's confirm for its copy in the dead-letter queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import yarl
from aio_pika import IncomingMessage, RobustConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity
from faststream import AckPolicy
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.subscriber import RabbitSubscriber

from common import tracing
from common.choreography import Participant
from common.envelope import Decoder, Undecodable, digest_of
from common.kernel.groups import Conflicting, Failed, Kernel
from common.kernel.tables import Clock, utc_now
from common.messaging.acknowledgement import Acknowledger
from common.messaging.connection import (
    HEARTBEAT_SECONDS,
    RETRY_SECONDS,
    BrokerError,
    addresses_of,
    named,
)
from common.messaging.dead_letters import (
    REPLAYS,
    Failure,
    Reason,
    attempts_in,
    headers_of,
    set_aside,
)
from common.messaging.publisher import BrokerPublisher
from common.messaging.topology import DEAD_EXCHANGE, queues_of, wait_queue
from common.messaging.trust import check_sender
from common.metrics import ConsumerMetrics
from common.retry import TransientError

log = logging.getLogger(__name__)

PREFETCH = 300
"""Deliveries a queue may have unacknowledged: enough for the next group to be full while one
commits."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0

Handler = Callable[[IncomingMessage], Awaitable[None]]


class Consumer:
    """Feeds one participant's kernel from its queues, through FastStream."""

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
        self._publisher = publisher
        self.broker = _Broker(
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
                no_reply=True,
            )
            for name in queues_of(participant)
        ]
        deliveries = Deliveries(participant, kernel, publisher, clock)
        for subscriber, name in zip(self._subscribers, queues_of(participant), strict=True):
            handler = deliveries.handler(name)
            subscriber(handler)
            _bypass_pipeline(subscriber, handler)

    async def unread(self) -> list[str]:
        """The queues nobody reads, or that are gone. Raises what aio-pika raises.

        Asks the broker: a consumer that it cancelled looks well from here.
        """
        queues = list(queues_of(self._participant))
        unread = [queue for queue in queues if not await self._publisher.consumers_of(queue)]
        # Somebody else's consumers, another replica's for instance, are not ours.
        return unread if all(subscriber.running for subscriber in self._subscribers) else queues

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


class _Broker(RabbitBroker):
    """Connects to any node of a cluster, and when that one is lost, to any of them again."""

    async def _connect(self) -> RobustConnection:
        nodes = [yarl.URL(address) for address in addresses_of(self._connection_kwargs["url"])]
        random.shuffle(nodes)
        *others, last = nodes
        for node in others:
            with contextlib.suppress(*CONNECTION_EXCEPTIONS):
                return await self._connect_to(node, nodes)
        return await self._connect_to(last, nodes)

    async def _connect_to(self, node: yarl.URL, nodes: Sequence[yarl.URL]) -> RobustConnection:
        self._connection_kwargs["url"] = str(node)
        connection = await super()._connect()
        if len(nodes) > 1:
            connection.close_callbacks.add(lambda *_: self._roam(connection, nodes))
        return connection

    def _roam(self, connection: RobustConnection, nodes: Sequence[yarl.URL]) -> None:
        """Until the connection is there again, let it try one node after the other."""
        if connection.connected.is_set() or connection.is_closed:
            return
        connection.url = random.choice(nodes)  # In turn, a node might be met only when it is down.
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._roam, connection, nodes)


class Deliveries:
    """What becomes of a participant's messages, whoever brings them: they are decided on, or set
    aside, and then acknowledged."""

    def __init__(
        self,
        participant: Participant,
        kernel: Kernel,
        publisher: BrokerPublisher,
        clock: Clock = utc_now,
    ) -> None:
        self._participant = participant
        self._kernel = kernel
        self._publisher = publisher
        self._clock = clock
        self._metrics = ConsumerMetrics(participant)
        self._decoder = Decoder((*participant.consumes, *participant.intake))

    def handler(self, queue: str) -> Handler:
        """What takes the messages of one queue; each queue needs one of its own."""
        acknowledger: Acknowledger | None = None
        channel: Any = None

        async def handle(message: IncomingMessage) -> None:
            nonlocal acknowledger, channel
            if acknowledger is None or message.channel is not channel:  # Tags start anew with it.
                channel = message.channel
                acknowledger = Acknowledger(message.channel)
            mine = acknowledger
            await self._take(message, queue)
            if message.delivery_tag is not None:
                mine.resolve(message.delivery_tag)

        return handle

    async def _take(self, message: IncomingMessage, queue: str) -> None:
        """Have the message decided on; returns when that, or its copy elsewhere, is durable."""
        headers = headers_of(message, queue)
        attempts = attempts_in(headers)
        if REPLAYS in headers and attempts == 0:  # And not tried since.
            self._metrics.replayed(message.type)
        try:
            envelope = self._decoder.decode(message.body)
            check_sender(message.exchange or "", message.routing_key or "", envelope, queue)
        except Exception as error:  # What the decoder did not foresee is undecodable too.
            self._metrics.undecodable(message.type)
            with tracing.process(queue, message, message.correlation_id or ""):
                failure = Failure(Reason.UNDECODABLE, error, queue, self._clock())
                await self._set_aside(message, failure)
            return
        with tracing.process(queue, message, envelope.subject, envelope.traceparent, attempts):
            digest = digest_of(envelope, message.body)
            outcome = await self._kernel.handle(envelope, attempt=attempts + 1, digest=digest)
            if not isinstance(outcome, Failed):
                return
            conflicts = isinstance(outcome.error, Conflicting)
            reason = Reason.CONFLICTING if conflicts else Reason.FAILED
            failure = Failure(reason, outcome.error, queue, self._clock())
            retry = self._participant.retry_of(type(envelope.data))
            wait_ms = None if conflicts else retry.wait_ms(attempts + 1, outcome.error)
            await self._set_aside(message, failure, wait_ms, envelope.traceparent)

    async def _set_aside(
        self,
        message: IncomingMessage,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Publish the copy that waits, or is dead, however long the broker takes to confirm it."""
        name = self._participant.name
        error = failure.error
        if tracing.active is not None:
            tracing.active.fail(error)
        type_ = message.type
        what = f"{type_} {message.message_id} from {failure.queue}"
        # What could not be decoded may still say this.
        about = {"order": message.correlation_id, "event": message.message_id}
        if wait_ms is None:
            exchange, key = DEAD_EXCHANGE, name
            reason = error.reason if isinstance(error, Undecodable) else failure.reason
            self._metrics.dead_lettered(type_, reason, traceparent)
            foreseen = isinstance(error, Undecodable | TransientError | Conflicting)
            unforeseen = None if foreseen else error
            log.error(
                "dead: %s: %s: %s",
                what,
                type(error).__name__,
                error,
                exc_info=unforeseen,
                extra=about,
            )
        else:
            exchange, key = wait_queue(wait_ms), failure.queue
            self._metrics.retried(type_)
            log.warning(
                "again in %d ms: %s: %s: %s",
                wait_ms,
                what,
                type(error).__name__,
                error,
                extra=about,
            )
        copy = set_aside(message, failure)
        backoff_seconds = BACKOFF_MIN_SECONDS
        while True:
            try:
                await self._publisher.publish(copy, exchange, key)
            except Exception as refusal:
                log.warning(
                    "%s: copy not confirmed, trying again in %.1f s: %s",
                    what,
                    backoff_seconds,
                    refusal,
                    extra=about,
                )
                self._metrics.paused(backoff_seconds)
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
            else:
                return


def _bypass_pipeline(subscriber: RabbitSubscriber, handler: Handler) -> None:
    """Hand deliveries to the handler as they come in.

    FastStream's contexts, middlewares and parsing, none of which we use, took a sixth of a
    service's CPU time. It goes on to connect, to read, to wait for what is in hand, and to stop.
    """

    async def process_message(message: IncomingMessage) -> None:
        with subscriber.lock:  # what its `stop` waits for
            try:
                await handler(message)
            except Exception:
                log.exception("a delivery of %s was not handled", message.type)

    subscriber.process_message = process_message  # type: ignore[method-assign,assignment]  # see above
