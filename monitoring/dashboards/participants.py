"""*Participants*: rate, errors and duration of each, and the kernel below."""

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

_MINE = f'{CHOSEN},participant=~"$participant"'


def _rate(metric: str, *by: str, more: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{_MINE}{more}}}[$__rate_interval]))"


def _quantile(metric: str, *by: str, quantile: float = 0.99) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', 'le', *by)})"


def dashboard() -> Dashboard:
    participants = f"label_values(saga_build_info{{{CHOSEN}}}, participant)"
    participant = choice("participant", "Participant", participants)
    found = page(
        "Participants",
        "saga-participants",
        "Each participant's messages, reactions, transactions and outbox.",
        participant,
    )
    return rows(
        found,
        At_a_glance=[
            figure(
                "Replicas",
                "short",
                "Processes that answer. Each is scraped by itself.",
                Query(f"count(saga_build_info{{{_MINE}}})"),
                nothing="none answers",
                width=6,
            ),
            figure(
                "Databases away",
                "short",
                "Replicas that cannot read their database. Runbook: docs/runbooks/DatabaseAway.md.",
                Query(f"count(saga_database_up{{{_MINE}}} == 0) or vector(0)"),
                limits=NONE_IS_RIGHT,
                width=6,
            ),
            figure(
                "Oldest unpublished event",
                "s",
                "Age of the oldest row in any outbox. Rows of confirmed events stay for up to "
                "0.2 s. Runbook: docs/runbooks/OutboxStuck.md.",
                Query(f"max(participant:saga_outbox_oldest_seconds:max{{{_MINE}}})"),
                limits=Limits(warning=5, bad=60),
                nothing="unknown",
                width=6,
            ),
            figure(
                "Decisions refused",
                "short",
                "Reactions that returned what their signature does not allow, in the time shown: a "
                "bug. `saga dlq list` names the messages.",
                Query(
                    f"sum(increase(saga_reactions_refused_total{{{_MINE}}}[$__range])) or vector(0)"
                ),
                limits=NONE_IS_RIGHT,
                width=6,
            ),
        ],
        Rate_errors_duration=[
            graph(
                "Messages taken",
                "mps",
                "One line per type. A participant reacts once to each type.",
                Query(
                    _rate("saga_messages_consumed_total", "participant", "type"),
                    "{{participant}} {{type}}",
                ),
                nothing="no traffic",
                stacked=True,
            ),
            graph(
                "Messages not done",
                "mps",
                "Failed and undecodable messages; each is tried again or dead. Duplicates were "
                "done before, and skipped. `saga dlq list` tells why letters are dead.",
                Query(
                    _rate(
                        "saga_messages_consumed_total",
                        "participant",
                        "outcome",
                        more=',outcome!="done"',
                    ),
                    "{{participant}} {{outcome}}",
                ),
                limits=Limits(warning=0.1, bad=1),
            ),
            graph(
                "Time to commit, 99 of 100",
                "s",
                "From taking a message to its commit, waiting and asking included. Points lead to "
                "traces.",
                Query(
                    _quantile("saga_message_seconds", "participant", "type"),
                    "{{participant}} {{type}}",
                ),
                limits=Limits(warning=0.5, bad=2.5),
                nothing="no traffic",
                traces=True,
            ),
            graph(
                "Tried again",
                "mps",
                "Messages that wait for their next try, by type.",
                Query(
                    _rate("saga_messages_retried_total", "participant", "type"),
                    "{{participant}} {{type}}",
                ),
                limits=Limits(warning=0.1, bad=1),
            ),
            graph(
                "Reactions, 99 of 100",
                "s",
                "A reaction's own time. They are pure, so this is CPU.",
                Query(
                    _quantile("saga_reaction_seconds", "participant", "reaction"),
                    "{{participant}}.{{reaction}}",
                ),
                limits=Limits(warning=0.001, bad=0.01),
                nothing="no traffic",
            ),
            graph(
                "Calls to the outside, 99 of 100",
                "s",
                "Questions to the outside, asked once more ones among them, by outcome.",
                Query(
                    _quantile("saga_outside_call_seconds", "participant", "call", "outcome"),
                    "{{call}} {{outcome}}",
                ),
                limits=Limits(warning=1, bad=5),
                nothing="no calls",
            ),
            graph(
                "Calls to the outside",
                "reqps",
                "How many, by outcome. A no is an answer.",
                Query(
                    _rate("saga_outside_call_seconds_count", "participant", "call", "outcome"),
                    "{{call}} {{outcome}}",
                ),
                nothing="no calls",
            ),
            graph(
                "Events published",
                "mps",
                "Events the broker has confirmed, by type.",
                Query(
                    _rate("saga_events_published_total", "participant", "type"),
                    "{{participant}} {{type}}",
                ),
                nothing="no traffic",
                stacked=True,
            ),
            graph(
                "Not published",
                "mps",
                "Attempts that the broker refused, could not route, or did not confirm. "
                "Runbook: docs/runbooks/MessagesUnroutable.md.",
                Query(
                    _rate("saga_event_publish_failures_total", "participant", "error")
                    + " or 0 * "
                    + _rate("saga_outbox_swept_total", "participant"),
                    "{{participant}} {{error}}",
                ),
                limits=Limits(warning=0.1, bad=1),
            ),
        ],
        Transactions_and_outbox=[
            graph(
                "Messages per transaction",
                "short",
                "The mean size of a group. It grows with the load; that is what makes durability "
                "cheap.",
                Query(
                    f"{_rate('saga_group_messages_sum', 'participant')} / "
                    f"{_rate('saga_group_messages_count', 'participant')}",
                    "{{participant}}",
                ),
                nothing="no traffic",
            ),
            graph(
                "Transactions, 99 of 100",
                "s",
                "One group's transaction, with its fsync.",
                Query(_quantile("saga_commit_seconds", "participant"), "{{participant}}"),
                limits=Limits(warning=0.1, bad=0.5),
                nothing="no traffic",
            ),
            graph(
                "Publishing, 99 of 100",
                "s",
                "From publishing a batch to the broker's last confirm.",
                Query(_quantile("saga_publish_seconds", "participant"), "{{participant}}"),
                limits=Limits(warning=0.25, bad=1),
                nothing="no traffic",
            ),
            graph(
                "Outbox rows",
                "short",
                "Committed events that are not published, or not forgotten yet; of all replicas. "
                "An idle outbox is empty.",
                Query(f"participant:saga_outbox_rows:max{{{_MINE}}}", "{{participant}}"),
                limits=Limits(warning=1_000, bad=10_000),
                nothing="unknown",
            ),
            graph(
                "Swept",
                "mps",
                "Events published from the table and not from memory: after a crash, a failure or "
                "an overflow.",
                Query(_rate("saga_outbox_swept_total", "participant"), "{{participant}}"),
                limits=Limits(warning=1),
            ),
            graph(
                "Inbox rows",
                "short",
                "Messages remembered as done.",
                Query(f"participant:saga_inbox_rows:max{{{_MINE}}}", "{{participant}}"),
                limits=Limits(warning=10_000_000, bad=100_000_000),
                nothing="unknown",
            ),
            graph(
                "In flight",
                "short",
                "Messages taken and not yet resolved. At most 300 per queue and replica come from "
                "the broker.",
                Query(
                    f"sum by (participant) (saga_messages_in_flight{{{_MINE}}})", "{{participant}}"
                ),
                limits=Limits(warning=600, bad=1_200),
            ),
            graph(
                "Paused",
                "percentunit",
                "Share of the time spent waiting for database or broker to come back.",
                Query(
                    _rate("saga_paused_seconds_total", "participant", "cause"),
                    "{{participant}}: {{cause}}",
                ),
                limits=Limits(warning=0.01, bad=0.5),
            ),
            graph(
                "Tried in vain",
                "short",
                "What a replica tries again and again without success. `saga status` names the "
                "cause. Runbook: docs/runbooks/RetryLoopStuck.md.",
                Query(
                    f"max by (participant, loop) (saga_retry_loop_stuck{{{_MINE}}})",
                    "{{participant}}: {{loop}}",
                ),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            graph(
                "Conflicts",
                "ops",
                "Groups decided again because another replica had written the same state, or done "
                "the same message.",
                Query(_rate("saga_commit_conflicts_total", "participant"), "{{participant}}"),
                limits=Limits(warning=1, bad=10),
            ),
            graph(
                "Event loop lag, 99 of 100",
                "s",
                "How much later than asked the event loop wakes up. It grows when the CPU does not "
                "suffice, or when the disk of a SQLite file stalls.",
                Query(_quantile("saga_event_loop_lag_seconds", "participant"), "{{participant}}"),
                limits=Limits(warning=0.1, bad=0.5),
                nothing="unknown",
            ),
            graph(
                "Garbage collection, 99 of 100",
                "s",
                "How long a collection pauses the process. Collections are rare, even under load; "
                "if they are not, something makes reference cycles.",
                Query(_quantile("saga_gc_pause_seconds", "participant"), "{{participant}}"),
                limits=Limits(warning=0.1, bad=0.5),
            ),
            graph(
                "Time in garbage collection",
                "percentunit",
                "Share of the time that collections take, by generation, youngest first.",
                Query(
                    _rate("saga_gc_pause_seconds_sum", "participant", "generation"),
                    "{{participant}}: {{generation}}",
                ),
                limits=Limits(warning=0.01, bad=0.05),
            ),
            graph(
                "CPU",
                "percentunit",
                "Cores used, by replica.",
                Query(
                    f'rate(process_cpu_seconds_total{{{CHOSEN},job="saga"}}[$__rate_interval])',
                    "{{instance}}",
                ),
                limits=Limits(warning=0.8, bad=0.95),
                nothing="unknown",
            ),
            graph(
                "Free disk",
                "bytes",
                "Room on the disks that replicas write to. Below 100 MB, unless "
                "DISK_FREE_MIN_BYTES says otherwise, nothing new is begun. "
                "Runbook: docs/runbooks/DiskNearlyFull.md.",
                Query(
                    f"min by (participant, folder) (saga_disk_free_bytes{{{_MINE}}})",
                    "{{participant}}: {{folder}}",
                ),
                nothing="unknown",
            ),
            graph(
                "Memory",
                "bytes",
                "Resident memory, by replica.",
                Query(f'process_resident_memory_bytes{{{CHOSEN},job="saga"}}', "{{instance}}"),
                limits=Limits(warning=512 * 2**20, bad=2**30),
                nothing="unknown",
            ),
        ],
        History=[
            graph(
                "Behind",
                "s",
                "From an event to its being kept in the history, by percentile. "
                "Runbook: docs/runbooks/HistoryBehind.md.",
                *(
                    Query(
                        f"histogram_quantile({quantile}, "
                        "sum by (le) "
                        f"(rate(saga_history_delay_seconds_bucket{{{CHOSEN}}}[$__rate_interval])))",
                        name,
                    )
                    for quantile, name in ((0.5, "half of them"), (0.99, "99 of 100"))
                ),
                limits=Limits(warning=5, bad=60),
                nothing="no traffic",
            ),
            graph(
                "Kept",
                "mps",
                "Messages of the stream: new events, those known already, and what was no event. "
                "`saga history verify` compares what is kept with the services' databases.",
                Query(
                    "sum by (outcome) "
                    f"(rate(saga_history_messages_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                nothing="no traffic",
                stacked=True,
            ),
        ],
    ).build()
