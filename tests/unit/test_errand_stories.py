"""What the books tell of commands between participants and of private facts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from saga.archive.store import Fact, Stray, decoded, judge
from saga.envelope import Envelope
from saga.history.debts import debts_of
from saga.history.sequence import Kind, sequence_of
from saga.history.story import Story, tell
from saga.reconcile.history import History
from saga.recovery.owed import Surveyor
from saga.runtime.messaging.stream import Record
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.testing import NOW
from tests import errands
from tests.errands import GRAPH, AskErrand
from tests.play import Play
from tests.unit.test_recovery import Paper, fact, owed

TICK = timedelta(milliseconds=5)


def played(*, far: bool = False, down: Sequence[str] = ()) -> Play:
    """One errand, `a`; those who are down take nothing."""
    play = Play(at=NOW, tick=TICK, graph=GRAPH, down={*down})
    play.give("desk", AskErrand(errand="a", far=far))
    play.deliver()
    return play


def story_of(events: Sequence[Envelope[Any]]) -> Story:
    return tell(GRAPH, "a", [Fact(e, e.to_bytes(), position=n) for n, e in enumerate(events)])


def without(play: Play, type_: str) -> Story:
    return story_of([event for event in play.events if event.type != type_])


def test_the_trace_has_commands_with_their_receivers_and_private_facts_with_none() -> None:
    play = played()
    diagram = sequence_of(GRAPH, story_of(play.events), now=play.at)

    assert [(row.kind, row.participant, row.label, row.to) for row in diagram.rows] == [
        (Kind.COMMAND, "desk", "ride.start", ("rider",)),
        (Kind.COMMAND, "desk", "stamp.give", ("stamper",)),
        (Kind.EVENT, "rider", "ride.done", ("desk",)),
        (Kind.EVENT, "stamper", "stamp.given", ("desk",)),
        (Kind.PRIVATE, "desk", "errand.ridden", ()),
        (Kind.END, "desk", "errand.ended", ()),
    ]


def test_who_was_told_something_owes_what_may_come_of_it() -> None:
    play = played(down=["rider"])

    (debt,) = debts_of(GRAPH, story_of(play.events), play.at)

    assert debt.participant == "rider"
    assert debt.event is not None
    assert (debt.event.type, debt.answers) == ("ride.start", ("ride.done", "ride.refused"))


def test_nothing_is_owed_of_an_errand_that_has_ended() -> None:
    for far in (False, True):
        play = played(far=far)
        story = story_of(play.events)

        assert debts_of(GRAPH, story, play.at) == []
        assert story.holes == []


@pytest.mark.parametrize(
    ("missing", "far", "holes"),
    [
        ("errand.ridden", False, ["event 3 of desk"]),
        (
            "ride.start",
            False,
            ["event 1 of desk", "ride.start {id}, to which rider reacted,"],
        ),
        (
            "stamp.take_off",
            True,
            ["stamp.take_off {id}, to which stamper reacted,"],
        ),
    ],
)
def test_a_private_fact_or_a_command_that_the_history_lacks_is_a_hole(
    missing: str, far: bool, holes: list[str]
) -> None:
    play = played(far=far)
    id = next(event.id for event in play.events if event.type == missing)

    found = {hole.detail for hole in without(play, missing).holes}

    assert found == {hole.format(id=id) for hole in holes}


def test_a_missing_commands_sender_is_known_by_its_id() -> None:
    hole = next(h for h in without(played(), "ride.start").holes if "rider" in h.detail)

    assert hole.publishers == ("desk",)


# --- what comes into the history ----------------------------------------------------------------


def recorded(envelope: Envelope[Any], key: str = "") -> Fact | Stray:
    record = Record(
        0, EVENTS_EXCHANGE, key or envelope.routing_key, envelope.id, NOW, envelope.to_bytes()
    )
    return judge(record, 1, GRAPH)


def test_the_history_keeps_a_command_from_its_sender_and_can_read_it() -> None:
    kept = recorded(errands.told_to_ride("a"))

    assert isinstance(kept, Fact)
    envelope = decoded(kept, GRAPH)
    assert envelope is not None
    assert envelope.data == errands.StartRide(errand="a")


@pytest.mark.parametrize("source", ["/services/stamper", "https://customer.example"])
def test_a_command_from_anybody_else_is_a_stray(source: str) -> None:
    stray = recorded(errands.told_to_ride("a", source=source))

    assert isinstance(stray, Stray)
    assert stray.reason == "misrouted"


def test_a_command_that_no_participant_sends_is_a_stray_in_the_history() -> None:
    assert isinstance(recorded(errands.asked("a")), Stray)


# --- what is owed -------------------------------------------------------------------------------


def test_a_command_that_was_lost_with_its_broker_is_put_back_into_its_receivers_intake() -> None:
    play = played(down=["rider"])
    command = next(event for event in play.events if event.type == "ride.start")
    books = Paper([fact(event) for event in play.events], play.inboxes)
    surveyor = Surveyor(books, GRAPH, NOW - timedelta(days=1), play.at)

    survey = surveyor.run()

    assert owed(survey) == {("rider", command.id)}
    (posting,) = surveyor.postings(survey.owed)
    assert (posting.routing_key, posting.body) == ("rider.intake.normal", command.to_bytes())
    assert survey.unknown == []


def test_a_command_that_its_sender_still_keeps_is_owed_though_the_history_lacks_it() -> None:
    play = played(down=["rider", "stamper"])
    bodies = [event.to_bytes() for event in play.events]
    books = Paper([], play.inboxes, keeps={"desk": bodies}, counts={"desk": {"a": 2}})

    survey = Surveyor(books, GRAPH, NOW - timedelta(days=1), play.at).run()

    assert {(one.participant, one.type) for one in survey.owed} == {
        ("rider", "ride.start"),
        ("stamper", "stamp.give"),
    }
    assert survey.unknown == []


def test_reconciliation_knows_who_has_to_deal_with_a_command_and_what_the_sender_counted() -> None:
    play = played(down=["rider"])
    history = History(GRAPH)
    for event in play.events:
        history.take(event.routing_key, event.id, NOW, event.to_bytes())

    command = next(event for event in play.events if event.type == "ride.start")
    assert [*history.owed["rider"]] == [command.id]
    assert history.owed["rider"][command.id].decodable
    assert list(history.missing("desk", "a", 3)) == []
    assert history.undecodable == 0


def test_reconciliation_takes_a_forged_command_for_what_can_only_be_a_dead_letter() -> None:
    history = History(GRAPH)
    forged = errands.told_to_ride("a", source="/services/stamper")

    history.take(forged.routing_key, forged.id, NOW, forged.to_bytes())

    assert history.undecodable == 1
    assert not history.owed["rider"][forged.id].decodable
