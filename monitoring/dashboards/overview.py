"""*Saga overview*: whether customers are served, and if not, what sort of trouble it is."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards.panels import (
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

_FUNNEL = {
    "placed": "order.placed",
    "stock reserved": "stock.reserved",
    "charged": "payment.charged",
    "confirmed": "order.confirmed",
}


def dashboard() -> Dashboard:
    found = page(
        "Saga overview",
        "saga-overview",
        "Orders from their start to their end: the golden signals, the objectives, the funnel.",
    )
    return rows(
        found,
        Are_customers_served=[
            figure(
                "Orders",
                "reqps",
                "Orders placed per second. `saga publish` places test orders.",
                Query("sum(rate(saga_orders_started_total[$__rate_interval]))"),
                nothing="no traffic",
            ),
            figure(
                "Late, last hour",
                "percentunit",
                "Share of the orders that ended after their deadline; the objective is at most "
                "0.1 %. Red: a month's error budget is gone within two days. "
                "Runbook: docs/runbooks/OrderDeadlinesBurnFast.md.",
                Query("saga:orders_late:ratio_rate1h"),
                limits=Limits(warning=0.001, bad=0.0144),
                nothing="no traffic",
            ),
            figure(
                "Urgent and slow, last hour",
                "percentunit",
                f"Share of the urgent orders that took more than {URGENT_OBJECTIVE_SECONDS} s; the "
                "objective is at most 1 %. Runbook: docs/runbooks/UrgentOrdersBurnFast.md.",
                Query("saga:urgent_orders_slow:ratio_rate1h"),
                limits=Limits(warning=0.01, bad=0.144),
                nothing="no traffic",
            ),
            figure(
                "Pending",
                "short",
                "Orders that have not ended. Milliseconds' worth of traffic is normal.",
                Query("saga:orders_pending:max"),
                limits=Limits(warning=1_000, bad=10_000),
                nothing="unknown",
            ),
            figure(
                "Overdue",
                "short",
                "Orders past their deadline that have not ended. Look: `saga status`. "
                "Runbook: docs/runbooks/OrdersStuck.md.",
                Query("saga:orders_overdue:max"),
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
                "Orders placed, and orders ended. When fewer end than are placed, work piles up.",
                Query("sum(rate(saga_orders_started_total[$__rate_interval]))", "placed"),
                Query("sum(rate(saga_orders_ended_total[$__rate_interval]))", "ended"),
                Query("sum(rate(saga_orders_turned_away_total[$__rate_interval]))", "turned away"),
                nothing="no traffic",
                width=6,
            ),
            graph(
                "Errors",
                "reqps",
                "What should not happen: deadlines passed, messages failed and dead. "
                "`saga dlq list` groups dead letters by what went wrong.",
                Query(
                    'sum(rate(saga_orders_ended_total{in_time="false"}[$__rate_interval]))', "late"
                ),
                Query("sum(rate(saga_messages_retried_total[$__rate_interval]))", "tried again"),
                Query("sum(rate(saga_messages_dead_lettered_total[$__rate_interval]))", "dead"),
                limits=Limits(warning=0.1, bad=1),
                width=6,
            ),
            graph(
                "Latency by priority",
                "s",
                "From placing an order to its end: half of them, and 99 of 100, are faster. Points "
                f"lead to traces. Urgent orders are to end within {URGENT_OBJECTIVE_SECONDS} s.",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le, priority) "
                        "(rate(saga_order_seconds_bucket[$__rate_interval])))",
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
                    'sum(queue:rabbitmq_messages_ready:max{queue=~".+[.](high|normal)"})',
                    "in work queues",
                ),
                Query("sum(saga_messages_in_flight)", "in flight"),
                Query("sum(saga_outbox_backlog)", "unpublished"),
                limits=Limits(warning=5_000, bad=50_000),
                width=6,
            ),
        ],
        Outcomes=[
            bars(
                "Funnel",
                "short",
                "How far orders came in the time shown. Between two steps lie rejections, declines "
                "and cancellations.",
                *(
                    Query(
                        f'sum(increase(saga_events_published_total{{type="{type_}"}}[$__range]))',
                        step,
                    )
                    for step, type_ in _FUNNEL.items()
                ),
                nothing="no traffic",
                width=6,
            ),
            graph(
                "Outcomes",
                "reqps",
                "Orders that ended, by outcome and reason. A business no is no fault; "
                "deadline_exceeded is.",
                Query(
                    "sum by (outcome, reason) "
                    "(rate(saga_orders_ended_total[$__rate_interval])) > 0",
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
                "What was undone for cancelled orders; `nothing` where there was nothing to undo.",
                Query(
                    "sum by (participant, effect) "
                    "(rate(saga_compensations_total[$__rate_interval]))",
                    "{{participant}}: {{effect}}",
                ),
                nothing="no traffic",
                traces=True,
                width=8,
            ),
        ],
        Objectives=[
            graph(
                "Orders late, by window",
                "percentunit",
                "The windows of the burn-rate alerts. 0.1 % is the objective. "
                "Runbook: docs/runbooks/OrderDeadlinesBurnSlowly.md.",
                *(
                    Query(f"saga:orders_late:ratio_rate{window}", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                limits=Limits(warning=0.001, bad=0.0144),
                nothing="no traffic",
                width=12,
            ),
            graph(
                "Urgent orders slow, by window",
                "percentunit",
                "The windows of the burn-rate alerts. 1 % is the objective. "
                "Runbook: docs/runbooks/UrgentOrdersBurnSlowly.md.",
                *(
                    Query(f"saga:urgent_orders_slow:ratio_rate{window}", window)
                    for window in ("5m", "1h", "6h", "3d")
                ),
                limits=Limits(warning=0.01, bad=0.144),
                nothing="no traffic",
                width=12,
            ),
        ],
    ).build()
