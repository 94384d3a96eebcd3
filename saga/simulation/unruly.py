"""The simulated broker, with what may go wrong in it."""

from __future__ import annotations

from saga.simulation.broker import Broker, PublishedMessage, SimulatedQueue
from saga.simulation.loop import SimulatedLoop
from saga.simulation.trace import SimulationTrace
from saga.simulation.weather import FaultSchedule

LATE_SECONDS = 15.0
"""How much later than the first a second copy may come, or than it was sent a message."""
STREAMS_LATE_SECONDS = 5.0
"""How much later than the broker its streams may be back."""


class UnrulyBroker(Broker):
    """A broker that also lets messages come twice, and overtake each other. RabbitMQ does so only
    with what was published twice, rejected, or lost with a channel; nothing may rest on that.

    When it starts, it lets clients in before its streams are back, as RabbitMQ 3.10 does: what is
    published then, and confirmed, the history does not get.
    """

    def __init__(self, loop: SimulatedLoop, weather: FaultSchedule, trace: SimulationTrace) -> None:
        super().__init__(loop)
        self._weather = weather
        self._trace = trace
        self._streams_from = 0.0

    def starts(self, at: float) -> None:
        """It has ended, and lets clients in again at that time."""
        self._streams_from = at + self._weather.seconds(STREAMS_LATE_SECONDS)

    def forgets(self, streams_from: float) -> None:
        """It is replaced by an empty one, whose streams are there from that time on."""
        self._streams_from = streams_from
        self.empty()

    def has(self, queue: str) -> bool:
        """Whether a queue is there by now."""
        is_stream = self._queues[queue].arguments.get("x-queue-type") == "stream"
        return not is_stream or self._loop.time() >= self._streams_from

    def _put(self, queue: SimulatedQueue, message: PublishedMessage) -> None:
        if not self.has(queue.name):
            self._trace.note("broker", f"{describe(message)} is not in {queue.name}")
            return
        if "x-dead-letter-exchange" in queue.arguments:  # Neither dead letters nor the history.
            type_ = message.properties.type or ""
            if self._weather.strikes("duplicate", queue.name, type_):
                self._put_late(queue, message, "doubles")
            if self._weather.strikes("reorder", queue.name, type_):
                self._put_late(queue, message, "holds up")
                return
        super()._put(queue, message)

    def _put_late(self, queue: SimulatedQueue, message: PublishedMessage, what: str) -> None:
        self._trace.note("broker", f"{what} {describe(message)} in {queue.name}")
        queue.unsettled += 1

        def arrive() -> None:
            queue.unsettled -= 1
            super(UnrulyBroker, self)._put(queue, message)

        self._loop.call_later(self._weather.seconds(LATE_SECONDS), arrive)


def describe(message: PublishedMessage) -> str:
    """A message for the trace."""
    properties = message.properties
    return f"{properties.type} {(properties.message_id or '')[:8]}"
