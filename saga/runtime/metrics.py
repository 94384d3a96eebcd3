"""What a service counts and measures, for Prometheus.

Label values come from the code: participants, event types, reactions, outcomes, reasons. None comes
from a message, so the number of series is bounded. What is counted per message is looked up once,
at the start; per message there is nothing but increments (`bench/metrics_cost.py`).

Each replica counts what it does itself: add them up. The gauges read from a database that replicas
share (rows, ages, pending sagas) say the same at each of them: take the maximum.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import platform
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ref

import sqlalchemy as sa
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from sqlalchemy.engine import Connection

from saga.choreography import Participant
from saga.course import Course
from saga.message import Command, Event, Intent, Message, Priority, Role
from saga.runtime.kernel.kept import position_of
from saga.runtime.kernel.tables import Clock, Tables, utc_now
from saga.runtime.rates import CallerRates
from saga.version import engine_version

if TYPE_CHECKING:
    from saga.envelope import Envelope
    from saga.runtime.kernel.begun import Begun
    from saga.runtime.kernel.outgoing import Outgoing
    from saga.runtime.kernel.work import Outcome
    from saga.runtime.retry_loop import RetryLoop

TEXT: Final = "text/plain"
OPENMETRICS: Final = "application/openmetrics-text"
"""The media types of metrics."""
UNKNOWN: Final = "unknown"
"""The `type` of a message that is none of those its receiver knows."""
EXEMPLAR_SECONDS: Final = 0.1
"""How often a message lends its trace to its metric; checking one takes longer than counting."""
SLOW_SECONDS: Final = 0.25
"""A message that takes longer always does."""
LAG_SAMPLE_SECONDS: Final = 0.25
GENERATIONS: Final = 3
"""Of objects, as Python's garbage collector tells them apart."""
SCRAPES_PER_SECOND: Final = 5.0
"""Ten times as many at once are made; beyond, the latest is told once more."""
INBOX_COUNT_SECONDS: Final = 60.0
"""How old a count of the inbox may be: it is long, and counting reads all of it."""
URGENT_OBJECTIVE_SECONDS: Final = 5
"""How soon an urgent saga is to end; the objective needs a bucket that ends there."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PURE = (0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1)
_SAGA = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, URGENT_OBJECTIVE_SECONDS, 10, 30, 60, 300)
_DUE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3_600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_OUTCOMES = ("Done", "Duplicate", "Failed")

# --- messages ---------------------------------------------------------------------------------

_consumed = Counter(
    "saga_messages_consumed_total",
    "Messages taken, by how that ended: done, duplicate (skipped), failed, undecodable.",
    ("participant", "type", "outcome"),
)
_message_seconds = Histogram(
    "saga_message_seconds",
    "From taking a message to its commit, waiting and asking included.",
    ("participant", "type"),
    buckets=_FAST,
)
_retried = Counter(
    "saga_messages_retried_total",
    "Messages that failed and wait for their next try.",
    ("participant", "type"),
)
_dead_lettered = Counter(
    "saga_messages_dead_lettered_total",
    "Messages sent to the dead-letter queue, by reason.",
    ("participant", "type", "reason"),
)
_replayed = Counter(
    "saga_messages_replayed_total",
    "Dead letters that came back because they were replayed.",
    ("participant", "type"),
)
_in_flight = Gauge(
    "saga_messages_in_flight", "Messages taken and not yet resolved.", ("participant",)
)

# --- the kernel -------------------------------------------------------------------------------

_reaction_seconds = Histogram(
    "saga_reaction_seconds",
    "A reaction's own time: deciding and evolving, with no database.",
    ("participant", "reaction"),
    buckets=_PURE,
)
_refused = Counter(
    "saga_reactions_refused_total",
    "Decisions of which nothing was kept, because the reaction's signature does not allow them.",
    ("participant", "reaction", "reason"),
)
_outside_call_seconds = Histogram(
    "saga_outside_call_seconds",
    "Calls to the outside, a hotel for instance, by outcome: answered, failed.",
    ("participant", "call", "outcome"),
    buckets=_FAST,
)
_group_messages = Histogram(
    "saga_group_messages", "Messages sharing one transaction.", ("participant",), buckets=_SIZES
)
_commit_seconds = Histogram(
    "saga_commit_seconds", "One group's transaction.", ("participant",), buckets=_FAST
)
_conflicts = Counter(
    "saga_commit_conflicts_total",
    "Groups of several replicas decided again: what they had read was written meanwhile, or a "
    "message was done before.",
    ("participant",),
)
_paused_seconds = Counter(
    "saga_paused_seconds_total",
    "Time spent waiting until the database, or the broker, is to be tried again.",
    ("participant", "cause"),
)
_stuck_loops = Gauge(
    "saga_retry_loop_stuck",
    "Whether something is tried again and again without success: 1 once an operator should look.",
    ("participant", "loop"),
)
_due_done_seconds = Histogram(
    "saga_due_done_seconds",
    "From the time at which something was due until it was done; without what was brought forward.",
    ("participant", "command"),
    buckets=_DUE,
)
_brought_forward = Counter(
    "saga_due_brought_forward_total",
    "What was due and done before its time, because an operator wanted it.",
    ("participant", "command"),
)
_due_waiting = Gauge(
    "saga_due_waiting",
    "States about which something is due, now or later.",
    ("participant", "state"),
)
_due_late_seconds = Gauge(
    "saga_due_late_seconds",
    "How long ago what is due first was to be done; 0 while nothing is late.",
    ("participant", "state"),
)
_compensations = Counter(
    "saga_compensations_total",
    "Events that say that something was undone, or that there is nothing to undo.",
    ("participant", "type"),
)

# --- the outbox -------------------------------------------------------------------------------

_published = Counter(
    "saga_events_published_total", "Events the broker confirmed.", ("participant", "type")
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
    "saga_outbox_backlog",
    "Events this replica has committed and the broker has not yet confirmed.",
    ("participant",),
)
_outbox_swept = Counter(
    "saga_outbox_swept_total",
    "Events published from the outbox table: after a crash, a failure or an overflow.",
    ("participant",),
)

# --- HTTP -------------------------------------------------------------------------------------

_http_refused = Counter(
    "saga_http_requests_refused_total",
    "HTTP requests turned away before their route, by reason.",
    ("reason",),
)
REFUSED_FOR: Final = (
    *("address_rate", "caller_rate", "unauthenticated", "forbidden", "not_theirs", "issuer_away"),
    *("visitor", "too_long"),
)
"""The reasons: too many requests from an address or a caller; caller unknown; without the scope;
another's; tokens cannot be checked; a page of another site, or of no name of ours; a line and
headers, or a body, beyond the limit."""
_refused_for = {reason: _http_refused.labels(reason) for reason in REFUSED_FOR}

# --- the database, the process ----------------------------------------------------------------

_database_up = Gauge(
    "saga_database_up", "Whether the database could be read for this scrape.", ("participant",)
)
_outbox_rows = Gauge("saga_outbox_rows", "Rows in the outbox, of all replicas.", ("participant",))
_outbox_oldest_seconds = Gauge(
    "saga_outbox_oldest_seconds",
    "Age of the oldest row in the outbox, of all replicas; 0 if it is empty.",
    ("participant",),
)
_stream_lacks = Gauge(
    "saga_history_stream_lacks_events",
    "1 where the history's stream lacks events that were in it, until some are put back; else 0.",
    ("participant",),
)
_kept_seconds = Gauge(
    "saga_outbox_kept_seconds",
    "Age of the oldest published event that is kept for a broker that is gone; 0 if none is.",
    ("participant",),
)
_inbox_rows = Gauge("saga_inbox_rows", "Rows in the inbox, of all replicas.", ("participant",))
_disk_free_bytes = Gauge(
    "saga_disk_free_bytes",
    "Free bytes of the disk of a folder that the process writes to, by what is in it.",
    ("participant", "folder"),
)
_disk_free_min_bytes = Gauge(
    "saga_disk_free_min_bytes",
    "Free bytes below which the process begins nothing new (DISK_FREE_MIN_BYTES).",
    ("participant", "folder"),
)
_disk_stopped = Gauge(
    "saga_disk_stopped",
    "How far work has stopped for want of room: 0 not, 1 nothing new is begun, 2 what has begun "
    "waits.",
    ("participant", "folder"),
)
_event_loop_lag = Histogram(
    "saga_event_loop_lag_seconds",
    "How much later than asked the event loop woke up.",
    ("participant",),
    buckets=_FAST,
)
_build = Info("saga_build", "What runs.", ("participant",))

# --- sagas ------------------------------------------------------------------------------------

_begun = Counter("saga_begun_total", "Sagas that began.", ("saga", "priority"))
_ended = Counter(
    "saga_ended_total",
    "Sagas that ended, by the event they ended with, the reason it gives, and whether by their "
    "deadline.",
    ("saga", "outcome", "reason", "priority", "in_time"),
)
_saga_seconds = Histogram(
    "saga_seconds",
    "From a saga's beginning to its end, by the event it ended with.",
    ("saga", "outcome", "priority"),
    buckets=_SAGA,
)
_pending = Gauge("saga_pending", "Sagas that have begun and not ended.", ("saga",))
_overdue = Gauge(
    "saga_overdue",
    "Sagas about which something was due and has not been done, a deadline for instance.",
    ("saga",),
)
_turned_away = Counter(
    "saga_turned_away_total",
    "Requests to begin a saga, refused because too many events wait for the broker.",
    ("saga",),
)

# --- the history ------------------------------------------------------------------------------

_recorded = Counter(
    "saga_history_messages_total",
    "Messages of the history stream, by what they were: new, known (published again), stray.",
    ("participant", "outcome"),
)
_record_delay_seconds = Histogram(
    "saga_history_delay_seconds",
    "From an event to its being kept in the history; the newest one of each transaction.",
    ("participant",),
    buckets=_SAGA,
)
_record_offset = Gauge(
    "saga_history_offset", "Offset of the stream's last message that was kept.", ("participant",)
)

Exemplar = dict[str, str] | None
Labelled = TypeVar("Labelled", Counter, Gauge, Histogram)
Owner = TypeVar("Owner")


def exemplar_of(traceparent: str | None) -> Exemplar:
    """What links one observation to its trace."""
    return {"trace_id": traceparent[3:35]} if traceparent else None


@cache
def _labelled(metric: Labelled, *labels: str) -> Labelled:
    """The metric with these labels, which come from the code. Each start of a service asks for some
    hundred, and a simulated run has twenty starts."""
    return metric.labels(*labels)


def _while_there(owner: Owner, figure: Callable[[Owner], float]) -> Callable[[], float]:
    """The figure of its owner's, and 0 once that is gone: metrics live as long as the process, and
    must not keep all that a kernel knows."""
    found = ref(owner)

    def look() -> float:
        owner = found()
        return 0.0 if owner is None else figure(owner)

    return look


class KernelMetrics:
    """One participant's kernel figures."""

    def __init__(self, participant: Participant) -> None:
        name = participant.name
        self._name = name
        self._outcomes: dict[tuple[str, str], Counter] = {}
        self._seconds: dict[str, Histogram] = {}
        for type_ in types_of(participant):
            self._add(type_)
        self._reactions = {
            kind: _labelled(_reaction_seconds, name, reaction.name)
            for kind, reaction in participant.by_message.items()
        }
        self._calls = {
            (intent, outcome): _labelled(_outside_call_seconds, name, _words(intent), outcome)
            for reaction in participant.reactions
            for intent in reaction.intends
            for outcome in ("answered", "failed")
        }
        for message in participant.emits:
            _labelled(_published, name, message.type)
        self._compensations = {
            event.type: _labelled(_compensations, name, event.type)
            for event in participant.publishes
            if event.role is Role.COMPENSATION
        }
        due = {command for commands in participant.dues.values() for command in commands}
        self._due = {kind.type: _labelled(_due_done_seconds, name, kind.type) for kind in due}
        self._forward = {kind.type: _labelled(_brought_forward, name, kind.type) for kind in due}
        self._group_messages = _labelled(_group_messages, name)
        self._commit_seconds = _labelled(_commit_seconds, name)
        self._in_flight = _labelled(_in_flight, name)
        self._exemplar_from = 0.0
        self.conflicts = _labelled(_conflicts, name)
        self.paused_seconds = _labelled(_paused_seconds, name, "database")

    def watch(self, kernel: Owner, in_flight: Callable[[Owner], float]) -> None:
        """What is in flight is looked up when metrics are read, as long as the kernel is there."""
        self._in_flight.set_function(_while_there(kernel, in_flight))

    def committed(self, size: int, seconds: float) -> None:
        if size:
            self._group_messages.observe(size)
            self._commit_seconds.observe(seconds)

    def decided(self, events: Iterable[Envelope[Any]]) -> None:
        """Count what is undone by a decision that is committed."""
        for event in events:
            if (counter := self._compensations.get(event.type)) is not None:
                counter.inc(exemplar=exemplar_of(event.traceparent))

    def reacted(self, message: Message, seconds: float) -> None:
        self._reactions[type(message)].observe(seconds)

    def refused(self, reaction: str, reason: str) -> None:
        """Count a decision of which nothing was kept; `reason` comes from a fixed set."""
        _labelled(_refused, self._name, reaction, reason).inc()

    def fired(self, command: str, late_seconds: float | None) -> None:
        """Count what was due and is done, so long after its time; None: it was brought forward."""
        if late_seconds is None:
            self._forward[command].inc()
        else:
            self._due[command].observe(max(0.0, late_seconds))

    def asked(self, intent: Intent, outcome: str, seconds: float) -> None:
        self._calls[type(intent), outcome].observe(seconds)

    def handled(self, envelope: Envelope[Any], outcome: Outcome, seconds: float) -> None:
        type_ = envelope.type if envelope.type in self._seconds else self._add(UNKNOWN)
        self._outcomes[type_, type(outcome).__name__].inc()
        self._seconds[type_].observe(seconds, self._exemplar(envelope, seconds))

    def _exemplar(self, envelope: Envelope[Any], seconds: float) -> Exemplar:
        """Of many messages, one is enough; of slow ones, each."""
        now = time.monotonic()
        if seconds < SLOW_SECONDS and now < self._exemplar_from:
            return None
        self._exemplar_from = now + EXEMPLAR_SECONDS
        return exemplar_of(envelope.traceparent)

    def _add(self, type_: str) -> str:
        for outcome in _OUTCOMES:
            counter = _labelled(_consumed, self._name, type_, outcome.lower())
            self._outcomes[type_, outcome] = counter
        self._seconds[type_] = _labelled(_message_seconds, self._name, type_)
        return type_


class ConsumerMetrics:
    """What becomes of one participant's messages that are not simply done."""

    def __init__(self, participant: Participant) -> None:
        self._name = participant.name
        self._types = frozenset(types_of(participant))
        for type_ in self._types:
            _labelled(_retried, self._name, type_)
            _labelled(_dead_lettered, self._name, type_, "failed")
            _labelled(_replayed, self._name, type_)
        self._paused_seconds = _labelled(_paused_seconds, self._name, "broker")

    def undecodable(self, type_: str | None) -> None:
        _labelled(_consumed, self._name, self._known(type_), "undecodable").inc()

    def retried(self, type_: str | None) -> None:
        _labelled(_retried, self._name, self._known(type_)).inc()

    def replayed(self, type_: str | None) -> None:
        _labelled(_replayed, self._name, self._known(type_)).inc()

    def dead_lettered(self, type_: str | None, reason: str, traceparent: str | None) -> None:
        """Count one dead letter; `reason` comes from a fixed set."""
        counter = _labelled(_dead_lettered, self._name, self._known(type_), reason)
        counter.inc(exemplar=exemplar_of(traceparent))

    def paused(self, seconds: float) -> None:
        self._paused_seconds.inc(seconds)

    def _known(self, type_: str | None) -> str:
        return type_ if type_ in self._types else UNKNOWN


class OutboxMetrics:
    """One participant's outbox figures."""

    def __init__(self, participant: str) -> None:
        self._name = participant
        self._published = _PublishedByType(participant)
        self._backlog = _labelled(_outbox_backlog, participant)
        self.swept = _labelled(_outbox_swept, participant)
        self.publish_seconds = _labelled(_publish_seconds, participant)
        self.paused_seconds = _labelled(_paused_seconds, participant, "broker")

    def watch(self, outbox: Owner, backlog: Callable[[Owner], float]) -> None:
        """How long the backlog is is looked up when metrics are read, as long as the outbox is
        there."""
        self._backlog.set_function(_while_there(outbox, backlog))

    def published(self, events: Sequence[Outgoing], errors: Sequence[Exception | None]) -> None:
        for event, error in zip(events, errors, strict=True):
            if error is None:
                self._published[event.routing_key.rpartition(".")[0]].inc()
            else:
                _labelled(_publish_failures, self._name, type(error).__name__).inc()


class _PublishedByType(dict[str, Counter]):
    def __init__(self, participant: str) -> None:
        super().__init__()
        self._name = participant

    def __missing__(self, type_: str) -> Counter:
        found: Counter = _labelled(_published, self._name, type_)
        self[type_] = found
        return found


class SagaMetrics:
    """Sagas from their beginning to their end, as far as one participant sees them. Only of what
    it sees there are figures."""

    def __init__(self, course: Course) -> None:
        self._begun = {
            priority: _begun.labels(course.saga, priority)
            for priority in Priority
            if course.subject is not None
        }
        self._ended = {
            (outcome, reason, priority, in_time): _ended.labels(
                course.saga, outcome, reason, priority, str(in_time).lower()
            )
            for outcome, reasons in course.ends.items()
            for reason in {"", *reasons}
            for priority in Priority
            for in_time in ((True, False) if course.has_deadline else (True,))
        }
        self._seconds = {
            (outcome, priority): _saga_seconds.labels(course.saga, outcome, priority)
            for outcome in course.ends
            for priority in Priority
            if course.whole
        }
        self.pending = _pending.labels(course.saga) if course.whole else None
        self.overdue = _overdue.labels(course.saga) if course.has_deadline else None

    def begun(self, priority: Priority) -> None:
        self._begun[priority].inc()

    def ended(
        self, outcome: str, reason: str, priority: Priority, in_time: bool, traceparent: str | None
    ) -> None:
        counter = self._ended[outcome, reason, priority, in_time]
        counter.inc(exemplar=exemplar_of(traceparent))

    def took(
        self, outcome: str, priority: Priority, seconds: float, traceparent: str | None
    ) -> None:
        self._seconds[outcome, priority].observe(seconds, exemplar_of(traceparent))


def refused(reason: str) -> None:
    """Count an HTTP request that is turned away, for one of `REFUSED_FOR`."""
    _refused_for[reason].inc()


def turned_away(saga: str) -> Counter:
    """What counts requests to begin a saga that are refused."""
    return _turned_away.labels(saga)


class FollowerMetrics:
    """How one observer of the history keeps up with it."""

    def __init__(self, name: str) -> None:
        self._outcomes = {
            outcome: _recorded.labels(name, outcome) for outcome in ("new", "known", "stray")
        }
        self._delay_seconds = _record_delay_seconds.labels(name)
        self._offset = _record_offset.labels(name)
        self._paused_seconds = _paused_seconds.labels(name, "broker")
        self._lacks = _stream_lacks.labels(name)

    def lacks(self, events: bool) -> None:
        self._lacks.set(events)

    def kept(self, counts: Mapping[str, int], offset: int, delay_seconds: float | None) -> None:
        for outcome, count in counts.items():
            self._outcomes[outcome].inc(count)
        self._offset.set(offset)
        if delay_seconds is not None:
            self._delay_seconds.observe(max(0.0, delay_seconds))

    def paused(self, seconds: float) -> None:
        self._paused_seconds.inc(seconds)


class DiskMetrics:
    """The room on the disks that one process writes to."""

    def __init__(self, name: str, free_min_bytes: int) -> None:
        self._name = name
        self._free_min_bytes = free_min_bytes

    def __call__(self, folder: str, free_bytes: int, stopped: int) -> None:
        _disk_free_bytes.labels(self._name, folder).set(free_bytes)
        _disk_free_min_bytes.labels(self._name, folder).set(self._free_min_bytes)
        _disk_stopped.labels(self._name, folder).set(stopped)


@dataclass(frozen=True, slots=True)
class Figure:
    """A gauge that only one service has, read from its database."""

    name: str
    """Begins with its participant's name."""
    help: str
    read: Callable[[Connection], float]

    @property
    def gauge(self) -> Gauge:
        return _gauge_of(self.name, self.help)


@cache
def _gauge_of(name: str, help: str) -> Gauge:
    return Gauge(name, help, ("participant",))


class DatabaseMetrics:
    """The gauges that are read from a service's database when its metrics are read.

    When it cannot be read they are no number, so that an old figure is not taken for a new one.
    """

    def __init__(
        self,
        participant: str,
        tables: Tables,
        more: Iterable[Figure] = (),
        *,
        begun: Begun | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._participant = participant
        self._up = _database_up.labels(participant)
        self._rows = _outbox_rows.labels(participant)
        self._oldest = _outbox_oldest_seconds.labels(participant)
        self._kept = _kept_seconds.labels(participant)
        self._inbox = _inbox_rows.labels(participant)
        self._tables = tables
        self._more = {figure.gauge.labels(participant): figure for figure in more}
        self._begun = begun
        self._clock = clock
        self._gauges: set[Gauge] = set()
        self._inbox_count = 0
        self._counted_at = -math.inf

    def read(self, connection: Connection) -> None:
        """Read them all, as of one moment."""
        outbox, inbox, kept = self._tables.outbox, self._tables.inbox, self._tables.kept
        query = sa.select(sa.func.count(), sa.func.min(outbox.c.position))
        rows, oldest = connection.execute(query.select_from(outbox)).one()
        if time.monotonic() - self._counted_at > INBOX_COUNT_SECONDS:
            count = sa.select(sa.func.count()).select_from(inbox)
            self._inbox_count = connection.scalar(count) or 0
            self._counted_at = time.monotonic()
        oldest_kept = connection.scalar(sa.select(sa.func.min(kept.c.key)))
        now = self._clock()

        def age_seconds(position: int | None) -> float:
            # A position is the microsecond of the commit, but for what keeps positions apart.
            return 0.0 if position is None else max(0.0, now.timestamp() - position / 1_000_000)

        figures: dict[Gauge, float] = {
            self._up: 1,
            self._rows: rows,
            self._oldest: age_seconds(oldest),
            self._kept: age_seconds(position_of(oldest_kept) if oldest_kept else None),
            self._inbox: self._inbox_count,
        }
        for table in self._tables.with_dues:
            labels = self._participant, table.kind.__name__
            first = next(iter(table.due(connection, limit=1)), None)
            late_seconds = (now - first[1]).total_seconds() if first else 0.0
            figures[_due_waiting.labels(*labels)] = table.count_due(connection)
            figures[_due_late_seconds.labels(*labels)] = max(0.0, late_seconds)
        figures |= {gauge: figure.read(connection) for gauge, figure in self._more.items()}
        if self._begun is not None:
            figures |= self._begun.read(connection, now)
        for gauge, value in figures.items():
            gauge.set(value)
        self._gauges.update(figures)

    def away(self) -> None:
        """It could not be read."""
        for gauge in self._gauges:
            gauge.set(math.nan)
        self._up.set(0)


def tell_retry_loops(participant: str, retry_loops: Iterable[RetryLoop]) -> None:
    """Say which of them are stuck."""
    for loop in retry_loops:
        _stuck_loops.labels(participant, loop.name).set(bool(loop.trouble))


def types_of(participant: Participant) -> list[str]:
    """The types of the messages a participant reacts to; answers have none."""
    kinds = participant.by_message
    return [kind.type for kind in kinds if issubclass(kind, Event | Command)]


def tell_build(participant: str) -> None:
    """Say what runs."""
    _build.labels(participant).info(
        {"version": engine_version(), "python": platform.python_version()}
    )


class GarbageMetrics(Collector):
    """How long the garbage collector pauses the process, until closed. A process has one of these.

    Not a `Histogram`: a collection can begin while this thread holds a histogram's lock, and the
    callback would wait for that lock for ever.
    """

    def __init__(self, participant: str) -> None:
        self._participant = participant
        self._began = 0.0
        self._seconds = [0.0] * GENERATIONS
        self._counts = [[0] * (len(_FAST) + 1) for _ in range(GENERATIONS)]
        """Keyed by generation: how many pauses ended in each bucket."""
        REGISTRY.register(self)

    def close(self) -> None:
        REGISTRY.unregister(self)

    def collecting(self, phase: str, info: Mapping[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._began = time.perf_counter()
            return
        seconds = time.perf_counter() - self._began
        generation = info["generation"]
        self._seconds[generation] += seconds
        self._counts[generation][bisect_left(_FAST, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        pauses = HistogramMetricFamily(
            "saga_gc_pause_seconds",
            "How long each garbage collection paused the process, by generation.",
            labels=("participant", "generation"),
        )
        edges = [*map(floatToGoString, (*_FAST, math.inf))]
        for generation, counts in enumerate(self._counts):
            buckets = list(zip(edges, itertools.accumulate(counts), strict=True))
            labels = (self._participant, str(generation))
            pauses.add_metric(labels, buckets, self._seconds[generation])
        yield pauses


async def watch_event_loop(participant: str) -> None:
    """Measure how late the event loop is, for ever."""
    lag = _event_loop_lag.labels(participant)
    while True:
        due = time.monotonic() + LAG_SAMPLE_SECONDS
        await asyncio.sleep(LAG_SAMPLE_SECONDS)
        lag.observe(max(0.0, time.monotonic() - due))


class _Measured(Collector):
    """Of a registry, the families of which there is a sample. This module has those of every kind
    of process, and no process measures all."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """For an encoder."""
        return (family for family in self._registry.collect() if family.samples)


class Scrapes:
    """Answers who reads the metrics: with what is measured now, or, once they are read too often,
    with what was measured a moment ago. Making it takes some 10 ms of an event loop, and any client
    may ask."""

    def __init__(
        self,
        before: Callable[[], Awaitable[None]],
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`before` brings up to date what is measured only when metrics are read."""
        self._before = before
        self._registry = registry
        self._rate = CallerRates(SCRAPES_PER_SECOND, clock)
        self._latest: dict[str, bytes] = {}
        """Keyed by media type."""

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """See `exposition`."""
        media = _encoder(accept)[1]
        latest = self._latest.get(media)
        if latest is not None and self._rate.wait_seconds(media) > 0:
            return latest, media
        await self._before()
        self._latest[media], media = exposition(accept, self._registry)
        return self._latest[media], media


def exposition(accept: str, registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """All that is measured, in the format that the `Accept` header asks for, and its media type.

    Only OpenMetrics has exemplars. A header that asks for a version which is none gets text.
    """
    encode, media = _encoder(accept)
    return encode(_Measured(registry)), media


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # It compares what it could read of a version with numbers.
        return choose_encoder("")


def _words(intent: type[Intent]) -> str:
    """`AskAgain` as `ask_again`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in intent.__name__).lstrip("_")
