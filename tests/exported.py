"""What a process exports is measured there: every family has samples, of its own things only."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

NOT_IN_A_QUIET_RUN = {
    "saga_commit_conflicts": "two replicas that write the same state",
    "saga_disk_stopped": "a full disk",
    "saga_due_brought_forward": "an operator who brings something forward",
    "saga_due_done_seconds": "a deadline that passes",
    "saga_due_late_seconds": "something that is late",
    "saga_due_waiting": "a saga that has not ended",
    "saga_event_publish_failures": "an event that the broker does not confirm",
    "saga_gc_pause_seconds": "garbage",
    "saga_history_stream_lacks_events": "a broker that was replaced",
    "saga_messages_dead_lettered": "a message that nobody can process",
    "saga_messages_in_flight": "a message that is not resolved",
    "saga_messages_replayed": "an operator who replays a dead letter",
    "saga_messages_retried": "an outside that does not answer",
    "saga_outbox_backlog": "an event that is not published",
    "saga_outbox_oldest_seconds": "an event that is not published",
    "saga_outbox_rows": "an event that is not published",
    "saga_outbox_swept": "a crash",
    "saga_overdue": "a deadline that passes while nobody looks",
    "saga_paused_seconds": "a database or a broker that is away",
    "saga_pending": "a saga that has not ended",
    "saga_reactions_refused": "a bug in a reaction",
    "saga_retry_loop_stuck": "something that is tried in vain",
    "saga_turned_away": "a broker that is away for long",
    "notification_mails_unknown": "a mail server that does not answer",
}
"""What stays at nothing while all is well, and what would change it."""
OWN = ("saga_", "notification_")
OF_HISTORY = "saga_history_"
OF_SAGAS = {"saga_begun", "saga_ended", "saga_seconds", "saga_pending", "saga_overdue"}


def unmeasured(text: str, participant: str, saga: str) -> Iterator[str]:
    """The families that one process exports after a quiet run, of which nothing shows that they are
    measured there, or which are about other systems."""
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(OWN) or family.name.endswith("_created"):
            continue
        moved = any(sample.value for sample in family.samples)
        said = f"{participant} exports {family.name}"
        if not family.samples:
            yield f"{said}, without any sample"
        elif any(s.labels.get("participant", participant) != participant for s in family.samples):
            yield f"{said} of another participant"
        elif any(s.labels.get("saga", saga) != saga for s in family.samples):
            yield f"{said} of another saga"
        elif not moved and family.name not in NOT_IN_A_QUIET_RUN:
            yield f"{said}, and counts nothing"
