"""What a broker that is gone owed to whom, told from the books."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from saga.archive.store import Fact, Stray
from saga.envelope import Attributes, Envelope, MessageKey, source_of, wrap
from saga.message import Event, Priority
from saga.recovery import RecoveryError
from saga.recovery.owed import BEGINNER, Publications, Survey, Surveyor
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.trust import EDITOR_SOURCE
from tests.circle import GRAPH
from tests.words import Cancelled, Reason, Voided

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Paper:
    """Evidence on paper."""

    history: list[Fact | Stray] = field(default_factory=list)
    inboxes: dict[str, set[MessageKey]] = field(default_factory=dict)
    keeps: dict[str, list[bytes]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    since: datetime = NOW - 365 * DAY

    @property
    def _facts(self) -> dict[MessageKey, Fact]:
        return {item.attributes.key: item for item in self.history if isinstance(item, Fact)}

    def kept(self, participant: str) -> Publications:
        counts = self.counts.get(participant, {})
        kept = Publications(source_of(participant), counts, has_inbox=participant not in self.empty)
        kept.take(self.keeps.get(participant, ()), lambda keys: keys & self._facts.keys())
        return kept

    def done(self, participant: str, keys: Collection[MessageKey]) -> Collection[MessageKey]:
        return self.inboxes.get(participant, set()) & {*keys}

    def recorded(self, since: datetime) -> Iterator[Sequence[Fact | Stray]]:
        yield self.history

    def began(self) -> datetime | None:
        return self.since

    def last_recorded(self, participant: str) -> Mapping[str, int]:
        last: dict[str, int] = {}
        for fact in self._facts.values():
            if fact.attributes.source == source_of(participant):
                last[fact.attributes.subject] = fact.attributes.sequence or 0
        return last

    def bodies(self, keys: Collection[MessageKey]) -> Mapping[MessageKey, bytes]:
        return {key: self._facts[key].body for key in keys if key in self._facts}


def cancelled(
    number: int, *, at: datetime = NOW, priority: Priority = Priority.NORMAL
) -> Envelope[Any]:
    """An event that keeper, asker and teller react to."""
    thing = UUID(int=number)
    event = Cancelled(thing=thing, reason=Reason.WISH, who="c")
    return event_of(event, f"cancelled-{number}", "starter", at, priority)


def event_of(
    event: Event, id: str, publisher: str, at: datetime = NOW, priority: Priority = Priority.NORMAL
) -> Envelope[Any]:
    return wrap(event, id=id, source=source_of(publisher), time=at, priority=priority, sequence=1)


def fact(event: Envelope[Any]) -> Fact:
    return Fact(Attributes.of(event.to_bytes()), event.to_bytes(), recorded_at=event.time)


def surveyed(books: Paper, now: datetime = NOW) -> Survey:
    return Surveyor(books, GRAPH, NOW - 90 * DAY, now).run()


def owed(survey: Survey) -> set[tuple[str, str]]:
    return {(one.participant, one.key.id) for one in survey.owed}


def done_by_all(*events: Envelope[Any]) -> dict[str, set[MessageKey]]:
    return {p.name: {event.key for event in events} for p in GRAPH.participants}


def test_what_a_participant_has_no_inbox_row_for_is_owed_to_it_and_nobody_else() -> None:
    event = cancelled(1)
    inboxes = {"keeper": {event.key}}

    assert owed(surveyed(Paper([fact(event)], inboxes))) == {
        ("asker", event.id),
        ("teller", event.id),
    }


def test_what_only_its_publisher_keeps_is_owed_as_well() -> None:
    known, unread = cancelled(1), cancelled(2)
    books = Paper(
        [fact(known)],
        done_by_all(known),
        keeps={"starter": [known.to_bytes(), unread.to_bytes(), b"no event"]},
    )
    survey = surveyed(books)

    assert survey.unrecorded == {unread.key: unread.to_bytes()}
    assert {id for _, id in owed(survey)} == {unread.id}


def test_messages_go_to_the_queue_of_their_priority_as_they_were() -> None:
    urgent, unread = cancelled(1, priority=Priority.HIGH), cancelled(2)
    books = Paper([fact(urgent)], {"keeper": set()}, keeps={"starter": [unread.to_bytes()]})
    surveyor = Surveyor(books, GRAPH, NOW - DAY, NOW)
    postings = surveyor.postings(surveyor.run().owed)

    assert [posting.body for posting in postings] == [urgent.to_bytes()] * 3 + (
        [unread.to_bytes()] * 3
    )
    queues = [posting.routing_key for posting in postings]
    assert {*queues[:3]} == {"keeper.high", "asker.high", "teller.high"}
    assert {*queues[3:]} == {"keeper.normal", "asker.normal", "teller.normal"}


def test_what_was_done_meanwhile_is_owed_no_more() -> None:
    event = cancelled(1)
    books = Paper([fact(event)], {})
    surveyor = Surveyor(books, GRAPH, NOW - DAY, NOW)
    survey = surveyor.run()
    books.inboxes = {"asker": {event.key}}

    left = surveyor.still_owed(survey.owed)
    assert {one.participant for one in left} == {"keeper", "teller"}


def test_a_corrected_copy_is_owed_to_the_one_it_was_for() -> None:
    event = cancelled(1)
    document = event.model_copy(update={"source": EDITOR_SOURCE, "id": "copy"}).to_bytes()
    body = document[:-1] + f',"{ADDRESSEE}":"asker"}}'.encode()
    books = Paper([fact(event), Fact(Attributes.of(body), body)], done_by_all(event))

    assert owed(surveyed(books)) == {("asker", "copy")}


def test_what_nobody_can_read_is_owed_to_whose_queues_it_was_routed_to() -> None:
    stray = Stray("malformed", "thing.cancelled.normal", "malformed", "no JSON", b"{", None, NOW)
    surveyor = Surveyor(Paper([stray]), GRAPH, NOW - DAY, NOW)
    survey = surveyor.run()

    assert {participant for participant, _ in owed(survey)} == {
        "keeper",
        "asker",
        "teller",
    }
    posting = surveyor.postings(survey.owed)[0]
    assert posting.body == b"{"
    assert frames.properties_in(posting.properties).message_id == "malformed"


def test_what_is_older_than_all_of_its_type_that_was_done_is_left_out_and_told() -> None:
    old, first, waiting = cancelled(1, at=NOW - 60 * DAY), cancelled(2), cancelled(3)
    books = Paper([fact(old), fact(first), fact(waiting)], done_by_all(first))
    survey = surveyed(books)

    assert {id for _, id in owed(survey)} == {waiting.id}
    assert {one.key.id for one in survey.too_old} == {old.id}


def test_one_that_has_done_nothing_yet_is_owed_what_is_young() -> None:
    old, young = cancelled(1, at=NOW - BEGINNER - 60 * DAY), cancelled(2, at=NOW - BEGINNER / 2)
    survey = surveyed(Paper([fact(old), fact(young)], {}))

    assert {id for _, id in owed(survey)} == {young.id}


def test_an_event_that_its_participant_cannot_read_is_a_dead_letter_however_old() -> None:
    event = cancelled(1, at=NOW - 30 * DAY)
    body = event.to_bytes().replace(b'"wish"', b'"no reason"')
    survey = surveyed(Paper([Fact(Attributes.of(body), body)], {}))

    assert {id for _, id in owed(survey)} == {event.id}


def test_events_that_were_counted_and_no_book_holds_are_named() -> None:
    event = event_of(Voided(thing=UUID(int=1)), "voided", "asker")
    subject = event.subject
    books = Paper([fact(event)], done_by_all(event), counts={"asker": {subject: 3}})

    (lost,) = surveyed(books).unknown
    assert (lost.participant, lost.subject, lost.first, lost.last) == ("asker", subject, 2, 3)


def test_a_database_that_has_forgotten_everything_is_to_be_made_again_first() -> None:
    event = event_of(Voided(thing=UUID(int=1)), "voided", "asker")

    with pytest.raises(RecoveryError, match="saga history rebuild asker"):
        surveyed(Paper([fact(event)], empty={"asker"}))


def test_events_between_what_was_read_and_what_is_kept_are_named_as_well() -> None:
    subject = str(UUID(int=1))
    first, third = (
        wrap(
            Voided(thing=UUID(int=1)),
            id=f"event-{number}",
            source=source_of("asker"),
            time=NOW,
            priority=Priority.NORMAL,
            sequence=number,
        )
        for number in (1, 3)
    )
    books = Paper(
        [fact(first)],
        done_by_all(first, third),
        keeps={"asker": [third.to_bytes()]},
        counts={"asker": {subject: 4}},
    )

    lost = [(one.first, one.last) for one in surveyed(books).unknown]
    assert lost == [(2, 2), (4, 4)]


def test_a_database_without_an_inbox_is_not_empty_if_it_has_states() -> None:
    event = event_of(Voided(thing=UUID(int=1)), "voided", "asker")
    books = Paper([fact(event)], empty={"asker"}, counts={"asker": {event.subject: 1}})

    assert surveyed(books).unknown == []


def test_one_that_was_there_from_the_start_is_owed_whatever_it_has_not_done() -> None:
    old, first = cancelled(1, at=NOW - 60 * DAY), cancelled(2, at=NOW - 30 * DAY)
    books = Paper([fact(old), fact(first)], done_by_all(first), since=NOW - 30 * DAY)

    assert {id for _, id in owed(surveyed(books))} == {old.id}


def test_what_its_receiver_refused_for_its_sender_is_not_put_back_by_an_operator() -> None:
    event = cancelled(1)
    stray = Stray("forged", "part.held.normal", "misrouted", "", event.to_bytes(), None, NOW)
    survey = surveyed(Paper([stray]))

    assert survey.owed == []
    assert survey.refused > 0


def test_what_a_service_keeps_of_others_events_is_nobodys_word() -> None:
    forged = cancelled(1)

    assert surveyed(Paper(keeps={"keeper": [forged.to_bytes()]})).owed == []
