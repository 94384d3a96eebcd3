"""Taking messages from a participant's queues, through FastStream.

Each queue has a channel of its own. A delivery is acknowledged once its outcome is durable: the
commit of what it led to, or the broker's confirm for its copy in the dead-letter queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import yarl
from aio_pika import IncomingMessage, RobustConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity
from faststream import AckPolicy
from faststream.rabbit import Channel as ChannelSettings
from faststream.rabbit import RabbitBroker, RabbitQueue

from saga.choreography import Participant
from saga.envelope import Decoder, Envelope, Undecodable, digest_of
from saga.limits import json_of
from saga.personal.marks import personal_values
from saga.personal.masks import Hidden
from saga.personal.persons import Persons
from saga.retry import TransientError
from saga.runtime import tracing
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.tables import Clock, utc_now
from saga.runtime.kernel.work import Conflicting, Failed, Outcome, Work
from saga.runtime.messaging.acknowledgement import AckChannel, Acknowledger
from saga.runtime.messaging.connection import (
    HEARTBEAT_SECONDS,
    RETRY_SECONDS,
    BrokerError,
    addresses_of,
    named,
)
from saga.runtime.messaging.dead_letters import (
    REPLAYS,
    Failure,
    Reason,
    attempts_in,
    ours_in,
    set_aside,
)
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.partitions import Members, PartitionReader
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.sealing import IntakeSeal, SealedCommand
from saga.runtime.messaging.topology import DEAD_EXCHANGE, queues_of, wait_queue
from saga.runtime.messaging.trust import check_sender
from saga.runtime.messaging.wire import ChannelLost, ReconnectingConnection, Taker
from saga.runtime.metrics import ConsumerMetrics
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.telemetry import naming

log = logging.getLogger(__name__)

PREFETCH = 300
"""Deliveries a queue may have unacknowledged: enough for the next group to be full while one
commits."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
POLL_SECONDS = 0.02
BLAMED_CODES = frozenset({406, 501, 502, 503, 505})
"""With these, the broker closes a channel or a connection because of what it was sent."""
BLAMED_MAX = 3
"""So often they may end the publishing of one copy, which shares its connection with others."""


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
        persons: Persons | None = None,
        replica: str = "",
        members: Members | None = None,
    ) -> None:
        """`replica` is this process among the `members` that share its database; without `members`
        there are no others."""
        self._participant = participant
        self._publisher = publisher
        self._drain_seconds = drain_seconds
        self._deliveries = Deliveries(participant, kernel, publisher, clock, persons)
        self.partitions = PartitionReader(
            participant,
            url,
            self._deliveries,
            replica=replica,
            members=members,
            prefetch=prefetch,
            drain_seconds=drain_seconds,
        )
        self._connection_loop = RetryLoop(
            "consumer_connection", "hold the consumer's connection to the broker"
        )
        self.broker = _Broker(
            named(url, f"{participant.name} consumer"),
            takers={queue: self._deliveries.taker(queue) for queue in queues_of(participant)},
            retry_loop=self._connection_loop,
            fail_fast=True,
            reconnect_interval=RETRY_SECONDS,
            client_properties={"heartbeat": HEARTBEAT_SECONDS},
            apply_types=False,
            logger=None,
        )
        self._subscribers = [
            self.broker.subscriber(
                RabbitQueue(name, declare=False),
                channel=ChannelSettings(prefetch_count=prefetch),
                ack_policy=AckPolicy.MANUAL,
                no_reply=True,
            )
            for name in queues_of(participant)
        ]
        for subscriber in self._subscribers:
            subscriber(_never)

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        loops = (*self._deliveries.retry_loops, *self.partitions.retry_loops)
        return self._connection_loop, *loops

    async def unread(self) -> list[str]:
        """The queues that have no consumer, or are gone. Raises what aio-pika raises.

        Asks the broker: a consumer that it cancelled looks well from here.
        """
        queues = list(queues_of(self._participant))
        unread = [queue for queue in queues if not await self._publisher.consumers_of(queue)]
        # Consumers of other processes, another replica's for instance, are not ours.
        if not all(subscriber.running for subscriber in self._subscribers):
            unread = queues
        return unread + self.partitions.unread

    async def start(self) -> None:
        """Connect and read. Raises `BrokerError`, e.g. if a queue does not exist."""
        try:
            await self.broker.start()
        except ChannelNotFoundEntity as error:
            raise BrokerError(
                f"the broker lacks a queue of {self._participant.name}: {error}; "
                f"declare it with `saga topology apply`, or, if it was there before, with "
                f"`saga recover broker`"
            ) from error
        except (AMQPError, OSError) as error:
            why = str(error) or "no answer"
            raise BrokerError(f"cannot read from the broker: {why}") from error
        self.partitions.start()

    async def stop(self) -> None:
        """Take no more, wait for what was taken (bounded by `drain_seconds`), disconnect."""
        self.partitions.stop()
        await self._deliveries.finish(self._drain_seconds)
        await self.partitions.close()
        await self.broker.stop()


async def _never(message: IncomingMessage) -> None:
    """What FastStream would call with deliveries, were they not handed over before it."""
    raise AssertionError(f"FastStream got {message}")


class _Broker(RabbitBroker):
    """Connects over a wire, to any node of a cluster, and to any of them again when that one is
    lost."""

    def __init__(
        self, url: str, *, takers: Mapping[str, Taker], retry_loop: RetryLoop, **settings: Any
    ) -> None:
        super().__init__(url, **settings)
        self._connection_kwargs["connection_class"] = partial(
            ReconnectingConnection, takers=takers, retry_loop=retry_loop
        )

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


class _NoCopy(Exception):
    """A message cannot be set aside, however often that is tried."""


class DeliveryChannel(AckChannel, Protocol):
    """The channel that a delivery came on."""

    on_lost: list[Callable[[], None]]


class _Unsealed(NamedTuple):
    """A command, and which retry of it this is."""

    delivery: Delivery
    envelope: Envelope[Any]
    attempts: int


class _Intake:
    """What came of one queue on one channel, and is not settled yet."""

    def __init__(self, queue: str, channel: DeliveryChannel) -> None:
        self.queue = queue
        self.channel = channel
        self.acknowledger = Acknowledger(channel)  # Tags restart with each channel.
        self.deciding: dict[int, Work] = {}
        """Keyed by tag."""
        self.tasks: set[asyncio.Task[None]] = set()
        """What sets messages aside, or has them sealed."""
        self.unsealed: list[_Unsealed] = []
        """What waits until the key store is asked about it, all at once."""
        self.sealing: asyncio.Task[None] | None = None
        self.leaving = False
        """Whether nothing more is taken of it: another replica is to get what comes."""

    @property
    def busy(self) -> bool:
        return bool(self.deciding or self.tasks)


_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TYPE: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


def _recognised(text: str | None, pattern: re.Pattern[str]) -> str | None:
    """What a message that cannot be read says of itself, as logs tell it: a digest, where it is no
    id or no type, since it may name a user."""
    if not text or pattern.fullmatch(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:12]}"


def _unclear_in(delivery: Delivery) -> Iterable[str]:
    """What of a message that cannot be read its error may repeat, and is no id or type."""
    try:
        document = json_of(delivery.body)
    except ValueError:
        return
    if isinstance(document, dict):
        for name, pattern in (("id", _UUID), ("subject", _UUID), ("type", _TYPE)):
            value = document.get(name)
            if isinstance(value, str) and not pattern.fullmatch(value):
                yield value


def _conflicts(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and isinstance(outcome.error, Conflicting)


class Deliveries:
    """What becomes of a participant's messages, over any connection: they are decided on, or set
    aside, and then acknowledged."""

    def __init__(
        self,
        participant: Participant,
        kernel: Kernel,
        publisher: BrokerPublisher,
        clock: Clock = utc_now,
        persons: Persons | None = None,
        *,
        decoder: Decoder | None = None,
    ) -> None:
        """With `persons`, personal data of commands from outside is sealed before anything is kept
        of them; see `saga.runtime.messaging.sealing`. `decoder` reads what the participant takes;
        by default, one that remembers nothing."""
        self._participant = participant
        self._kernel = kernel
        self._publisher = publisher
        self._clock = clock
        self._intake_seal = IntakeSeal(persons, participant) if persons else None
        self._metrics = ConsumerMetrics(participant)
        self._decoder = decoder or Decoder((*participant.consumes, *participant.intake))
        self._intakes: dict[str, _Intake] = {}
        """Keyed by queue: each has one consumer at a time."""
        self._stopping = False
        self._blamed_alone = asyncio.Lock()
        self._copy_loop = RetryLoop("copies", "publish copies of failed messages")

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return (self._copy_loop,)

    def taker(self, queue: str) -> Callable[[DeliveryChannel, Delivery], None]:
        """What takes the deliveries of one queue."""

        def take(channel: DeliveryChannel, delivery: Delivery) -> None:
            if self._stopping:
                return  # It goes back with its channel.
            intake = self._intakes.get(queue)
            if intake is None or intake.channel is not channel:
                intake = self._intakes[queue] = _Intake(queue, channel)
                channel.on_lost.append(partial(self._give_up, intake))
            if intake.leaving:
                return  # As above.
            try:
                self._take(intake, delivery)
            except Exception:
                log.exception("a delivery of %s was not taken; it is left to the broker", queue)
                intake.acknowledger.reject(delivery.tag)

        return take

    async def finish(self, seconds: float) -> None:
        """Take no more, and wait for what was taken, at most so long."""
        self._stopping = True
        await self._settled(self._intakes.values(), seconds)

    @staticmethod
    async def _settled(intakes: Iterable[_Intake], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(intake.busy for intake in intakes):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def release(self, queue: str, seconds: float) -> None:
        """Take no more of this queue's channel, and wait for what was taken of it, at most so long.
        The caller then closes the channel, and what was not taken goes back in order."""
        intake = self._intakes.get(queue)
        if intake is None:
            return
        intake.leaving = True
        await self._settled([intake], seconds)
        await asyncio.sleep(0)  # What was resolved last is acknowledged in the next turn.

    def _give_up(self, intake: _Intake) -> None:
        """Its channel is lost: what came on it will come again."""
        self._kernel.abandon_all(intake.deciding.values())
        intake.deciding.clear()
        for task in intake.tasks:
            task.cancel()

    def _settle(self, intake: _Intake, delivery: Delivery) -> None:
        """What the delivery led to is durable."""
        intake.acknowledger.resolve(delivery.tag)

    def _take(self, intake: _Intake, delivery: Delivery) -> None:
        """Decide on the message, or set it aside."""
        ours = ours_in(delivery, intake.queue)
        attempts = attempts_in(ours)
        if REPLAYS in ours and attempts == 0:  # And not tried since.
            self._metrics.replayed(delivery.properties.type)
        try:
            envelope = self._decoder.decode(delivery.body)
            check_sender(delivery.exchange, delivery.routing_key, envelope, intake.queue)
        except Exception as error:  # What the decoder did not foresee is undecodable too.
            self._refuse(intake, delivery, error)
            return
        seal = self._intake_seal
        if seal is None or not seal.concerns(envelope):
            self._decide(intake, delivery, envelope, attempts)
            return
        command = _Unsealed(delivery, envelope, attempts)
        if not self._decide_known(seal, intake, command):
            intake.unsealed.append(command)
            if intake.sealing is None or intake.sealing.done():
                intake.sealing = self._start(intake, self._decide_unsealed(seal, intake))

    def _refuse(self, intake: _Intake, delivery: Delivery, error: Exception) -> None:
        """Set a delivery aside that is no message for us."""
        self._metrics.undecodable(delivery.properties.type)
        unclear = Hidden(_unclear_in(delivery))
        failure = Failure(Reason.UNDECODABLE, error, intake.queue, self._clock(), unclear)
        self._begin(intake, delivery, partial(self._bury, delivery, failure))

    def _decide_known(self, seal: IntakeSeal, intake: _Intake, command: _Unsealed) -> bool:
        """Decide on a command, if it can be sealed without asking the key store."""
        delivery, envelope, attempts = command
        try:
            known = seal.at_once(envelope)
        except ValueError as error:
            self._refuse(intake, delivery, Undecodable("invalid", str(error)))
            return True
        if known is not None:
            self._decide(intake, delivery, known.envelope, attempts, known)
        return known is not None

    async def _decide_unsealed(self, seal: IntakeSeal, intake: _Intake) -> None:
        """Ask the key store about all that waits, and decide on it. What it has no answer to goes
        on alone. What comes meanwhile is the next group."""
        while intake.unsealed:
            group, intake.unsealed = intake.unsealed, []
            await seal.learn([command.envelope for command in group])
            for command in group:
                try:
                    known = self._decide_known(seal, intake, command)
                except Exception:
                    self._leave_unsealed(intake, command)
                else:
                    if not known:
                        self._start(intake, self._decide_sealed(seal, intake, command))

    async def _decide_sealed(self, seal: IntakeSeal, intake: _Intake, command: _Unsealed) -> None:
        """Decide on it once it is sealed, however long the key store is away."""
        delivery, envelope, attempts = command
        try:
            tried = delivery.redelivered or attempts > 0
            known = await seal.once_sealed(envelope, tried=tried)
        except Undecodable as error:
            self._refuse(intake, delivery, error)
        except ValueError as error:
            self._refuse(intake, delivery, Undecodable("invalid", str(error)))
        except Exception:
            self._leave_unsealed(intake, command)
        else:
            self._decide(intake, delivery, known.envelope, attempts, known)

    @staticmethod
    def _leave_unsealed(intake: _Intake, command: _Unsealed) -> None:
        """Leave a command to the broker, for a reason that nothing foresees."""
        with naming(Hidden(personal_values(command.envelope.data))):
            log.exception("a delivery of %s was not sealed; the broker has it", intake.queue)
        intake.acknowledger.reject(command.delivery.tag)

    def _decide(
        self,
        intake: _Intake,
        delivery: Delivery,
        envelope: Envelope[Any],
        attempts: int,
        sealed: SealedCommand | None = None,
    ) -> None:
        """Decide on a message, one that was `sealed` here for instance: that may have been
        done before anything was, so its digest in clear counts as well."""
        if tracing.active is not None:
            self._begin(
                intake,
                delivery,
                partial(self._decide_traced, delivery, intake, envelope, attempts, sealed),
            )
            return

        digest = digest_of(envelope, delivery.body)

        def then(outcome: Outcome) -> None:
            del intake.deciding[delivery.tag]
            if sealed is not None and _conflicts(outcome):
                intake.deciding[delivery.tag] = self._kernel.take(
                    envelope, finish, attempt=attempts + 1, digest=sealed.former_digest
                )
            else:
                settle(outcome)

        def finish(outcome: Outcome) -> None:
            del intake.deciding[delivery.tag]
            settle(outcome)

        def settle(outcome: Outcome) -> None:
            if isinstance(outcome, Failed):
                self._begin(
                    intake,
                    delivery,
                    partial(self._fail, delivery, intake, envelope, attempts, outcome, sealed),
                )
            else:
                self._settle(intake, delivery)

        intake.deciding[delivery.tag] = self._kernel.take(
            envelope, then, attempt=attempts + 1, digest=digest
        )

    def _begin(
        self, intake: _Intake, delivery: Delivery, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do what takes a while, and settle the delivery when it is done."""

        async def settled() -> None:
            try:
                await work()
            except _NoCopy as error:
                log.error("%s; it is left to the broker as it came", error)
                intake.acknowledger.reject(delivery.tag)
            except Exception:
                # Never settled, it would be in the way of all that come after it.
                log.exception("a delivery of %s was not handled; the broker has it", intake.queue)
                intake.acknowledger.reject(delivery.tag)
            else:
                self._settle(intake, delivery)

        self._start(intake, settled())

    @staticmethod
    def _start(intake: _Intake, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        intake.tasks.add(task)
        task.add_done_callback(intake.tasks.discard)
        return task

    async def _decide_traced(
        self,
        delivery: Delivery,
        intake: _Intake,
        envelope: Envelope[Any],
        attempts: int,
        sealed: SealedCommand | None,
    ) -> None:
        with tracing.process(
            intake.queue, delivery, envelope.subject, envelope.traceparent, attempts
        ):
            digest = digest_of(envelope, delivery.body)
            outcome = await self._kernel.handle(envelope, attempt=attempts + 1, digest=digest)
            if sealed is not None and _conflicts(outcome):
                outcome = await self._kernel.handle(
                    envelope, attempt=attempts + 1, digest=sealed.former_digest
                )
            if isinstance(outcome, Failed):
                await self._fail(delivery, intake, envelope, attempts, outcome, sealed)

    async def _bury(self, delivery: Delivery, failure: Failure) -> None:
        if self._intake_seal is not None:
            delivery = await self._intake_seal.unreadable(delivery)
        about = delivery.properties.correlation_id or ""
        with tracing.process(failure.queue, delivery, about):
            await self._set_aside(delivery, failure)

    async def _fail(
        self,
        delivery: Delivery,
        intake: _Intake,
        envelope: Envelope[Any],
        attempts: int,
        outcome: Failed,
        sealed: SealedCommand | None,
    ) -> None:
        if sealed is not None:
            delivery = sealed.delivery(delivery)
        conflicts = isinstance(outcome.error, Conflicting)
        reason = Reason.CONFLICTING if conflicts else Reason.FAILED
        named = Hidden(personal_values(envelope.data))
        if sealed is not None:
            named = named.and_of(personal_values(sealed.in_clear.data))
        failure = Failure(reason, outcome.error, intake.queue, self._clock(), named)
        retry = self._participant.retry_of(type(envelope.data))
        wait_ms = None if conflicts else retry.wait_ms(attempts + 1, outcome.error)
        await self._set_aside(delivery, failure, wait_ms, envelope.traceparent)

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        """Publish the copy that waits, or is dead, however long the broker takes to confirm it."""
        name = self._participant.name
        error = failure.error
        if tracing.active is not None:
            tracing.active.fail(error, failure.said)
        properties = delivery.properties
        type_ = properties.type
        id, subject, told = properties.message_id, properties.correlation_id, type_
        if failure.reason is Reason.UNDECODABLE:  # What it says may be anything.
            id, subject = _recognised(id, _UUID), _recognised(subject, _UUID)
            told = _recognised(told, _TYPE)
        what = f"{told} {id} from {failure.queue}"
        about = {"subject": subject, "event": id}
        if wait_ms is None:
            exchange, key = DEAD_EXCHANGE, name
            reason = error.reason if isinstance(error, Undecodable) else failure.reason
            self._metrics.dead_lettered(type_, reason, traceparent)
            foreseen = isinstance(error, Undecodable | TransientError | Conflicting)
            unforeseen = None if foreseen else error
            with naming(failure.named):
                log.error(
                    "dead: %s: %s: %s",
                    what,
                    type(error).__name__,
                    failure.said,
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
                failure.said,
                extra=about,
            )
        backoff_seconds = BACKOFF_MIN_SECONDS
        blamed = 0
        this = object()  # Of all the copies that are being published.
        try:
            while True:
                try:
                    channel = await self._publisher.open()
                    copy = self._copy(what, delivery, failure, channel.frame_max)
                    # One that was blamed goes alone, or others would be blamed with it.
                    async with self._blamed_alone if blamed else contextlib.nullcontext():
                        await self._publisher.publish(exchange, Posting(key, copy, delivery.body))
                except _NoCopy:
                    raise
                except ValueError as misfit:
                    raise _NoCopy(f"no copy of {what} fits into frames: {misfit}") from misfit
                except Exception as refusal:
                    blamed += isinstance(refusal, ChannelLost) and refusal.code in BLAMED_CODES
                    if blamed == BLAMED_MAX:
                        raise _NoCopy(f"the broker takes no copy of {what}: {refusal}") from refusal
                    self._copy_loop.failed(refusal, this, about)
                    self._metrics.paused(backoff_seconds)
                    await asyncio.sleep(backoff_seconds)
                    backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
                else:
                    self._copy_loop.succeeded(this)
                    # Its frames hold the message's whole group, and that holds the error: a cycle.
                    error.with_traceback(None)
                    return
        finally:
            self._copy_loop.forget(this)  # It was left to the broker, or its channel is lost.

    @staticmethod
    def _copy(what: str, delivery: Delivery, failure: Failure, frame_max: int) -> bytes:
        try:
            return set_aside(delivery, failure, frame_max=frame_max)
        except Exception as error:
            raise _NoCopy(f"no copy of {what} can be made: {error}") from error
