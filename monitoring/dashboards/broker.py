"""*Broker*: RabbitMQ's queues, and whether it still takes messages."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards.panels import (
    CHOSEN,
    NONE_IS_RIGHT,
    Limits,
    Query,
    choice,
    figure,
    graph,
    page,
    rows,
)

_HERE = f'{CHOSEN},vhost=~"$vhost"'
_WORK = f'{_HERE},queue=~".+[.](high|normal)([.][0-9]+)?"'
_WAIT = f'{_HERE},queue=~"saga[.]retry[.].+"'
_DEAD = f'{_HERE},queue=~".+[.]dlq"'


def _messages(what: str) -> str:
    return f"sum(rate(rabbitmq_global_messages_{what}_total[$__rate_interval]))"


def _from_queues(what: str) -> str:
    """Without the history, which every reconciliation reads from its beginning."""
    return _messages(what).replace("_total", '_total{queue_type="rabbit_quorum_queue"}')


def dashboard() -> Dashboard:
    found = page(
        "Broker",
        "saga-broker",
        "Queues, deliveries and the health of RabbitMQ's nodes. Queues are those of the sagas and "
        "virtual hosts that are chosen; deliveries and nodes, those of the whole broker.",
        choice(
            "vhost",
            "Virtual host",
            f"label_values(queue:rabbitmq_consumers:max{{{CHOSEN}}}, vhost)",
        ),
    )
    return rows(
        found,
        At_a_glance=[
            figure(
                "Nodes",
                "short",
                "Nodes that answer Prometheus.",
                Query('sum(up{job="rabbitmq"})'),
                nothing="none answers",
            ),
            figure(
                "Memory alarms",
                "short",
                "While one is on, publishers are blocked. "
                "Runbook: docs/runbooks/BrokerMemoryAlarm.md.",
                Query("sum(rabbitmq_alarms_memory_used_watermark)"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            figure(
                "Disk alarms",
                "short",
                "While one is on, publishers are blocked. "
                "Runbook: docs/runbooks/BrokerDiskAlarm.md.",
                Query("sum(rabbitmq_alarms_free_disk_space_watermark)"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            figure(
                "Queues without consumers",
                "short",
                "Work queues without a consumer. Runbook: docs/runbooks/QueueWithoutConsumers.md.",
                Query(f"count(queue:rabbitmq_consumers:max{{{_WORK}}} == 0) or vector(0)"),
                limits=NONE_IS_RIGHT,
            ),
            figure(
                "Unroutable",
                "short",
                "Messages no queue took, in the time shown. `saga topology diff` tells what is "
                "missing. Runbook: docs/runbooks/MessagesUnroutable.md.",
                Query(
                    "sum(increase(rabbitmq_global_messages_unroutable_returned_total[$__range])) + "
                    "sum(increase(rabbitmq_global_messages_unroutable_dropped_total[$__range]))"
                ),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            figure(
                "Dead letters",
                "short",
                "In the dead-letter queues; `saga dlq list` moves them to the store. "
                "Runbook: docs/runbooks/DeadLettersPresent.md.",
                Query(f"sum(queue:rabbitmq_messages_ready:max{{{_DEAD}}})"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
        ],
        Queues=[
            graph(
                "Waiting to be read",
                "short",
                "Messages ready in each work queue. An urgent queue is to be nearly empty.",
                Query(f"queue:rabbitmq_messages_ready:max{{{_WORK}}}", "{{vhost}} {{queue}}"),
                limits=Limits(warning=5_000, bad=50_000),
                nothing="unknown",
                width=12,
            ),
            graph(
                "Being worked on",
                "short",
                "Messages delivered and not yet acknowledged; at most 300 per consumer.",
                Query(f"queue:rabbitmq_messages_unacked:max{{{_WORK}}}", "{{vhost}} {{queue}}"),
                limits=Limits(warning=1_000, bad=5_000),
                nothing="unknown",
                width=12,
            ),
            graph(
                "Waiting for their next try",
                "short",
                "Failed messages in the wait queues, which are called by their delay in "
                "milliseconds.",
                Query(f"queue:rabbitmq_messages_ready:max{{{_WAIT}}}", "{{vhost}} {{queue}}"),
                limits=Limits(warning=100, bad=1_000),
                nothing="unknown",
            ),
            graph(
                "Dead-letter queues",
                "short",
                "Until an operator's command collects them. Look: `saga dlq list`.",
                Query(f"queue:rabbitmq_messages_ready:max{{{_DEAD}}}", "{{vhost}} {{queue}}"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            graph(
                "Consumers",
                "short",
                "Readers of each work queue: one per replica.",
                Query(f"queue:rabbitmq_consumers:max{{{_WORK}}}", "{{vhost}} {{queue}}"),
                nothing="unknown",
            ),
        ],
        Deliveries=[
            graph(
                "Through the broker",
                "mps",
                "Published, confirmed, delivered and acknowledged. Each event is copied to every "
                "queue it is bound to; reading the history does not count.",
                Query(_messages("received"), "published"),
                Query(_messages("confirmed"), "confirmed"),
                Query(_from_queues("delivered"), "delivered"),
                Query(_from_queues("acknowledged"), "acknowledged"),
                nothing="no traffic",
            ),
            graph(
                "Delivered again",
                "percentunit",
                "Share of the deliveries that were delivered before and not acknowledged. "
                "Reconciling takes and returns dead letters, which shows where little is going on. "
                "Runbook: docs/runbooks/RedeliveryStorm.md.",
                Query(
                    f"{_from_queues('redelivered')} / ({_from_queues('delivered')} > 0)",
                    "delivered again",
                ),
                limits=Limits(warning=0.05, bad=0.2),
                nothing="no traffic",
            ),
            graph(
                "Unroutable",
                "mps",
                "Returned to their publisher, who keeps them; dropped ones are gone. Look: "
                "`saga topology diff`.",
                Query(_messages("unroutable_returned"), "returned"),
                Query(_messages("unroutable_dropped"), "dropped"),
                limits=Limits(bad=0.01),
                nothing="unknown",
            ),
        ],
        Nodes=[
            graph(
                "Memory",
                "percentunit",
                "Share of what a node may use before it blocks publishers.",
                Query(
                    "rabbitmq_process_resident_memory_bytes / rabbitmq_resident_memory_limit_bytes",
                    "{{instance}}",
                ),
                limits=Limits(warning=0.7, bad=1),
                nothing="unknown",
            ),
            graph(
                "Disk space",
                "bytes",
                "Free space, and the limit below which a node blocks publishers.",
                Query("rabbitmq_disk_space_available_bytes", "{{instance}} free"),
                Query("rabbitmq_disk_space_available_limit_bytes", "{{instance}} limit"),
                nothing="unknown",
            ),
            graph(
                "Connections",
                "short",
                "Each replica has two: one to read, one to publish.",
                Query("rabbitmq_connections", "{{instance}} connections"),
                Query("rabbitmq_channels", "{{instance}} channels"),
                limits=Limits(warning=500, bad=2_000),
                nothing="unknown",
            ),
        ],
    ).build()
