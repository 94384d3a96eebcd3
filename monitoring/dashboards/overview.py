"""*Saga overview*: whether sagas end, and in time, and if not, what sort of trouble it is."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards.panels import (
    CHOSEN,
    NONE_IS_RIGHT,
    Limits,
    Query,
    bars,
    figure,
    graph,
    page,
    rows,
)
from saga.runtime.metrics import URGENT_OBJECTIVE_SECONDS


def _rate(metric: str, more: str = "") -> str:
    return f"sum(rate({metric}{{{CHOSEN}{more}}}[$__rate_interval]))"


def dashboard() -> Dashboard:
    found = page(
        "Saga overview",
        "saga-overview",
        "Sagas from their beginning to their end: the golden signals, the objectives, the steps.",
    )
    return rows(
        found,
        Do_they_end=[
            figure(
                "Begun",
                "reqps",
                "Sagas begun per second. `saga publish` begins some for a test.",
                Query(_rate("saga_begun_total")),
                nothing="no traffic",
            ),
            figure(
                "Late, last hour",
                "percentunit",
                "Share of the sagas that ended after their deadline; the objective is at most "
                "0.1 %. Red: a month's error budget is gone within two days. "
                "Runbook: docs/runbooks/DeadlinesBurnFast.md.",
                Query(f"max(saga:late:ratio_rate1h{{{CHOSEN}}})"),
                limits=Limits(warning=0.001, bad=0.0144),
                nothing="no traffic",
            ),
            figure(
                "Urgent and slow, last hour",
                "percentunit",
                f"Share of the urgent sagas that took more than {URGENT_OBJECTIVE_SECONDS} s; the "
                "objective is at most 1 %. Runbook: docs/runbooks/UrgentBurnFast.md.",
                Query(f"max(saga:urgent_slow:ratio_rate1h{{{CHOSEN}}})"),
                limits=Limits(warning=0.01, bad=0.144),
                nothing="no traffic",
            ),
            figure(
                "Pending",
                "short",
                "Sagas that have begun and not ended. Milliseconds' worth of traffic is normal.",
                Query(f"sum(saga:pending:max{{{CHOSEN}}})"),
                limits=Limits(warning=1_000, bad=10_000),
                nothing="unknown",
            ),
            figure(
                "Overdue",
                "short",
                "Sagas about which something was due, and has not been done. Look: `saga status`. "
                "Runbook: docs/runbooks/SagasStuck.md.",
                Query(f"sum(saga:overdue:max{{{CHOSEN}}})"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            figure(
                "Alerts",
                "short",
                "Alerts that fire. Each has a page in docs/runbooks.",
                Query('count(ALERTS{alertstate="firing"}) or vector(0)'),
                limits=NONE_IS_RIGHT,
            ),
        ],
        Golden_signals=[
            graph(
                "Traffic",
                "reqps",
                "Sagas begun, and sagas ended. When fewer end than begin, work piles up.",
                Query(_rate("saga_begun_total"), "begun"),
                Query(_rate("saga_ended_total"), "ended"),
                Query(_rate("saga_turned_away_total"), "turned away"),
                nothing="no traffic",
                width=6,
            ),
            graph(
                "Errors",
                "reqps",
                "What should not happen: deadlines passed, messages failed and dead. "
                "`saga dlq list` groups dead letters by what went wrong.",
                Query(_rate("saga_ended_total", ',in_time="false"'), "late"),
                Query(_rate("saga_messages_retried_total"), "tried again"),
                Query(_rate("saga_messages_dead_lettered_total"), "dead"),
                limits=Limits(warning=0.1, bad=1),
                width=6,
            ),
            graph(
                "Latency by priority",
                "s",
                "From beginning to end: half of the sagas, and 99 of 100, are faster. Points "
                f"lead to traces. Urgent ones are to end within {URGENT_OBJECTIVE_SECONDS} s.",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le, priority) "
                        f"(rate(saga_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                        f"{{{{priority}}}} p{quantile * 100:g}",
                    )
                    for quantile in (0.5, 0.99)
                ),
                limits=Limits(warning=1, bad=URGENT_OBJECTIVE_SECONDS),
                nothing="no traffic",
                traces=True,
                width=6,
            ),
            graph(
                "Saturation",
                "short",
                "What waits: messages in work queues, messages being worked on, events that are "
                "not published yet. `saga status` shows each queue.",
                Query(
                    f'sum(queue:rabbitmq_messages_ready:max{{{CHOSEN},queue=~".+[.](high|normal)([.][0-9]+)?"}})',
                    "in work queues",
                ),
                Query(f"sum(saga_messages_in_flight{{{CHOSEN}}})", "in flight"),
                Query(f"sum(saga_outbox_backlog{{{CHOSEN}}})", "unpublished"),
                limits=Limits(warning=5_000, bad=50_000),
                width=6,
            ),
        ],
        Outcomes=[
            bars(
                "How far they came",
                "short",
                "Events published in the time shown, by type, the most frequent in front: between "
                "two of a saga's steps lie refusals and cancellations. `saga map` draws the way.",
                Query(
                    f"sort_desc(sum by (type) "
                    f"(increase(saga_events_published_total{{{CHOSEN}}}[$__range])))",
                    "{{type}}",
                ),
                nothing="no traffic",
                width=6,
            ),
            graph(
                "Outcomes",
                "reqps",
                "Sagas that ended, by the event they ended with and the reason it gives. A "
                "business no is no fault; a deadline that has passed is.",
                Query(
                    "sum by (outcome, reason) "
                    f"(rate(saga_ended_total{{{CHOSEN}}}[$__rate_interval])) > 0",
                    "{{outcome}} {{reason}}",
                ),
                nothing="no traffic",
                stacked=True,
                traces=True,
                width=10,
            ),
            graph(
                "Compensations",
                "reqps",
                "Events that say that something was undone for a cancelled saga, or that there was "
                "nothing to undo.",
                Query(
                    "sum by (participant, type) "
                    f"(rate(saga_compensations_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{participant}}: {{type}}",
                ),
                nothing="no traffic",
                traces=True,
                width=8,
            ),
        ],
        Objectives=[
            graph(
                "Late, by window",
                "percentunit",
                "The windows of the burn-rate alerts. 0.1 % is the objective. "
                "Runbook: docs/runbooks/DeadlinesBurnSlowly.md.",
                *(
                    Query(f"max(saga:late:ratio_rate{window}{{{CHOSEN}}})", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                limits=Limits(warning=0.001, bad=0.0144),
                nothing="no traffic",
                width=12,
            ),
            graph(
                "Urgent and slow, by window",
                "percentunit",
                "The windows of the burn-rate alerts. 1 % is the objective. "
                "Runbook: docs/runbooks/UrgentBurnSlowly.md.",
                *(
                    Query(f"max(saga:urgent_slow:ratio_rate{window}{{{CHOSEN}}})", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                limits=Limits(warning=0.01, bad=0.144),
                nothing="no traffic",
                width=12,
            ),
        ],
    ).build()
