"""*Dead letters*: what could not be processed, since when, and what replays made of it; the
books."""

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

HOUR, DAY = 3_600, 86_400


def dashboard() -> Dashboard:
    found = page(
        "Dead letters",
        "saga-dead-letters",
        "Messages set aside for an operator, in the broker's queues and in the operator's store, "
        "and what the last reconciliation found.",
    )
    return rows(
        found,
        At_a_glance=[
            figure(
                "Dead letters",
                "short",
                "In queues and store together. Look: `saga dlq list`. "
                "Runbook: docs/runbooks/DeadLettersPresent.md.",
                Query(f"sum(participant:saga_dead_letters:sum{{{CHOSEN}}})"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
            figure(
                "Oldest in the store",
                "s",
                "Since its first failure. The saga it belongs to waits for it.",
                Query(f"max(saga_dead_letters_oldest_seconds{{{CHOSEN}}})"),
                limits=Limits(warning=HOUR, bad=DAY),
                nothing="unknown",
                width=6,
            ),
            figure(
                "Violations",
                "short",
                "What the last reconciliation found wrong. Look: `saga reconcile`. "
                "Runbook: docs/runbooks/BooksDoNotAddUp.md.",
                Query(f"sum(saga_reconcile_violations{{{CHOSEN}}})"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
            figure(
                "Books checked",
                "s",
                "Since the last reconciliation that could read everything. "
                "Runbook: docs/runbooks/BooksNotChecked.md.",
                Query(f"time() - min(saga_reconcile_timestamp_seconds{{{CHOSEN}}})"),
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
                Query(f"participant:saga_dead_letters:sum{{{CHOSEN}}}", "{{participant}}"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
            ),
            bars(
                "Fingerprints in the store",
                "short",
                "Alike failures have the same fingerprint: `saga dlq list --fingerprint` and the "
                "twelve digits list them, `saga dlq replay --fingerprint` sends them again.",
                Query(
                    f"sort_desc(sum by (participant, fingerprint) (saga_dead_letters{{{CHOSEN}}}))",
                    "{{participant}} {{fingerprint}}",
                ),
                limits=NONE_IS_RIGHT,
            ),
            graph(
                "Age of the oldest, in the store",
                "s",
                "Since its first failure, by participant.",
                Query(f"saga_dead_letters_oldest_seconds{{{CHOSEN}}}", "{{participant}}"),
                limits=Limits(warning=HOUR, bad=DAY),
                nothing="unknown",
            ),
        ],
        How_they_come_and_go=[
            graph(
                "Dying",
                "mps",
                "One line per reason. `failed` is a reaction's error; the others say what could "
                "not be read. Points lead to traces.",
                Query(
                    "sum by (participant, reason) "
                    f"(rate(saga_messages_dead_lettered_total{{{CHOSEN}}}[$__rate_interval]))",
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
                    f"(rate(saga_messages_replayed_total{{{CHOSEN}}}[$__rate_interval]))",
                    "{{participant}} {{type}}",
                ),
            ),
            bars(
                "What replays made of them",
                "short",
                "All replays together: `done`, `failed` again, not heard of in time, not sent.",
                Query(f"sum by (outcome) (saga_dead_letters_replayed{{{CHOSEN}}})", "{{outcome}}"),
                nothing="never replayed",
            ),
        ],
        The_books=[
            graph(
                "Violations by rule",
                "short",
                "What does not add up, by the rule that is broken. Look: `saga reconcile`.",
                Query(
                    f"topk(10, max by (saga, rule) (saga_reconcile_violations{{{CHOSEN}}}))",
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
                Query(f"max(saga_reconcile_seconds{{{CHOSEN}}})", "took"),
                limits=Limits(warning=60, bad=300),
                nothing="never checked",
                width=6,
            ),
            graph(
                "Reconciliations that failed",
                "short",
                "They could not read everything, in the last hour. Look: `saga reconcile`.",
                Query(f"sum(increase(saga_reconcile_failures_total{{{CHOSEN}}}[1h]))", "failed"),
                limits=NONE_IS_RIGHT,
                nothing="unknown",
                width=6,
            ),
        ],
    ).build()
