"""Mistakes in the kernel, made by hand: each with the one test that has to find it.

`python -m tests.kernel_mutants` makes them, one at a time, in a copy of the tree, and runs that
test; `make mutants` does so too. `tests/unit/test_kernel_mutants.py` keeps the list in step.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from queue import SimpleQueue
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NEVER_COPIED: Final = (".*", "__pycache__", "mutants", "data", "node_modules", "*.egg-info")
HANG_SECONDS: Final = 60
"""How long one test may take; a mistake that makes it hang is found as well, and is named."""
FAILED: Final = 1
"""What pytest ends with when a test failed; anything else but 0 says that it did not run."""

KERNEL: Final = "saga/runtime/kernel"
MESSAGING: Final = "saga/runtime/messaging"


@dataclass(frozen=True, slots=True)
class KernelMutant:
    """A mistake: in `file`, the lines `original`, which are there once, become `changed`.

    `test` finds it: a file and a function, with parameters where some of them do not.
    """

    mistake: str
    file: str
    original: str
    changed: str
    test: str

    @property
    def function(self) -> tuple[str, str]:
        """The file and the function of the test."""
        file, _, name = self.test.partition("::")
        return file, name.partition("[")[0]

    def changed_text(self, source: str) -> str:
        """The file's text with the mistake in it. Raises ValueError."""
        if (count := source.count(self.original)) != 1:
            raise ValueError(f"{self.file} has these lines {count} times, not once: {self.mistake}")
        return source.replace(self.original, self.changed)


def _lanes() -> Iterator[KernelMutant]:
    file, tests = f"{KERNEL}/lanes.py", "tests/unit/test_lanes.py"
    yield KernelMutant(
        "what normal messages have not got yet is forgotten each time",
        file,
        "            self._due += places\n",
        "            self._due = places\n",
        f"{tests}::test_one_place_in_eight_is_for_normal_ones_however_many_are_taken_at_a_time[1]",
    )
    yield KernelMutant(
        "places that urgent messages do not need stay empty",
        file,
        "        of_second = min(second, places - of_first)\n",
        "        of_second = min(of_second, places - of_first)\n",
        f"{tests}::test_no_place_is_wasted_and_none_is_given_twice",
    )
    yield KernelMutant(
        "normal messages save up what they did not need",
        file,
        "        self._due = max(0, self._due - of_second * self._one_in) if waits else 0\n",
        "        self._due = max(0, self._due - of_second * self._one_in)\n",
        f"{tests}::test_a_line_that_is_through_has_saved_nothing_up",
    )
    yield KernelMutant(
        "urgent messages get all places",
        file,
        "        of_second = min(second, self._due // self._one_in)\n",
        "        of_second = 0\n",
        f"{tests}::test_where_there_is_one_place_at_a_time_it_is_for_an_urgent_one_first",
    )
    yield KernelMutant(
        "an answer waits behind all messages of its priority",
        file,
        "        self._line(priority).appendleft(item)\n",
        "        self._line(priority).append(item)\n",
        f"{tests}::test_what_is_put_first_is_taken_first_of_its_priority",
    )
    yield KernelMutant(
        "the youngest normal message is taken first",
        file,
        "        taken += [normal.popleft() for _ in range(of_normal)]\n",
        "        taken += [normal.pop() for _ in range(of_normal)]\n",
        f"{tests}::test_places_that_one_line_does_not_need_are_the_others",
    )
    yield KernelMutant(
        "what nobody awaits any more is kept among normal messages",
        file,
        "        self._normal = deque(filter(wanted, self._normal))\n",
        "        self._normal = deque(self._normal)\n",
        f"{tests}::test_only_what_is_wanted_is_kept",
    )
    yield KernelMutant(
        "messages are taken ahead past one that is to wait",
        file,
        "            while line and len(taken) < most and wanted(line[0]):\n",
        "            while line and len(taken) < most and any(map(wanted, line)):\n",
        f"{tests}::test_only_what_stands_ahead_of_all_others_is_taken_ahead",
    )


def _acknowledgement() -> Iterator[KernelMutant]:
    file, tests = f"{MESSAGING}/acknowledgement.py", "tests/unit/test_acknowledgement.py"
    held = f"{tests}::test_a_delivery_still_held_is_never_acknowledged_with_later_ones"
    any_order = f"{tests}::test_any_order_of_resolving_acknowledges_exactly_the_resolved"
    yield KernelMutant(
        "a delivery is acknowledged together with those above it",
        file,
        "            acks.append((max(new), True))\n",
        "            acks.append((max(new | self._above), True))\n",
        held,
    )
    yield KernelMutant(
        "deliveries above a gap are acknowledged with all below them",
        file,
        "        acks += [(tag, False) for tag in sorted(self._above - self._acknowledged)]\n",
        "        acks += [(tag, True) for tag in sorted(self._above - self._acknowledged)]\n",
        held,
    )
    yield KernelMutant(
        "a delivery above a gap is acknowledged again and again",
        file,
        "        acks += [(tag, False) for tag in sorted(self._above - self._acknowledged)]\n",
        "        acks += [(tag, False) for tag in sorted(self._above)]\n",
        any_order,
    )
    yield KernelMutant(
        "what was acknowledged above a gap is forgotten when another gap closes",
        file,
        "        self._acknowledged = {tag for tag in self._above if tag > floor}\n",
        "        self._acknowledged = set()\n",
        any_order,
    )
    yield KernelMutant(
        "what was rejected is acknowledged as well",
        file,
        "        new = {tag for tag in range(self._floor + 1, floor + 1) "
        "if tag not in self._acknowledged}\n",
        "        new = set(range(self._floor + 1, floor + 1))\n",
        f"{tests}::test_what_is_rejected_is_not_acknowledged_with_what_came_before_it",
    )
    yield KernelMutant(
        "what is rejected comes again at once",
        file,
        "            self._channel.nack(tag, requeue=False)\n",
        "            self._channel.nack(tag, requeue=True)\n",
        f"{tests}::test_what_is_rejected_goes_by_itself_and_holds_nothing_up",
    )
    yield KernelMutant(
        "only what is resolved first in a turn is acknowledged",
        file,
        "        self._due_soon = False\n        try:\n",
        "        try:\n",
        held,
    )


def _retry() -> Iterator[KernelMutant]:
    file, tests = "saga/retry.py", "tests/unit/test_retry.py"
    grows = f"{tests}::test_the_wait_grows_to_its_limit_and_then_the_message_is_dead"
    yield KernelMutant(
        "a message is tried once more than its policy says",
        file,
        "        if calls >= self.max_calls or not isinstance(error, self.transient):\n",
        "        if calls > self.max_calls or not isinstance(error, self.transient):\n",
        grows,
    )
    yield KernelMutant(
        "whatever a reaction raises is tried again",
        file,
        "        if calls >= self.max_calls or not isinstance(error, self.transient):\n",
        "        if calls >= self.max_calls:\n",
        f"{tests}::test_a_permanent_error_is_never_tried_again",
    )
    yield KernelMutant(
        "only engine's own errors are tried again, whatever the policy says",
        file,
        "        if calls >= self.max_calls or not isinstance(error, self.transient):\n",
        "        if calls >= self.max_calls or not isinstance(error, TransientError):\n",
        f"{tests}::test_what_is_transient_is_the_policys_to_say",
    )
    wait = "        waits.append(next(rung for rung in RUNGS_MS if rung >= seconds * 1_000))\n"
    grow = "        seconds = min(seconds * retry.backoff, retry.max_delay)\n"
    yield KernelMutant(
        "the first wait is grown already",
        file,
        wait + grow,
        grow + wait,
        f"{tests}::test_the_default_is_three_calls_five_seconds_apart_and_more",
    )
    yield KernelMutant(
        "waits grow beyond their limit",
        file,
        grow,
        "        seconds = min(seconds * retry.backoff, 3_600.0)\n",
        grows,
    )
    yield KernelMutant(
        "a wait is rounded down",
        file,
        wait,
        "        under = [rung for rung in RUNGS_MS if rung <= seconds * 1_000]\n"
        "        waits.append(max(under, default=RUNGS_MS[0]))\n",
        f"{tests}::test_every_wait_is_a_rung_and_never_shorter_than_asked",
    )


def _consumer() -> Iterator[KernelMutant]:
    file, tests = f"{MESSAGING}/consumer.py", "tests/unit/test_deliveries.py"
    yield KernelMutant(
        "a delivery is acknowledged when it is taken",
        file,
        "        intake.deciding[delivery.tag] = self._kernel.take(\n            envelope, then,",
        "        self._settle(intake, delivery)\n"
        "        intake.deciding[delivery.tag] = self._kernel.take(\n            envelope, then,",
        f"{tests}::test_a_delivery_is_acknowledged_once_it_is_decided_on_and_not_before",
    )
    yield KernelMutant(
        "a failed delivery is acknowledged before its copy is confirmed",
        file,
        "        self._start(intake, settled())\n",
        "        self._settle(intake, delivery)\n        self._start(intake, settled())\n",
        f"{tests}::test_what_fails_waits_as_a_copy_and_is_acknowledged_once_that_is_confirmed",
    )
    yield KernelMutant(
        "the first try is not counted among the calls",
        file,
        "        wait_ms = None if conflicts else retry.wait_ms(attempts + 1, outcome.error)\n",
        "        wait_ms = None if conflicts else retry.wait_ms(max(attempts, 1), outcome.error)\n",
        f"{tests}::test_what_has_failed_as_often_as_its_policy_allows_is_dead",
    )
    yield KernelMutant(
        "all reactions are tried as the participant says",
        file,
        "        retry = self._participant.retry_of(type(envelope.data))\n",
        "        retry = self._participant._retry\n",
        f"{tests}::test_a_reactions_own_policy_counts",
    )
    yield KernelMutant(
        "each try counts as the first",
        file,
        "            envelope, then, attempt=attempts + 1, digest=digest\n",
        "            envelope, then, attempt=1, digest=digest\n",
        f"{tests}::test_a_kernel_is_told_which_try_it_is",
    )
    yield KernelMutant(
        "a message in conflict with another one is dead as one that failed",
        file,
        "        reason = Reason.CONFLICTING if conflicts else Reason.FAILED\n",
        "        reason = Reason.FAILED\n",
        f"{tests}::test_another_message_under_the_id_of_one_that_was_done_is_dead_as_that",
    )
    yield KernelMutant(
        "what waits comes back under the participant's name, to no queue",
        file,
        "            exchange, key = wait_queue(wait_ms), failure.queue\n",
        "            exchange, key = wait_queue(wait_ms), name\n",
        f"{tests}::test_what_fails_waits_as_a_copy_and_is_acknowledged_once_that_is_confirmed",
    )
    yield KernelMutant(
        "anybody's event is believed",
        file,
        "            check_sender(delivery.exchange, delivery.routing_key, envelope, "
        "intake.queue)\n",
        "",
        f"{tests}::test_what_cannot_be_believed_is_dead_and_never_decided_on",
    )
    yield KernelMutant(
        "what came on a lost channel is settled on the next one",
        file,
        "            if intake is None or intake.channel is not channel:\n",
        "            if intake is None:\n",
        f"{tests}::test_what_came_on_a_lost_channel_is_given_up_and_comes_again_on_the_next",
    )
    yield KernelMutant(
        "what came on a lost channel is gone on with",
        file,
        "        self._kernel.abandon_all(intake.deciding.values())\n",
        "",
        f"{tests}::test_what_came_on_a_lost_channel_is_given_up_and_comes_again_on_the_next",
    )
    yield KernelMutant(
        "whoever stops takes more",
        file,
        "            if self._stopping:\n",
        "            if False:\n",
        f"{tests}::test_who_stops_takes_no_more_and_waits_for_what_was_taken",
    )
    yield KernelMutant(
        "what no copy can be made of is acknowledged, and gone",
        file,
        '                log.error("%s; it is left to the broker as it came", error)\n'
        "                intake.acknowledger.reject(delivery.tag)\n",
        '                log.error("%s; it is left to the broker as it came", error)\n'
        "                self._settle(intake, delivery)\n",
        f"{tests}::test_what_no_copy_can_be_made_of_is_left_to_the_broker",
    )
    yield KernelMutant(
        "a copy is published once, whatever becomes of it",
        file,
        "                    self._copy_loop.failed(refusal, this, about)\n",
        "                    return\n",
        f"{tests}::test_a_copy_is_published_again_until_it_is_confirmed",
    )


def _dead_letters() -> Iterator[KernelMutant]:
    file, tests = f"{MESSAGING}/dead_letters.py", "tests/unit/test_set_aside.py"
    second = (
        f"{tests}::test_a_second_failure_counts_on_and_forgets_neither_the_first_nor_the_origin"
    )
    foreign = f"{tests}::test_what_others_wrote_under_our_names_is_carried_along_and_not_believed"
    yield KernelMutant(
        "each failure counts as the first",
        file,
        "        ATTEMPTS: attempts_in(said) + 1,\n",
        "        ATTEMPTS: 1,\n",
        second,
    )
    yield KernelMutant(
        "a failure forgets when it began",
        file,
        "(time_in(said, FIRST_FAILED_AT) or failure.at.astimezone(UTC)).isoformat(),\n",
        "failure.at.astimezone(UTC).isoformat(),\n",
        second,
    )
    yield KernelMutant(
        "a failure forgets where the message first came from",
        file,
        "            ours[name] = value[:ERROR_MAX_CHARACTERS]\n",
        "            ours.setdefault(name, value[:ERROR_MAX_CHARACTERS])\n",
        second,
    )
    yield KernelMutant(
        "how often a message was replayed is forgotten",
        file,
        "        elif isinstance(value, int | bytes):\n",
        "        elif isinstance(value, bytes):\n",
        f"{tests}::test_how_often_it_was_replayed_is_known_over_failures",
    )
    yield KernelMutant(
        "headers of ours are believed whoever sent them",
        file,
        "    if delivery.exchange == EVENTS_EXCHANGE:\n        return False\n",
        "    if delivery.exchange == EVENTS_EXCHANGE:\n        return True\n",
        foreign,
    )
    yield KernelMutant(
        "headers of ours are believed under the name of any queue",
        file,
        "        return queue in (None, delivery.routing_key)\n",
        "        return True\n",
        f"{tests}::test_what_came_under_the_name_of_another_queue_is_not_believed",
    )
    yield KernelMutant(
        "what others wrote under our names is lost",
        file,
        "        elif field.name in _ROUTING or (field.name in _OURS and not said):\n",
        "        elif field.name in _ROUTING:\n",
        foreign,
    )
    yield KernelMutant(
        "a copy goes where the message's sender wants it",
        file,
        "        elif field.name in _ROUTING or (field.name in _OURS and not said):\n",
        "        elif field.name in _OURS and not said:\n",
        f"{tests}::test_a_copy_goes_nowhere_else",
    )
    yield KernelMutant(
        "a copy expires like its message",
        file,
        '_BINDING: Final = ("expiration", "user_id")\n',
        '_BINDING: Final = ("user_id",)\n',
        f"{tests}::test_a_copy_neither_expires_nor_has_a_user_but_knows_of_both",
    )
    yield KernelMutant(
        "what a copy carries along is lost when it fails again",
        file,
        "    kept = _keep(ours.pop(KEPT, None), values, moved, rest)\n",
        "    ours.pop(KEPT, None)\n    kept = _keep(None, values, moved, rest)\n",
        f"{tests}::test_what_was_carried_along_is_so_the_second_time_as_well",
    )
    yield KernelMutant(
        "the broker's notes of a wait pile up in copies",
        file,
        "            if not returned:\n                moved.append(field)\n",
        "            moved.append(field)\n",
        f"{tests}::test_the_brokers_notes_of_a_wait_are_dropped_and_those_of_others_carried_along",
    )
    yield KernelMutant(
        "where there is no room, the smallest headers are left out first",
        file,
        "    for field in sorted(candidates, key=_size, reverse=True):\n",
        "    for field in sorted(candidates, key=_size):\n",
        f"{tests}::test_where_there_is_no_room_the_largest_foreign_headers_are_left_out_and_named",
    )
    yield KernelMutant(
        "a replayed message counts as tried before",
        file,
        "    ours: dict[str, str | int | bytes] = {REPLAYS: replays}\n",
        "    ours: dict[str, str | int | bytes] = {REPLAYS: replays, ATTEMPTS: 1}\n",
        "tests/unit/test_dlq.py"
        "::test_nothing_is_left_of_a_messages_failures_but_how_often_it_was_replayed",
    )


def _fold_and_step() -> Iterator[KernelMutant]:
    file, tests = f"{KERNEL}/fold.py", "tests/unit/test_fold.py"
    yield KernelMutant(
        "events after a hole are numbered again",
        file,
        "replace(own, sequence=event.sequence or own.sequence + 1)\n",
        "replace(own, sequence=own.sequence + 1)\n",
        f"{tests}::test_events_after_a_hole_keep_their_numbers",
    )
    yield KernelMutant(
        "a fold knows the time of no event",
        file,
        "evolved(self.participant, own_id, event.data, self.find, event.time))\n",
        "evolved(self.participant, own_id, event.data, self.find, datetime.max))\n",
        f"{tests}::test_at_rest_a_participants_states_are_the_fold_of_its_own_events",
    )
    yield KernelMutant(
        "a question that is known from elsewhere is not folded",
        file,
        "        self.states.update(evolved(self.participant, own_id, intent, self.find, at))\n",
        "        evolved(self.participant, own_id, intent, self.find, at)\n",
        f"{tests}::test_a_question_that_is_open_is_no_event_and_can_be_folded_where_it_is_known",
    )
    file, tests = f"{KERNEL}/step.py", "tests/unit/test_step.py"
    yield KernelMutant(
        "two events of one decision have one number",
        file,
        "        return changes.get(state_id) or find(state_id)\n",
        "        return find(state_id)\n",
        f"{tests}::test_events_are_numbered_and_inherit_from_their_cause",
    )
    yield KernelMutant(
        "an event is not as urgent as its cause",
        file,
        "                    priority=cause.priority,\n",
        "",
        f"{tests}::test_events_are_numbered_and_inherit_from_their_cause",
    )
    yield KernelMutant(
        "what a reaction does a second time has other ids",
        file,
        "                    id=derived_id(cause_id, ",
        "                    id=derived_id(str(id(events)), ",
        f"{tests}::test_the_same_step_done_again_gives_the_same_ids",
    )
    yield KernelMutant(
        "a reaction may decide about another subject",
        file,
        "    if reaction.allows(kinds) and all(result.subject == subject for result in results):\n",
        "    if reaction.allows(kinds):\n",
        f"{tests}::test_what_a_signature_does_not_allow_is_refused",
    )
    yield KernelMutant(
        "what was due is done although something has happened before",
        file,
        "        if state.due() != self.due:\n            return False\n",
        "",
        f"{tests}::test_what_is_due_waits_for_its_time_unless_it_is_brought_forward",
    )
    yield KernelMutant(
        "what is due is done before its time",
        file,
        "        return self.brought_forward is not None or self.due.at <= now\n",
        "        return True\n",
        f"{tests}::test_what_is_due_waits_for_its_time_unless_it_is_brought_forward",
    )


def _kernel() -> Iterator[KernelMutant]:
    file, tests = f"{KERNEL}/kernel.py", "tests/integration/test_kernel.py"
    yield KernelMutant(
        "nobody is asked whether an answer is to what was asked",
        file,
        "    if type(answer) is not intent.answer:\n",
        "    if False:\n",
        f"{tests}::test_an_answer_to_something_else_is_refused_and_not_recorded"
        "[sqlite-answer0-by Unexpected, not by Inquired]",
    )
    yield KernelMutant(
        "a message that comes twice at once asks the outside twice",
        file,
        "        same[:] = [*filter(_is_wanted, same), work]\n        return True\n",
        "        return False\n",
        f"{tests}::test_a_message_that_comes_again_while_the_outside_is_asked_waits_for_that[sqlite]",
    )
    yield KernelMutant(
        "an answer is lost with the delivery that asked",
        file,
        "    return work.then is not None or work.asked\n",
        "    return work.then is not None\n",
        f"{tests}::test_an_answer_is_kept_though_the_delivery_was_lost_meanwhile[sqlite]",
    )
    yield KernelMutant(
        "what is asked over HTTP gets all places",
        file,
        "self._share.of(self._group_max, len(self._local), waiting)\n",
        "Share(self._group_max + 1).of(self._group_max, len(self._local), waiting)\n",
        f"{tests}::test_what_is_asked_over_http_leaves_the_broker_half_of_the_places[sqlite-3]",
    )
    yield KernelMutant(
        "of a group whose data is refused, only the first message is tried again",
        file,
        "await self._commit([work], confirmed if number == 0 else ())\n",
        "await self._commit([work], confirmed if number == 0 else ())\n"
        "                            break\n",
        f"{tests}::test_data_the_database_refuses_fails_alone[sqlite]",
    )
    yield KernelMutant(
        "a message is blamed for a database that is away",
        file,
        "                if self._database.is_away(error):\n                    self._outbox",
        "                if False:\n                    self._outbox",
        f"{tests}::test_a_database_that_is_away_is_nobodys_poison[sqlite]",
    )
    file = f"{KERNEL}/transaction.py"
    yield KernelMutant(
        "a message that asks is not looked for in the inbox",
        file,
        "        if self._doubtful and self._done_before(self._doubtful):\n",
        "        if False:\n",
        f"{tests}::test_what_was_done_before_asks_nobody_again[sqlite]",
    )
    yield KernelMutant(
        "another message under an id that was done counts as done",
        file,
        "    if digest is None or work.digest is None or digest == work.digest:\n",
        "    if True:\n",
        f"{tests}::test_another_message_under_the_same_source_and_id_is_no_duplicate"
        "[sqlite-together]",
    )
    yield KernelMutant(
        "no inbox row is written",
        file,
        "        self._tables.mark_done(writes, self._finished, self._now)\n",
        "",
        f"{tests}::test_a_message_is_done_once_however_often_it_comes[sqlite]",
    )
    yield KernelMutant(
        "what was decided is not written",
        file,
        "        self._states.save(writes)\n",
        "",
        f"{tests}::test_a_message_is_done_once_however_often_it_comes[sqlite]",
    )
    yield KernelMutant(
        "what is decided on later in a group does not see what came before",
        file,
        "        self._states.change(decision.changes)\n",
        "        if not self._states._changed:\n"
        "            self._states.change(decision.changes)\n",
        f"{tests}::test_messages_about_one_subject_share_a_transaction[sqlite]",
    )


def _outbox() -> Iterator[KernelMutant]:
    file, tests = f"{KERNEL}/outbox.py", "tests/integration/test_kernel.py"
    later = f"{tests}::test_what_could_not_be_published_is_published_later[sqlite]"
    yield KernelMutant(
        "an event that the broker refused counts as published",
        file,
        "            row.event_id for row, error in zip(batch, errors, strict=True) "
        "if error is None\n",
        "            row.event_id for row, error in zip(batch, errors, strict=True)\n",
        later,
    )
    yield KernelMutant(
        "an event that the broker refused is never tried again",
        file,
        "        self._held.difference_update(row.event_id for row, _ in failed)\n",
        "",
        later,
    )
    yield KernelMutant(
        "what a crash left is taken over by nobody",
        f"{KERNEL}/leases.py",
        "        while taken := self.take_over(connection, lapsed=False):\n",
        "        while taken := 0:\n",
        f"{tests}::test_a_restart_publishes_what_the_crash_left[sqlite]",
    )
    yield KernelMutant(
        "rows of what is published are never removed",
        file,
        "        writes.remove(self._rows, event_ids)\n",
        "",
        f"{tests}::test_an_idle_outbox_is_empty[sqlite]",
    )
    yield KernelMutant(
        "a row that holds no event is tried again with each sweep",
        file,
        "        held |= self._held | self._ruined\n",
        "        held |= self._held\n",
        f"{tests}::test_a_row_that_holds_no_event_holds_up_neither_others_nor_a_stop[sqlite]",
    )
    yield KernelMutant(
        "urgent events wait with the others",
        file,
        "            self._queue.append(row, Priority.HIGH if urgent else Priority.NORMAL)\n",
        "            self._queue.append(row, Priority.NORMAL)\n",
        f"{tests}::test_urgent_events_are_published_first",
    )
    file, tests = f"{MESSAGING}/publisher.py", "tests/unit/test_publisher.py"
    yield KernelMutant(
        "a lost connection looks as if the caller had been cancelled",
        file,
        "        raise _lost() from None\n",
        "        raise\n",
        f"{tests}::test_a_connection_given_up_fails_the_events_and_not_the_outbox",
    )
    yield KernelMutant(
        "a caller that is cancelled takes it for a lost connection",
        file,
        "        if task is not None and task.cancelling():\n            raise\n",
        "",
        f"{tests}::test_who_is_cancelled_while_the_connection_opens_stays_cancelled",
    )
    yield KernelMutant(
        "of a broker that came back it is not asked whether it has its history",
        file,
        "            if self._recorded is not channel:\n",
        "            if self._recorded is None:\n",
        f"{tests}::test_each_new_channel_is_asked_for_the_history",
    )
    yield KernelMutant(
        "a channel that is lost is published on",
        file,
        "        if self._channel is not None and not self._channel.lost:\n",
        "        if self._channel is not None:\n",
        f"{tests}::test_each_new_channel_is_asked_for_the_history",
    )
    yield KernelMutant(
        "what was done is forgotten while it is young",
        f"{KERNEL}/inbox.py",
        "        .where(inbox.c.at < before)\n",
        "        .where(inbox.c.at > before)\n",
        "tests/integration/test_inbox.py"
        "::test_old_rows_are_forgotten_in_batches_and_younger_ones_kept[sqlite]",
    )


def _database() -> Iterator[KernelMutant]:
    file, tests = f"{KERNEL}/sqlite.py", "tests/integration/test_rows.py"
    slow = f"{tests}::test_where_the_disk_is_slow_commits_leave_the_event_loop_for_a_while"
    gone = f"{tests}::test_a_file_that_was_replaced_is_neither_written_nor_read_until_it_is_back"
    yield KernelMutant(
        "a slow disk keeps the event loop waiting",
        file,
        "            self._aside = self._next_aside\n",
        "",
        slow,
    )
    yield KernelMutant(
        "a disk that has stalled once is waited for on the event loop until it has done so often",
        file,
        "        if seconds > STALL_SECONDS or self._slow >= SLOW_MAX:\n",
        "        if self._slow >= SLOW_MAX:\n",
        slow,
    )
    yield KernelMutant(
        "a disk that stays slow is tried as often as one that was slow for a moment",
        file,
        "            self._next_aside = min(2 * self._next_aside, ASIDE_MAX)\n",
        "",
        slow,
    )
    yield KernelMutant(
        "a disk that was slow once is left alone for longer each time, however quick it was since",
        file,
        "            if not self._slow:\n                self._next_aside = ASIDE_MIN\n",
        "",
        slow,
    )
    yield KernelMutant(
        "what is written into a file that was replaced meanwhile counts as done",
        file,
        "            result = await self._write(work, brief=brief)\n"
        "            self._check_file()\n",
        "            result = await self._write(work, brief=brief)\n",
        f"{tests}::test_what_is_written_into_a_file_that_was_replaced_meanwhile_does_not_count",
    )
    yield KernelMutant(
        "a transaction begins in a file that was replaced",
        file,
        "        async with self._writing:\n            self._check_file()\n",
        "        async with self._writing:\n",
        gone,
    )
    yield KernelMutant(
        "a file that was replaced is read",
        file,
        "        def run() -> T:\n            self._check_file()\n",
        "        def run() -> T:\n",
        gone,
    )
    yield KernelMutant(
        "who is cancelled leaves a transaction behind that has not ended",
        file,
        "            while not call.done():\n"
        "                with contextlib.suppress(asyncio.CancelledError):\n"
        "                    await asyncio.wait({call})\n",
        "",
        f"{tests}::test_who_is_cancelled_during_a_transaction_beside_the_loop_lets_it_end",
    )


MUTANTS: Final = (
    *_lanes(),
    *_acknowledgement(),
    *_retry(),
    *_consumer(),
    *_dead_letters(),
    *_fold_and_step(),
    *_kernel(),
    *_outbox(),
    *_database(),
)


# --- the runner ---------------------------------------------------------------------------------


class MutantOutcome(Enum):
    """What came of a run of tests."""

    PASSED = "passed"
    FAILED = "failed"
    HUNG = "hung"
    """One took longer than `HANG_SECONDS`. A mistake may do that, and so may a busy machine."""


def outcome_of(
    tests: Collection[str], folder: Path, hang_seconds: float = HANG_SECONDS
) -> MutantOutcome:
    """What tests come to in a folder. Raises RuntimeError where none failed, yet not all have
    passed: one that cannot begin, for want of room on the disk for instance, finds nothing."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "long or not long", "-n", "0"]
    options += ["--timeout", str(hang_seconds)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    if ran.returncode == 0:
        return MutantOutcome.PASSED
    if ran.returncode != FAILED or "ERROR at setup of" in ran.stdout:
        raise RuntimeError(f"the tests did not run: {ran.stdout[-2_000:]}{ran.stderr[-2_000:]}")
    return MutantOutcome.HUNG if "from pytest-timeout" in ran.stdout else MutantOutcome.FAILED


class Copy:
    """A copy of the tree in which one file at a time is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changes = 0
        shutil.copytree(
            ROOT, folder, ignore=shutil.ignore_patterns(*NEVER_COPIED), dirs_exist_ok=True
        )

    def try_out(self, mutant: KernelMutant) -> MutantOutcome:
        """What its test comes to with the mistake. Raises RuntimeError where it cannot be run."""
        path = self.folder / mutant.file
        source = path.read_text()
        changed = mutant.changed_text(source)
        try:
            self._write(path, changed)
            return self.test([mutant.test])
        finally:
            self._write(path, source)

    def test(self, tests: Collection[str]) -> MutantOutcome:
        """What these tests come to as the files are. Raises RuntimeError where they do not run."""
        return outcome_of(tests, self.folder)

    def _write(self, path: Path, source: str) -> None:
        """Write a file whose bytecode Python has to make again: what tells it is the time."""
        path.write_text(source)
        self._changes += 1
        at = 2_000_000_000 + self._changes
        os.utime(path, (at, at))


def run(mutants: Sequence[KernelMutant], jobs: int, say: Callable[[str], None]) -> int:
    """Make these mistakes, in so many copies at once; return how many no test finds."""
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(folder) / str(number)))
        first = copies.get()
        if first.test(sorted({mutant.test for mutant in mutants})) is not MutantOutcome.PASSED:
            raise RuntimeError("the tests fail without any mistake")
        copies.put(first)

        def try_out(mutant: KernelMutant) -> MutantOutcome:
            copy = copies.get()
            try:
                return copy.try_out(mutant)
            finally:
                copies.put(copy)

        outcomes: Counter[MutantOutcome] = Counter()
        with ThreadPoolExecutor(jobs) as pool:
            for mutant, outcome in zip(mutants, pool.map(try_out, mutants), strict=True):
                outcomes[outcome] += 1
                if outcome is not MutantOutcome.FAILED:
                    verb = "not found" if outcome is MutantOutcome.PASSED else "its test hangs"
                    say(f"{verb}: {mutant.mistake} ({mutant.file}), by {mutant.test}")
    missed = outcomes[MutantOutcome.PASSED]
    hung = (
        f", {outcomes[MutantOutcome.HUNG]} of them as they hang"
        if outcomes[MutantOutcome.HUNG]
        else ""
    )
    say(f"kernel mutants: {len(mutants) - missed} of {len(mutants)} are found by their tests{hung}")
    return missed


def main() -> int:
    """Run those whose mistake, file or test has one of the words given; all without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="in a mistake, its file or its test")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once")
    given = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if not given.words
        or any(
            word in part
            for word in given.words
            for part in (mutant.mistake, mutant.file, mutant.test)
        )
    ]
    if not chosen:
        return _end(f"no kernel mutant has {' or '.join(given.words)}", 2)
    try:
        missed = run(chosen, given.jobs, _say)
    except (RuntimeError, ValueError) as error:
        return _end(str(error), 2)
    return 1 if missed else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end(error: str, status: int) -> int:
    sys.stderr.write(f"kernel mutants: {error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
