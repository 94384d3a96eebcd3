"""The rules that only the simulation can apply: it sees every step, and every message on its way.

What holds of any system is in `saga.rules` and `saga.reconcile.conservation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from saga.view import Violation

RULES: Final[Mapping[str, str]] = {
    "published_uncommitted": "What a service publishes was committed before, with just this body.",
    "tries_not_counted": "What is set aside counts one try more than what was delivered.",
    "infrastructure_blamed": "No message is set aside for what no message can help.",
    "retried_otherwise": "What fails is tried again as its reaction's policy says.",
    "priority_changed": "What comes of a message is as urgent as that.",
    "urgent_waits": "Urgent messages go ahead of normal ones.",
    "normal_starves": "Normal messages get their share, however many urgent ones there are.",
    "taken_while_busy": "No more is taken from the broker while it does not keep up.",
    "unhandled": "No task or callback ends with an error that no code deals with.",
    "process_ended": "No process ends by itself, unless a fault kept it from starting.",
    "event_in_no_book": "Whatever the history lacks of a lost broker, its publisher has kept.",
    "impure": "A reaction that is called twice alike decides alike.",
    "kept_too_long": "What was published is kept for so long, and no longer.",
    "no_progress": "Every step ends, and a run needs no more steps than there are.",
    "never_at_rest": "After the storm, everything comes to rest.",
    "effect_twice": "A message has one effect outside, where that cannot be asked for again.",
    "left_unexplained": "What is left to people is left because something went wrong.",
    "decided_in_vain": "What an operator has decided is left to people no more.",
    "saga_lost": "Each saga that a client began is known.",
    "wrong_ending": "Each saga ends as its plan allows, and as its caller was told.",
    "due_early": "What is due is not done before its time.",
    "due_late": "What is due is done soon after its time.",
    "due_in_vain": "What is done as due was due.",
    "due_lost": "Each row says when something is due about its state.",
    "in_clear": "Where personal data is sealed, nothing is sent or kept in clear.",
    "cannot_be_opened": "What is sealed is sealed under a key that the key store has.",
    "sealed_otherwise": "A person's value is sealed alike by all, unless they were forgotten.",
    "named_otherwise": "Who is told outside whom something is about, is told their name.",
    "opened_after": "What is sealed of a person is opened nowhere once they are forgotten.",
    "forgotten_while_open": "No person is forgotten while a saga of theirs is open.",
    "forgotten_unsettled": "What is owed to the forgotten is settled, not dead.",
    "forged_taken": "A text that only looks sealed gets nowhere.",
}
"""Keyed by name. Each is shown by a broken kernel that it catches."""


def violation(rule: str, subject: str, detail: str) -> Violation:
    """A broken rule, one of `RULES`."""
    if rule not in RULES:
        raise KeyError(f"{rule} is no rule of the simulation; name it in RULES")
    return Violation(rule, subject, detail)
