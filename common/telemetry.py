"""What a service tells about itself: Prometheus metrics and logs on standard error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from common.kernel.groups import Outcome
    from common.kernel.outbox import Outgoing

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SAGA = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_consumed = Counter(
    "saga_messages_consumed_total",
    "Messages taken, by how that ended: done, duplicate, failed.",
    ("participant", "type", "outcome"),
)
_handle_seconds = Histogram(
    "saga_message_seconds",
    "From taking a message to its commit, waiting and asking included.",
    ("participant",),
    buckets=_FAST,
)
_dead_lettered = Counter(
    "saga_messages_dead_lettered_total",
    "Messages sent to the dead-letter queue, by reason.",
    ("participant", "reason"),
)
_refused = Counter(
    "saga_reactions_refused_total",
    "Decisions of which nothing was kept, because the reaction's signature does not allow them.",
    ("participant", "reaction", "reason"),
)
_retried = Counter(
    "saga_messages_retried_total",
    "Messages that failed and wait for their next try.",
    ("participant",),
)
_published = Counter(
    "saga_events_published_total",
    "Events the broker confirmed.",
    ("participant", "type"),
)
_publish_failures = Counter(
    "saga_event_publish_failures_total",
    "Attempts to publish an event that the broker refused, could not route, or did not confirm.",
    ("participant", "error"),
)
_publish_seconds = Histogram(
    "saga_publish_seconds",
    "From publishing a batch of events to its last confirm.",
    ("participant",),
    buckets=_FAST,
)
_outbox_backlog = Gauge(
    "saga_outbox_backlog", "Events committed and not yet confirmed.", ("participant",)
)
_outbox_swept = Counter(
    "saga_outbox_swept_total",
    "Events published from the outbox table: after a crash, a failure or an overflow.",
    ("participant",),
)
_group_size = Histogram(
    "saga_group_size", "Messages sharing one transaction.", ("participant",), buckets=_SIZES
)
_commit_seconds = Histogram(
    "saga_commit_seconds", "One group's transaction.", ("participant",), buckets=_FAST
)
_conflicts = Counter(
    "saga_commit_conflicts_total",
    "Groups decided again because another replica had written a state they had read.",
    ("participant",),
)
_paused_seconds = Counter(
    "saga_paused_seconds_total", "Time spent waiting for the database.", ("participant",)
)
saga_seconds = Histogram(
    "saga_order_seconds",
    "From placing an order to its end, by outcome (a cancellation's is its reason).",
    ("outcome", "priority"),
    buckets=_SAGA,
)


class KernelMetrics:
    """One participant's kernel figures."""

    def __init__(self, participant: str) -> None:
        self._participant = participant
        self._group_size = _group_size.labels(participant)
        self._commit_seconds = _commit_seconds.labels(participant)
        self._handle_seconds = _handle_seconds.labels(participant)
        self.conflicts = _conflicts.labels(participant)
        self.paused_seconds = _paused_seconds.labels(participant)

    def committed(self, size: int, seconds: float) -> None:
        if size:
            self._group_size.observe(size)
            self._commit_seconds.observe(seconds)

    def refused(self, reaction: str, reason: str) -> None:
        _refused.labels(self._participant, reaction, reason).inc()

    def handled(self, type_: str, outcome: Outcome, seconds: float) -> None:
        _consumed.labels(self._participant, type_, type(outcome).__name__.lower()).inc()
        self._handle_seconds.observe(seconds)


class OutboxMetrics:
    """One participant's outbox figures."""

    def __init__(self, participant: str) -> None:
        self._participant = participant
        self.backlog = _outbox_backlog.labels(participant)
        self.swept = _outbox_swept.labels(participant)
        self.publish_seconds = _publish_seconds.labels(participant)

    def published(self, events: Sequence[Outgoing], errors: Sequence[Exception | None]) -> None:
        for event, error in zip(events, errors, strict=True):
            if error is None:
                type_ = event.routing_key.rpartition(".")[0]
                _published.labels(self._participant, type_).inc()
            else:
                _publish_failures.labels(self._participant, type(error).__name__).inc()


def dead_lettered(participant: str, reason: str) -> None:
    """Count one dead letter; `reason` comes from a fixed set."""
    _dead_lettered.labels(participant, reason).inc()


def retried(participant: str) -> None:
    """Count one message that will be tried again."""
    _retried.labels(participant).inc()


def configure_logging(participant: str, level: str) -> None:
    """Log to standard error, one line each."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s {participant} %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # aio-pika reports each lost connection on several loggers; ours say what follows from it.
    for noisy in ("aio_pika", "aiormq", "httpx", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
