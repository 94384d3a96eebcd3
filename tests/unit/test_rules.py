"""What follows from the roles of events, whatever the saga: neither too little nor too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

from saga.choreography import Participant, State
from saga.declaration import Saga
from saga.due import Due
from saga.envelope import Envelope, source_of, wrap
from saga.message import Answer, Command, Decided, Event, EventTypes, Intent, Priority, Role
from saga.rules import Rules
from saga.view import EventsInMemory, View
from tests import errands

AT = datetime(2030, 1, 1, tzinfo=UTC)
KEY = "k"


class _Event(Event):
    key: str

    @property
    def subject(self) -> str:
        return self.key


class _Command(Command):
    key: str

    @property
    def subject(self) -> str:
        return self.key


class Hold(_Command):
    """Hold it."""

    type: ClassVar[str] = "hold.take"


class Lapse(_Command):
    """Its time is over."""

    type: ClassVar[str] = "hold.lapse"


class Held(_Event):
    """It is held."""

    type: ClassVar[str] = "hold.taken"
    publisher: ClassVar[str] = "holder"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True


class Lapsing(_Event):
    """It is about to lapse."""

    type: ClassVar[str] = "hold.lapsing"
    publisher: ClassVar[str] = "holder"


class Cleared(_Event):
    """The shelf is cleared."""

    type: ClassVar[str] = "shelf.cleared"
    publisher: ClassVar[str] = "shelf"


class Lapsed(_Event):
    """It has lapsed."""

    type: ClassVar[str] = "hold.lapsed"
    publisher: ClassVar[str] = "holder"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


class Freed(_Event):
    """It is not held any more."""

    type: ClassVar[str] = "hold.freed"
    publisher: ClassVar[str] = "holder"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (Held,)
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Kept(State):
    """What is held."""

    until: datetime | None = None
    expected: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        return self

    def due(self) -> Due[Lapse] | None:
        if self.until is None:
            return None
        return Due(self.until, Lapse(key=self.key), expected=self.expected)


def hold(command: Hold, kept: Kept) -> Held | None:
    return Held(key=command.key)


def lapse(command: Lapse, kept: Kept) -> Lapsing | None:
    return Lapsing(key=command.key)


def end(event: Cleared, kept: Kept) -> tuple[Freed, Lapsed] | None:
    return Freed(key=event.key), Lapsed(key=event.key)


@dataclass(frozen=True, slots=True)
class Shelf(State):
    """Where it stands."""


def clear(event: Lapsing, shelf: Shelf) -> Cleared | None:
    return Cleared(key=event.key)


HOLDS = Saga("holds", (Participant("holder", hold, lapse, end), Participant("shelf", clear)))


def told(*events: Event | Command, publisher: str = "holder") -> list[Envelope[Event | Command]]:
    """Published one after the other, each by whom its class names."""
    numbers: dict[str, int] = {}
    found = []
    for event in events:
        who = getattr(event, "publisher", None) or publisher
        numbers[who] = numbers.get(who, 0) + 1
        found.append(
            wrap(
                event,
                id=f"{who}-{numbers[who]}",
                source=source_of(who),
                time=AT,
                priority=Priority.NORMAL,
                sequence=numbers[who],
            )
        )
    return found


def broken(
    saga: Saga,
    events: Sequence[Envelope[Event | Command]],
    *states: tuple[str, State],
    at_rest: bool = True,
) -> set[str]:
    """The rules that this breaks."""
    known: dict[str, dict[tuple[type[State], str], State]] = {}
    for name, state in states:
        known.setdefault(name, {})[type(state), state.key] = state
    view = View(known, EventsInMemory(events), rests=lambda _: at_rest)
    return {violation.rule for violation in Rules(saga).judge(view, at_rest=at_rest)}


HELD = Kept(KEY, until=AT + timedelta(days=1), expected=True)


def test_what_only_time_ends_and_nothing_is_due_about_never_ends() -> None:
    """A deadline that is forgotten in the body for one kind of customer."""
    forgotten = replace(HELD, until=None)

    assert broken(HOLDS, told(Held(key=KEY)), ("holder", forgotten)) == {"endless", "not_ended"}


class GiveUp(_Command):
    """The shelf is needed for something else."""

    type: ClassVar[str] = "shelf.give_up"


@dataclass(frozen=True, slots=True)
class TimedShelf(Shelf):
    """One that is cleared at a time of its own."""

    until: datetime | None = None

    def due(self) -> Due[GiveUp] | None:
        return Due(self.until, GiveUp(key=self.key)) if self.until else None


def clear_timed(event: Lapsing, shelf: TimedShelf) -> Cleared | None:
    return Cleared(key=event.key)


def give_up(command: GiveUp, shelf: TimedShelf) -> Cleared | None:
    return Cleared(key=command.key)


def test_of_several_timers_one_that_is_due_is_enough() -> None:
    shelf = Participant("shelf", clear_timed, give_up)
    saga = HOLDS.with_(shelf)
    nothing_due = [("holder", Kept(KEY)), ("shelf", TimedShelf(KEY))]
    soon = replace(TimedShelf(KEY), until=AT)

    assert broken(saga, told(Held(key=KEY)), *nothing_due, at_rest=False) == {"endless"}
    assert (
        broken(saga, told(Held(key=KEY)), nothing_due[0], ("shelf", soon), at_rest=False) == set()
    )


def test_what_is_expected_later_is_waited_for() -> None:
    assert broken(HOLDS, told(Held(key=KEY)), ("holder", HELD)) == set()


def test_a_deadline_is_no_excuse_for_what_has_lost_something() -> None:
    deadline = replace(HELD, expected=False)

    assert broken(HOLDS, told(Held(key=KEY)), ("holder", deadline)) == {"not_ended"}


def test_once_its_time_has_come_the_end_may_be_on_its_way() -> None:
    lapsing = told(Held(key=KEY), Lapsing(key=KEY))

    assert broken(HOLDS, lapsing, ("holder", Kept(KEY)), at_rest=False) == set()


def test_whoever_is_not_reached_yet_ends_nothing_yet() -> None:
    assert broken(HOLDS, told(Held(key=KEY)), at_rest=False) == set()


def test_an_effect_that_was_undone_stands_no_more() -> None:
    lapsed = told(Held(key=KEY), Lapsing(key=KEY), Cleared(key=KEY), Freed(key=KEY))
    ended = told(Held(key=KEY), Lapsing(key=KEY), Cleared(key=KEY), Lapsed(key=KEY))

    assert "effect_standing" not in broken(HOLDS, lapsed)
    assert broken(HOLDS, ended) == {"effect_standing"}


def test_a_command_is_sent_once_and_not_after_the_end() -> None:
    ride = errands.StartRide(errand=KEY)
    ended = errands.ErrandEnded(errand=KEY)

    assert "said_twice" in broken(errands.SAGA, told(ride, ride, publisher="desk"))
    assert "after_the_end" in broken(errands.SAGA, told(ended, ride, publisher="desk"))


class Deposit(_Command):
    """Take a deposit for it."""

    type: ClassVar[str] = "deposit.take"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("holder",)


class ReturnDeposit(_Command):
    """See to it that no deposit is taken; what was taken meanwhile is told."""

    type: ClassVar[str] = "deposit.return"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("holder",)


class DepositTaken(_Event):
    """There is a deposit."""

    type: ClassVar[str] = "deposit.taken"
    publisher: ClassVar[str] = "till"


class Sold(_Event):
    """It is the customer's."""

    type: ClassVar[str] = "hold.sold"
    publisher: ClassVar[str] = "holder"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


def ask_deposit(command: Hold, kept: Kept) -> Deposit | None:
    return Deposit(key=command.key)


def sell(event: DepositTaken, kept: Kept) -> Sold | None:
    return Sold(key=event.key)


def call_off(command: Lapse, kept: Kept) -> tuple[Lapsed, ReturnDeposit] | None:
    return Lapsed(key=command.key), ReturnDeposit(key=command.key)


def take_deposit(command: Deposit, shelf: Shelf) -> DepositTaken | None:
    return DepositTaken(key=command.key)


def return_deposit(command: ReturnDeposit, shelf: Shelf) -> DepositTaken | None:
    return DepositTaken(key=command.key)


SALES = Saga(
    "sales",
    (
        Participant("holder", ask_deposit, sell, call_off),
        Participant("till", take_deposit, return_deposit),
    ),
)


def test_what_a_coordinator_has_undone_with_the_end_goes_on_with_nothing() -> None:
    lapsed, undo, ask = Lapsed(key=KEY), ReturnDeposit(key=KEY), Deposit(key=KEY)

    assert "after_the_end" not in broken(SALES, told(lapsed, undo, publisher="holder"))
    assert "after_the_end" in broken(SALES, told(lapsed, ask, publisher="holder"))


# --- two sagas about one subject ----------------------------------------------------------------


class Subscribe(_Command):
    """Send the letter."""

    type: ClassVar[str] = "letter.subscribe"


class Subscribed(_Event):
    """The letter is sent."""

    type: ClassVar[str] = "letter.subscribed"
    publisher: ClassVar[str] = "letters"


class Unsubscribed(_Event):
    """No letter is sent any more."""

    type: ClassVar[str] = "letter.unsubscribed"
    publisher: ClassVar[str] = "letters"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Letters(State):
    """Who gets letters."""


def subscribe(command: Subscribe, letters: Letters) -> Subscribed | None:
    return Subscribed(key=command.key)


def unsubscribe(event: Subscribed, letters: Letters) -> Unsubscribed | None:
    return Unsubscribed(key=event.key)


def test_the_end_of_one_saga_undoes_nothing_of_another_about_the_same_subject() -> None:
    both = replace(
        HOLDS, participants=(*HOLDS.participants, Participant("letters", subscribe, unsubscribe))
    )
    events = told(Held(key=KEY), Subscribed(key=KEY), Unsubscribed(key=KEY))

    assert broken(both, events, ("holder", HELD)) == set()


class Renewed(_Event):
    """It goes on for a year; which it does each year."""

    type: ClassVar[str] = "letter.renewed"
    publisher: ClassVar[str] = "letters"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True


def renew(command: Subscribe, letters: Letters) -> Renewed | None:
    return Renewed(key=command.key)


def test_what_ends_again_each_year_ends_nothing_for_good() -> None:
    yearly = Saga("yearly", (Participant("letters", renew),))

    assert broken(yearly, told(Renewed(key=KEY), Renewed(key=KEY))) == set()


# --- numbers, and what else is about the same subject -------------------------------------------


def unnumbered(*events: Event | Command) -> list[Envelope[Event | Command]]:
    return [event.model_copy(update={"sequence": None}) for event in told(*events)]


def test_what_has_no_number_counts_as_the_first() -> None:
    lapsed, held = unnumbered(Lapsed(key=KEY)), unnumbered(Held(key=KEY))
    lapsing, freed = unnumbered(Lapsing(key=KEY)), unnumbered(Freed(key=KEY))
    (first_lapsing,), (first_freed,) = told(Lapsing(key=KEY)), told(Freed(key=KEY))

    assert "after_the_end" not in broken(HOLDS, lapsed + lapsing)
    assert "after_the_end" in broken(HOLDS, [*lapsed, first_lapsing])
    assert "effect_standing" in broken(HOLDS, lapsed + held + freed)
    assert "effect_standing" not in broken(HOLDS, [*lapsed, *held, first_freed])


def test_nothing_is_undone_before_it_was_done() -> None:
    ended = told(Freed(key=KEY), Held(key=KEY), Lapsing(key=KEY), Lapsed(key=KEY))

    assert "effect_standing" in broken(HOLDS, ended)


class Noted(_Event):
    """It was noted where it stands."""

    type: ClassVar[str] = "shelf.noted"
    publisher: ClassVar[str] = "shelf"
    final: ClassVar[bool] = True


def note(event: Held, shelf: Shelf) -> Noted | None:
    return Noted(key=event.key)


def test_what_leads_nowhere_begins_nothing() -> None:
    noting = HOLDS.with_(Participant("shelf", clear, note))

    assert broken(noting, told(Noted(key=KEY))) == set()
    assert broken(noting, told(Lapsing(key=KEY))) == {"not_ended"}


class Remind(_Command):
    """It is held for a while now."""

    type: ClassVar[str] = "hold.remind"


class Reminded(_Event):
    """The customer was reminded of it."""

    type: ClassVar[str] = "hold.reminded"
    publisher: ClassVar[str] = "holder"
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Reminding(State):
    """What is held, and is reminded of before it lapses."""

    def due(self) -> Due[Lapse] | Due[Remind] | None:
        return None


def hold_reminding(command: Hold, kept: Reminding) -> Held | None:
    return Held(key=command.key)


def lapse_reminding(command: Lapse, kept: Reminding) -> Lapsed | None:
    return Lapsed(key=command.key)


def remind(command: Remind, kept: Reminding) -> Reminded | None:
    return Reminded(key=command.key)


def test_what_came_of_another_timer_is_not_the_end_on_its_way() -> None:
    saga = Saga("reminding", (Participant("holder", hold_reminding, lapse_reminding, remind),))
    reminded = told(Held(key=KEY), Reminded(key=KEY))

    assert "endless" in broken(saga, reminded, ("holder", Reminding(KEY)), at_rest=False)


def test_one_subject_that_moves_hides_no_other() -> None:
    events = [*told(Held(key="a")), *told(Held(key="b"))]
    view = View({}, EventsInMemory(events), rests=lambda subject: subject != "a")

    found = [(each.rule, each.subject) for each in Rules(HOLDS).judge(view)]

    assert found == [("not_ended", "b")]


def test_what_a_subject_waits_for_is_said_with_what_was_found() -> None:
    cut_short = told(Held(key=KEY), Lapsing(key=KEY))
    view = View({}, EventsInMemory(cut_short), rests=lambda _: True)

    (found,) = Rules(HOLDS).judge(view, explain=lambda subject: f"; waiting for {subject}")

    assert found.detail == "hold.lapsing and hold.taken was published, and no end; waiting for k"


# --- open questions -----------------------------------------------------------------------------


class Price(Answer):
    """What it costs."""

    key: str

    @property
    def subject(self) -> str:
        return self.key


class AskPrice(Intent):
    """Ask what it costs."""

    answer: ClassVar[type[Answer]] = Price

    key: str

    @property
    def subject(self) -> str:
        return self.key


class Priced(_Event):
    """It is known what it costs."""

    type: ClassVar[str] = "thing.priced"
    publisher: ClassVar[str] = "pricer"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True


class Look(_Command):
    """Look at it."""

    type: ClassVar[str] = "thing.look"


class Looked(_Event):
    """It was looked at."""

    type: ClassVar[str] = "thing.looked_at"
    publisher: ClassVar[str] = "pricer"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True


class StopAsking(_Command):
    """It takes too long."""

    type: ClassVar[str] = "thing.stop_asking"


@dataclass(frozen=True, slots=True)
class Question(State):
    """What something costs, as far as that is known."""

    asking: bool = False
    until: datetime | None = None
    expected: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, asking=isinstance(message, AskPrice))

    def due(self) -> Due[StopAsking] | None:
        if self.until is None:
            return None
        return Due(self.until, StopAsking(key=self.key), expected=self.expected)


@dataclass(frozen=True, slots=True)
class Seen(State):
    """Whether something was looked at; no outside is asked."""

    looked: bool = False


def ask_price(command: Hold, question: Question) -> AskPrice | None:
    return AskPrice(key=command.key)


def note_price(answer: Price, question: Question) -> Priced | None:
    return Priced(key=answer.key)


def stop_asking(command: StopAsking, question: Question) -> Priced | None:
    return Priced(key=command.key)


def look(command: Look, seen: Seen) -> Looked | None:
    return Looked(key=command.key)


PRICES = Saga("prices", (Participant("pricer", ask_price, note_price, stop_asking, look),))
priced = told(Priced(key=KEY), Priced(key=KEY), Priced(key=KEY))
ASKING = Question(KEY, sequence=2, asking=True)
"""It was priced twice, and is asked about again."""


def open_questions(
    *states: State,
    events: Sequence[Envelope[Event | Command]] = tuple(priced),
    moving: str = "",
    busy: str = "",
) -> list[str]:
    """The subjects that are left in the middle of a question."""
    known = {"pricer": {(type(state), state.key): state for state in states}} if states else {}
    view = View(
        known,
        EventsInMemory(events),
        rests=lambda subject: subject != moving,
        busy=lambda participant, subject: (participant, subject) == ("pricer", busy),
    )
    found = list(Rules(PRICES).judge(view, explain=lambda subject: f"; see {subject}"))
    assert all(
        (each.rule, each.detail)
        == (
            "question_open",
            "the Question of pricer is in the middle of a question: no event tells of what it is "
            f"now; see {each.subject}",
        )
        for each in found
    )
    return [each.subject for each in found]


def test_a_question_that_is_left_open_is_found() -> None:
    assert open_questions(ASKING) == [KEY]
    assert open_questions(replace(ASKING, asking=False)) == []
    assert open_questions() == []


def test_a_question_is_not_left_while_something_goes_on() -> None:
    assert open_questions(ASKING, moving=KEY) == []
    assert open_questions(ASKING, busy=KEY) == []


def test_a_question_that_time_ends_is_not_left_open() -> None:
    assert open_questions(replace(ASKING, until=AT)) == []
    assert open_questions(replace(ASKING, until=AT, expected=True)) == [KEY]


def test_a_state_about_which_nobody_is_asked_is_in_no_question() -> None:
    looked = told(Looked(key=KEY))

    assert open_questions(Seen(KEY, sequence=1, looked=True), events=looked) == []


def test_one_question_that_is_not_left_hides_no_other() -> None:
    others = [
        Seen(KEY, sequence=2, looked=True),
        replace(ASKING, key="moving"),
        replace(ASKING, key="timed", until=AT),
    ]

    assert open_questions(*others, ASKING, moving="moving") == [KEY]


def test_of_a_question_whose_events_are_not_all_known_nothing_can_be_said() -> None:
    first, second, third = priced

    assert open_questions(ASKING, events=[second, first]) == [KEY]
    assert open_questions(ASKING, events=[second, third]) == []
    assert open_questions(ASKING, events=[first]) == []
    (somewhere,) = unnumbered(Priced(key=KEY))
    assert open_questions(replace(ASKING, sequence=1), events=[first, somewhere]) == []
