"""`saga exporter`: what no service knows, for Prometheus: the store of dead letters, and the books.

One per system is enough. It only reads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from saga import reconcile as books
from saga.auth.access import begin
from saga.clock import elapsed
from saga.deployment import Deployment
from saga.discovery import choreography, saga
from saga.dlq import DlqError
from saga.dlq.figures import figures
from saga.dlq.states import ItemState
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.readiness import Readiness
from saga.runtime.server import Server, listen, url_of
from saga.runtime.settings import HttpSettings, load
from saga.runtime.tls import context_of
from saga.runtime.web import create_app
from saga.text import harmless

log = logging.getLogger(__name__)

RECONCILE_SECONDS: Final = 300.0
"""From one reconciliation's end to the next one's start. Each reads the whole history."""
GRACE_SECONDS: Final = 10.0


class Exporter(Collector):
    """Serves the figures while it is entered; `run` reconciles for ever.

    HTTP has a thread and an event loop of its own: reconciling a long history keeps the other one
    busy for seconds.
    """

    def __init__(self, deployment: Deployment, *, host: str, port: int) -> None:
        """Raises `SettingsError`."""
        self._deployment = deployment
        self._settings = load(HttpSettings).model_copy(
            update={"http_host": host, "http_port": port}
        )
        self._participants = [p.name for p in choreography().participants]
        self._violations: Counter[str] = Counter()
        self._not_covered = 0
        self._reconciled_at: float | None = None
        self._took_seconds = 0.0
        self._failures = 0
        self._letters: list[Metric] = []
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.url = ""
        """Where Prometheus is to look, once it is entered."""

    def __enter__(self) -> Self:
        """Raises `OSError` for an address that cannot be listened on, and `SettingsError`."""
        settings = self._settings
        begin(settings, "exporter")
        registry = CollectorRegistry()
        registry.register(self)
        app = create_app(
            "saga exporter",
            settings,
            readiness=Readiness(),
            before_scrape=self._look_at_letters,
            registry=registry,
            process="exporter",
        )
        listener = listen(settings.http_host, settings.http_port, way_out="--host or --port")
        self.url = f"{url_of(listener, settings.http_scheme)}/metrics"
        self._server = Server(
            app,
            connections_max=settings.http_connections_max,
            headers_max_bytes=settings.http_headers_max_bytes,
            tls=context_of(settings),
        )
        serving = self._server.serve([listener])
        self._thread = threading.Thread(target=asyncio.run, args=(serving,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()

    async def run(self, seconds: float = RECONCILE_SECONDS) -> None:
        """Reconcile again and again; what cannot be read now is tried again next time."""
        while True:
            started = time.monotonic()
            try:
                report = await books.reconcile(self._deployment, grace_seconds=GRACE_SECONDS)
            except (BrokerError, DatabaseError, books.ReconcileError) as error:
                self._failures += 1
                log.warning("the books cannot be read: %s", error)
            else:
                self._violations = Counter(found.rule for found in report.violations)
                self._not_covered = len(report.not_covered)
                self._took_seconds = time.monotonic() - started
                self._reconciled_at = time.time()
            await asyncio.sleep(seconds)

    async def _look_at_letters(self) -> None:
        """Read the store for the next `collect`; in a thread, as that blocks."""
        try:
            self._letters = await asyncio.to_thread(lambda: list(self._dead_letters()))
        except DlqError as error:
            log.warning("%s", error)
            self._letters = []

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return [*self._letters, *self._books()]

    def _dead_letters(self) -> Iterator[Metric]:
        found = figures(self._deployment.dead_letters_url)
        stored = GaugeMetricFamily(
            "saga_dead_letters",
            "Dead letters in the operator's store, by kind of failure.",
            labels=("participant", "reason", "fingerprint"),
        )
        for kind, count in found.here.items():
            stored.add_metric(tuple(map(harmless, kind)), count)
        oldest = GaugeMetricFamily(
            "saga_dead_letters_oldest_seconds",
            "Since the first failure of the oldest dead letter in the store; 0 if there is none.",
            labels=("participant",),
        )
        now = utc_now()
        for name in {*self._participants, *found.oldest}:
            age_seconds = elapsed(found.oldest.get(name, now), now).total_seconds()
            oldest.add_metric((name,), age_seconds)
        replayed = GaugeMetricFamily(
            "saga_dead_letters_replayed",
            "Dead letters taken into replays, by what became of them.",
            labels=("outcome",),
        )
        for outcome in ItemState:
            replayed.add_metric((outcome,), found.replayed.get(outcome, 0))
        yield from (stored, oldest, replayed)

    def _books(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "saga_reconcile_failures",
            "Reconciliations that could not read everything.",
            self._failures,
        )
        if self._reconciled_at is None:
            return
        violations = GaugeMetricFamily(
            "saga_reconcile_violations",
            "What the last reconciliation found wrong, by the rule that is broken.",
            labels=("rule",),
        )
        for rule in books.rule_names(saga()):
            violations.add_metric((rule,), self._violations[rule])
        yield violations
        yield GaugeMetricFamily(
            "saga_reconcile_not_covered",
            "What no invariant reads, or whose books cannot be read: nothing can be said of it.",
            self._not_covered,
        )
        yield GaugeMetricFamily(
            "saga_reconcile_timestamp_seconds",
            "When the last reconciliation ended that could read everything.",
            self._reconciled_at,
        )
        yield GaugeMetricFamily(
            "saga_reconcile_seconds", "How long that one took.", self._took_seconds
        )
