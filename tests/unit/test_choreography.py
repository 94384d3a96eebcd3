"""Signatures are the routes: what is read from them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Optional, Union
from uuid import UUID

import pytest

from saga.choreography import (
    Choreography,
    ChoreographyError,
    Participant,
    Reaction,
    State,
    due_commands,
)
from saga.due import Due
from saga.message import Answer, Command, Event, Intent, Message
from saga.testing import NOW
from tests import errands
from tests.errands import DESK, RIDER, STAMPER
from tests.words import (
    Agreed,
    Begin,
    Begun,
    Cancelled,
    Denied,
    Held,
    Refused,
    Released,
    Voided,
)

THING = UUID(int=1)


@dataclass(frozen=True, slots=True)
class Parcel(State):
    pass


@dataclass(frozen=True, slots=True)
class Shelf(State):
    pass


class Answered(Answer):
    pass


class Ask(Intent):
    answer: ClassVar[type[Answer]] = Answered


class AskAgain(Ask):
    pass


class Tidy(Command):
    type: ClassVar[str] = "shelf.tidy"


def plain(event: Begun, parcel: Parcel) -> Held:
    raise NotImplementedError


def perhaps(event: Begun, parcel: Parcel) -> Held | Refused | None:
    raise NotImplementedError


def in_the_old_way(
    event: Begun,
    parcel: Parcel,
) -> Optional[Union[Held, Refused]]:  # noqa: UP007, UP045 - people write it so
    raise NotImplementedError


def several(event: Begun, parcel: Parcel) -> tuple[Held | Refused, Voided] | Held | None:
    raise NotImplementedError


def any_number(event: Begun, parcel: Parcel) -> tuple[Held | Refused, ...]:
    raise NotImplementedError


def silent(event: Begun, parcel: Parcel) -> None:
    raise NotImplementedError


def asking(event: Begun, parcel: Parcel) -> Ask | Voided | None:
    raise NotImplementedError


def answered(answer: Answered, parcel: Parcel) -> tuple[Agreed, Ask] | Denied:
    raise NotImplementedError


def tidy(command: Tidy, shelf: Shelf) -> Released:
    raise NotImplementedError


def intake(command: Begin, parcel: Parcel) -> Begun | None:
    raise NotImplementedError


def with_everything(
    event: Cancelled, now: datetime, shelf: Mapping[str, Shelf], parcel: Parcel, one: Shelf
) -> Released:
    raise NotImplementedError


def same_again(event: Begun, parcel: Parcel) -> Voided:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "returns"),
    [
        (plain, [Held]),
        (perhaps, [Held, Refused]),
        (in_the_old_way, [Held, Refused]),
        (several, [Held, Refused, Voided]),
        (any_number, [Held, Refused]),
        (asking, [Ask, Voided]),
        (answered, [Agreed, Ask, Denied]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_may_be_returned_is_read_through_unions_and_tuples(
    function: Callable[..., Any], returns: list[type[Message]]
) -> None:
    assert list(Reaction.of(function).returns) == returns


@pytest.mark.parametrize(
    ("function", "allowed", "refused"),
    [
        (plain, [(Held,)], [(), (Refused,), (Held, Held)]),
        (perhaps, [(), (Held,), (Refused,)], [(Held, Refused)]),
        (
            several,
            [(), (Held,), (Held, Voided), (Refused, Voided)],
            [(Refused,), (Voided,), (Voided, Held)],
        ),
        (
            any_number,
            [(), (Refused,), (Refused, Held)],
            [(Voided,), (Held, Voided), (Held, Held)],
        ),
        (answered, [(Agreed, Ask), (Denied,)], [(), (Ask,), (Agreed,)]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_signature_allows_what_it_says_together_and_in_that_order(
    function: Callable[..., Any],
    allowed: list[tuple[type[Any], ...]],
    refused: list[tuple[type[Any], ...]],
) -> None:
    reaction = Reaction.of(function)

    assert [kinds for kinds in allowed + refused if reaction.allows(kinds)] == allowed
    assert reaction.may_do_nothing == (() in allowed)


@pytest.mark.parametrize(
    ("function", "consumes"),
    [(plain, Begun), (answered, Answered), (tidy, Tidy), (intake, Begin)],
    ids=lambda value: value.__name__,
)
def test_the_first_parameter_is_what_is_consumed(
    function: Callable[..., Any], consumes: type[Message]
) -> None:
    assert Reaction.of(function).consumes is consumes


def test_events_are_published_and_intents_are_not() -> None:
    reaction = Reaction.of(answered)

    assert reaction.publishes == (Agreed, Denied)
    assert reaction.intends == (Ask,)


def test_further_parameters_are_states_mappings_of_states_and_the_time() -> None:
    reaction = Reaction.of(with_everything)

    assert reaction.parameters == (
        ("now", datetime, False),
        ("shelf", Shelf, True),
        ("parcel", Parcel, False),
        ("one", Shelf, False),
    )


def test_events_are_numbered_by_the_first_state_that_comes_alone() -> None:
    assert Reaction.of(with_everything).own is Parcel


def test_a_reaction_has_its_functions_name() -> None:
    assert Reaction.of(plain).name == "plain"


def nothing_annotated(event, parcel):  # type: ignore[no-untyped-def]  # that is the mistake
    raise NotImplementedError


def one_not_annotated(event: Begun, parcel) -> None:  # type: ignore[no-untyped-def]  # so too
    raise NotImplementedError


def no_return_type(event: Begun, parcel: Parcel):  # type: ignore[no-untyped-def]  # so too
    raise NotImplementedError


def nothing_taken() -> Held:
    raise NotImplementedError


def state_first(parcel: Parcel, event: Begun) -> Held:
    raise NotImplementedError


def takes_an_intent(intent: Ask, parcel: Parcel) -> Held:
    raise NotImplementedError


def takes_either(event: Begun | Cancelled, parcel: Parcel) -> Held:
    raise NotImplementedError


def returns_text(event: Begun, parcel: Parcel) -> Held | str:
    raise NotImplementedError


def returns_an_answer(event: Begun, parcel: Parcel) -> Answered:
    raise NotImplementedError


def returns_a_list(event: Begun, parcel: Parcel) -> list[Held]:
    raise NotImplementedError


def returns_any(event: Begun, parcel: Parcel) -> Any:
    raise NotImplementedError


def wants_a_number(event: Begun, parcel: Parcel, limit: int) -> Held:
    raise NotImplementedError


def wants_numbers(event: Begun, parcel: Parcel, limits: Mapping[str, int]) -> Held:
    raise NotImplementedError


def wants_a_dict(event: Begun, parcel: Parcel, shelf: dict[str, Shelf]) -> Held:
    raise NotImplementedError


def stateless(event: Begun, now: datetime) -> Held:
    raise NotImplementedError


def only_many_states(event: Begun, shelf: Mapping[str, Shelf]) -> Held:
    raise NotImplementedError


def names_nothing_known(event: Begun, parcel: Parcel) -> Held:
    raise NotImplementedError


names_nothing_known.__annotations__["return"] = "Lost"


def asks_two_things(event: Begun, parcel: Parcel) -> tuple[Ask, AskAgain]:
    raise NotImplementedError


def says_it_twice(event: Begun, parcel: Parcel) -> tuple[Held, Held]:
    raise NotImplementedError


def nothing_within(event: Begun, parcel: Parcel) -> tuple[Held | None, Ask]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "way_out"),
    [
        (nothing_annotated, "annotate every parameter and the return type"),
        (one_not_annotated, "annotate every parameter and the return type"),
        (no_return_type, "annotate every parameter and the return type"),
        (nothing_taken, "annotate every parameter and the return type"),
        (state_first, "first parameter must be an event, a command or an answer, not .*Parcel"),
        (takes_an_intent, "first parameter must be an event, a command or an answer, not .*Ask"),
        (
            takes_either,
            "first parameter must be an event, a command or an answer, not .*Begun",
        ),
        (returns_text, "may return events, commands and intents, not .*str"),
        (returns_an_answer, "may return events, commands and intents, not .*Answered"),
        (returns_a_list, "may return events, commands and intents, not list"),
        (returns_any, "may return events, commands and intents, not typing.Any"),
        (wants_a_number, r"parameter limit must be a State, a Mapping\[str, State\] or a datetime"),
        (wants_numbers, "parameter limits must be a State"),
        (wants_a_dict, r"parameter shelf must be a State, a Mapping\[str, State\]"),
        (stateless, "take the state of the message's subject"),
        (only_many_states, "take the state of the message's subject"),
        (names_nothing_known, "name 'Lost' is not defined"),
        (asks_two_things, "asks one thing at a time, not Ask and AskAgain"),
        (says_it_twice, "returns Held once at most"),
        (silent, "returns nothing, .* return an event .* or leave the reaction out"),
        (nothing_within, "may return events, commands and intents, not .*NoneType"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_signature_that_is_no_route_is_refused_by_name_and_with_the_way_out(
    function: Callable[..., Any], way_out: str
) -> None:
    with pytest.raises(ChoreographyError, match=way_out) as refused:
        Participant("parcel", function)
    assert function.__name__ in str(refused.value)


def test_a_participant_reacts_once_to_a_message() -> None:
    with pytest.raises(ChoreographyError, match="parcel: both plain and same_again take Begun"):
        Participant("parcel", plain, tidy, same_again)


def test_two_participants_need_two_names() -> None:
    with pytest.raises(ChoreographyError, match="two services are called parcel"):
        Choreography([Participant("parcel", plain), Participant("parcel", tidy)])


def asking_again(event: Cancelled, parcel: Parcel) -> AskAgain:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("functions", "asked", "said"),
    [
        (
            [asking, answered],
            [],
            r"test_choreography.asking may return Ask, which parcel puts to no outside; say in its",
        ),
        (
            [asking, answered],
            [Ask, AskAgain],
            "parcel would ask AskAgain, but none of its reactions returns that",
        ),
        (
            [asking],
            [Ask],
            "asking may return Ask, but parcel has no reaction to its answer, Answered",
        ),
        ([plain], [Ask], "parcel would ask Ask, but none"),
    ],
)
def test_a_service_asks_what_its_signatures_say_and_hears_the_answer(
    functions: list[Callable[..., Any]], asked: list[type[Intent]], said: str
) -> None:
    with pytest.raises(ChoreographyError, match=said):
        Participant("parcel", *functions).check_asks(asked)


def test_each_intent_may_be_asked_by_several_reactions_and_have_the_same_answer() -> None:
    Participant("parcel", asking, answered, asking_again).check_asks([Ask, AskAgain])


class BegunElsewhere(Begun):
    """The same type and version again."""


class Sweep(Command):
    type: ClassVar[str] = "shelf.tidy"


def elsewhere(event: BegunElsewhere, parcel: Parcel) -> Voided:
    raise NotImplementedError


def sweep(command: Sweep, parcel: Parcel) -> Voided:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (plain, elsewhere, r"tests.words.Begun and .*\.BegunElsewhere have the type"),
        (tidy, sweep, r"test_choreography.Tidy and .*\.Sweep have the type 'shelf.tidy' and"),
    ],
    ids=["an event of one version", "a command"],
)
def test_two_classes_of_one_type_are_refused_with_both_places(
    one: Callable[..., Any], other: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ChoreographyError, match=said):
        Choreography([Participant("parcel", one), Participant("shelf", other)])
    with pytest.raises(ChoreographyError, match=said):
        Choreography([Participant("parcel", one, other)])


def test_a_class_that_nobody_uses_is_in_nobodys_way() -> None:
    graph = Choreography([Participant("parcel", plain), Participant("shelf", tidy)])

    assert Begun in graph.events


def test_a_participant_knows_what_it_takes_gives_and_keeps() -> None:
    participant = Participant("parcel", asking, answered, tidy, intake, with_everything)

    assert participant.consumes == (Begun, Cancelled)
    assert participant.publishes == (
        Voided,
        Agreed,
        Denied,
        Released,
        Begun,
    )
    assert participant.states == (Parcel, Shelf)
    assert participant.by_message[Answered].function is answered


def test_only_commands_meant_for_it_come_over_the_broker() -> None:
    assert Participant("parcel", tidy, intake).intake == (Begin,)


def test_a_choreography_knows_every_event_by_name_and_who_reacts_to_it() -> None:
    parcel, hall = Participant("parcel", perhaps), Participant("hall", asking, tidy)
    choreography = Choreography([parcel, hall])

    assert choreography.participants == (hall, parcel)
    assert choreography.events == (Held, Refused, Released, Voided, Begun)
    assert choreography.reacting_to("thing.begun") == (hall, parcel)
    assert choreography.reacting_to("part.held") == ()


# --- commands between participants, and private facts -------------------------------------------


class Wave(Command):
    type: ClassVar[str] = "shelf.wave"


class Nudge(Command):
    type: ClassVar[str] = "shelf.nudge"
    version: ClassVar[int] = 2
    intake: ClassVar[bool] = True


class NudgeV1(Nudge):
    version: ClassVar[int] = 1

    def upcast(self) -> Command:
        return Nudge()


class Nudged(Event):
    type: ClassVar[str] = "shelf.nudge"


class ParcelSeen(Event):
    type: ClassVar[str] = "parcel.seen"
    private: ClassVar[bool] = True


def ride_too(command: errands.StartRide, shelf: Shelf) -> Released:
    raise NotImplementedError


def greet(event: Begun, parcel: Parcel) -> Wave:
    raise NotImplementedError


def wave_back(command: Wave, shelf: Shelf) -> Released:
    raise NotImplementedError


def confuse(event: Begun, parcel: Parcel) -> tuple[Nudge, Nudged]:
    raise NotImplementedError


def nudge_as_before(event: Begun, parcel: Parcel) -> NudgeV1:
    raise NotImplementedError


def move(command: Nudge, shelf: Shelf) -> Released:
    raise NotImplementedError


def see(event: Begun, parcel: Parcel) -> ParcelSeen | None:
    raise NotImplementedError


def pry(event: ParcelSeen, shelf: Shelf) -> Released:
    raise NotImplementedError


def test_a_choreography_knows_the_commands_that_participants_send_and_who_takes_them() -> None:
    choreography = errands.GRAPH

    assert [command.type for command in choreography.commands] == [
        "ride.start",
        "stamp.give",
        "stamp.take_off",
    ]
    assert choreography.reacting_to("ride.start") == (RIDER,)
    assert choreography.reacting_to("errand.ask") == ()
    assert choreography.sent_to(STAMPER) == (errands.GiveStamp, errands.TakeStampOff)
    assert choreography.given_to(STAMPER) == ()
    assert choreography.given_to(DESK) == (errands.AskErrand,)


def test_a_command_is_known_in_its_newest_version_whichever_is_sent() -> None:
    choreography = Choreography([Participant("desk", nudge_as_before), Participant("hall", move)])

    assert choreography.commands == (Nudge,)
    assert choreography.sent_to(choreography.participants[1]) == (Nudge,)


@pytest.mark.parametrize(
    ("participants", "way_out"),
    [
        (
            [DESK, STAMPER],
            r"ask sends ride\.start, which no participant takes; let a reaction",
        ),
        (
            [DESK, RIDER, STAMPER, Participant("hall", ride_too)],
            r"ride\.start, which hall and rider take; a command has one receiver",
        ),
        (
            [Participant("desk", errands.ask, errands.ride), STAMPER],
            r"ride\.start, which desk takes itself; let the reaction decide on it at once",
        ),
        (
            [Participant("desk", greet), Participant("hall", wave_back)],
            "hall does not take over the broker; let Wave have `intake = True`",
        ),
        (
            [Participant("desk", confuse), Participant("hall", move)],
            r"shelf\.nudge, and an event is called so, too; rename one",
        ),
        (
            [Participant("desk", see), Participant("hall", see)],
            r"see publishes parcel\.seen, which is private, and hall does, too",
        ),
    ],
    ids=["nobody", "two", "itself", "without intake", "an event", "two with one private fact"],
)
def test_a_command_to_none_or_to_many_and_a_shared_private_fact_are_refused(
    participants: list[Participant], way_out: str
) -> None:
    with pytest.raises(ChoreographyError, match=way_out):
        Choreography(participants)


@pytest.mark.parametrize("name", ["desk", "hall"])
def test_nobody_reacts_to_a_private_fact_not_even_its_participant(name: str) -> None:
    with pytest.raises(ChoreographyError, match="pry: ParcelSeen is private, so no participant"):
        Participant(name, see, pry)


def test_a_state_concerns_only_the_subject_it_is_about() -> None:
    event = Voided(thing=THING)
    own = Parcel(str(THING))

    assert tuple(Parcel.keys(event, own)) == (str(THING),)
    assert tuple(Shelf.keys(event, own)) == ()


def test_a_state_does_not_change_by_what_it_does_not_know() -> None:
    parcel = Parcel(str(THING))

    assert parcel.evolve(Voided(thing=THING), NOW) is parcel


# --- what is due ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease(State):
    def due(self) -> Due[Renew | Remind] | Due[Lapse] | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Promise(State):
    def due(self) -> Renew | None:  # type: ignore[override]  # that is what is refused
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ForwardRequest(State):
    def due(self) -> Due[Any] | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Hope(State):
    def due(self):  # type: ignore[no-untyped-def]  # that is what is refused
        raise NotImplementedError


class Renew(Command):
    type: ClassVar[str] = "lease.renew"


class Remind(Command):
    type: ClassVar[str] = "lease.remind"


class Lapse(Command):
    type: ClassVar[str] = "lease.lapse"


def renew(command: Renew, lease: Lease) -> Voided:
    raise NotImplementedError


def remind(command: Remind, lease: Lease) -> Voided:
    raise NotImplementedError


def lapse(command: Lapse, lease: Lease) -> Voided:
    raise NotImplementedError


def lapse_of_a_parcel(command: Lapse, parcel: Parcel, lease: Lease) -> Voided:
    raise NotImplementedError


def test_the_commands_that_may_be_due_are_in_the_annotation() -> None:
    participant = Participant("rent", renew, remind, lapse)

    assert participant.dues == {Lease: (Renew, Remind, Lapse)}


def test_nothing_is_due_about_a_state_that_does_not_say_so() -> None:
    assert Parcel("a").due() is None
    assert Participant("post", plain).dues == {}


@pytest.mark.parametrize("kind", [Promise, ForwardRequest, Hope])
def test_an_annotation_that_names_no_command_is_refused(kind: type[State]) -> None:
    with pytest.raises(ChoreographyError, match=rf"{kind.__name__}.due: annotate"):
        due_commands(kind)


def test_what_is_due_must_be_taken_by_a_reaction_of_the_participant() -> None:
    with pytest.raises(
        ChoreographyError, match=r"Lease\.due gives Lapse, which no reaction of rent"
    ):
        Participant("rent", renew, remind)


def test_what_is_due_must_be_taken_with_the_state_that_it_is_due_about() -> None:
    with pytest.raises(ChoreographyError, match="lapse_of_a_parcel takes Parcel first; let it"):
        Participant("rent", renew, remind, lapse_of_a_parcel)


def lapse_by_asking(command: Lapse, lease: Lease) -> tuple[Voided, Ask] | None:
    raise NotImplementedError


def test_what_is_due_asks_nobody_outside() -> None:
    with pytest.raises(ChoreographyError, match="lapse_by_asking may return the intent Ask, which"):
        Participant("rent", renew, remind, lapse_by_asking)
