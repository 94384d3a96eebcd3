"""*Dead letters*: what nobody could process, since when, and what replays made of it; the books."""

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

HOUR, DAY = 3_600, 86_400


def dashboard() -> Dashboard:
    found = page(
        "Dead letters",
        "saga-dead-letters",
        "Messages set aside for a person, in the broker's queues and in the operator's store, and "
        "what the last reconciliation found.",
    )
    return rows(
        found,
        At_a_glance=[
            figure(
                "Dead letters",
                "short",
                "In queues and store together. Look: `saga dlq list`. "
                "Runbook: docs/runbooks/DeadLettersPresent.md.",
                Query("sum(participant:saga_dead_letters:sum)"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
            figure(
                "Oldest in the store",
                "s",
                "Since its first failure. Orders wait for it until their deadline.",
                Query("max(saga_dead_letters_oldest_seconds)"),
                limits=Limits(warning=HOUR, bad=DAY),
                nothing="unknown",
                width=6,
            ),
            figure(
                "Violations",
                "short",
                "What the last reconciliation found wrong. Look: `saga reconcile`. "
                "Runbook: docs/runbooks/BooksDoNotAddUp.md.",
                Query("sum(saga_reconcile_violations)"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
            figure(
                "Books checked",
                "s",
                "Since the last reconciliation that could read everything. "
                "Runbook: docs/runbooks/BooksNotChecked.md.",
                Query("time() - max(saga_reconcile_timestamp_seconds)"),
                limits=Limits(warning=900, bad=1_800),
                nothing="never",
                width=6,
            ),
        ],
        What_is_dead=[
            graph(
                "By participant",
                "short",
                "In queues and store together. `saga dlq list --by service` shows the same.",
                Query("participant:saga_dead_letters:sum", "{{participant}}"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            bars(
                "By fingerprint, in the store",
                "short",
                "Alike failures have the same fingerprint: `saga dlq list --fingerprint` and the "
                "twelve digits list them, `saga dlq replay --fingerprint` sends them again.",
                Query(
                    "sort_desc(sum by (participant, fingerprint) (saga_dead_letters))",
                    "{{participant}} {{fingerprint}}",
                ),
                limits=NONE_IS_RIGHT,
            ),
            graph(
                "Age of the oldest, in the store",
                "s",
                "Since its first failure, by participant.",
                Query("saga_dead_letters_oldest_seconds", "{{participant}}"),
                limits=Limits(warning=HOUR, bad=DAY),
                nothing="unknown",
            ),
        ],
        How_they_come_and_go=[
            graph(
                "Dying",
                "mps",
                "By reason. `failed` is a reaction's error; the others say what could not be read. "
                "Points lead to traces.",
                Query(
                    "sum by (participant, reason) "
                    "(rate(saga_messages_dead_lettered_total[$__rate_interval]))",
                    "{{participant}}: {{reason}}",
                ),
                limits=Limits(warning=0.01, bad=0.1),
                traces=True,
            ),
            graph(
                "Replayed",
                "mps",
                "Dead letters that came back to their participant. Try `saga dlq replay --dry-run` "
                "first.",
                Query(
                    "sum by (participant, type) "
                    "(rate(saga_messages_replayed_total[$__rate_interval]))",
                    "{{participant}} {{type}}",
                ),
            ),
            bars(
                "What replays made of them",
                "short",
                "All replays together: `done`, `failed` again, not heard of in time, not sent.",
                Query("sum by (outcome) (saga_dead_letters_replayed)", "{{outcome}}"),
                nothing="never replayed",
            ),
        ],
        The_books=[
            graph(
                "Violations by rule",
                "short",
                "What does not add up: money, stock, orders, messages. Look: `saga reconcile`.",
                Query(
                    "topk(10, max by (rule) (saga_reconcile_violations))",
                    "{{rule}}",
                ),
                limits=NONE_IS_RIGHT,
                nothing="never checked",
                width=12,
            ),
            graph(
                "Reconciling",
                "s",
                "How long the last reconciliation took. It reads the whole history.",
                Query("max(saga_reconcile_seconds)", "took"),
                limits=Limits(warning=60, bad=300),
                nothing="never checked",
                width=6,
            ),
            graph(
                "Reconciliations that failed",
                "short",
                "They could not read everything, in the last hour. Look: `saga reconcile`.",
                Query("increase(saga_reconcile_failures_total[1h])", "failed"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
        ],
    ).build()
