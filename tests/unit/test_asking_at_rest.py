"""What the checker lets happen once all that was sent is done: what an operator may want then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga.choreography import Participant, State
from saga.declaration import Saga, Scenario, Stimulus
from saga.due import Due
from saga.message import Answer, Ask, Command, Decided, Event, Intent
from saga.outside import Desk, Outside
from saga.testing import NOW
from saga.verify import ModelReport, model_of, verify


class _About:
    @property
    def subject(self) -> str:
        return "a"


class LookUp(_About, Command):
    type: ClassVar[str] = "book.look_up"


class Found(_About, Answer):
    pass


class AskForTitle(_About, Intent):
    answer: ClassVar[type[Answer]] = Found


class Noted(_About, Event):
    type: ClassVar[str] = "book.noted"
    publisher: ClassVar[str] = "clerk"
    final: ClassVar[bool] = True


class GaveUp(_About, Event):
    type: ClassVar[str] = "book.gave_up"
    publisher: ClassVar[str] = "clerk"
    final: ClassVar[bool] = True


class GiveUp(_About, Command):
    type: ClassVar[str] = "book.give_up"


@dataclass(frozen=True, slots=True)
class Card(State):
    asking: bool = False
    done: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        asking = isinstance(message, AskForTitle)
        return replace(self, asking=asking, done=not asking)

    def due(self) -> Due[GiveUp] | None:
        """After a crash it is not asked again."""
        return Due(NOW, GiveUp()) if self.asking else None


def look_up(command: LookUp, card: Card) -> AskForTitle | None:
    return None if card.asking or card.done else AskForTitle()


def found(answer: Found, card: Card) -> Noted | None:
    return None if card.done else Noted()


def give_up(command: GiveUp, card: Card) -> GaveUp | None:
    return GaveUp() if card.asking else None


@dataclass(frozen=True, slots=True)
class Catalogue:
    asked: bool = False


def _catalogue(desk: Desk[Catalogue]) -> Mapping[type[Intent], Ask]:
    async def answer(intent: Intent) -> Answer:
        desk.books = Catalogue(asked=True)
        return Found()

    return {AskForTitle: answer}


CATALOGUE = Outside("catalogue", "clerk", Catalogue(), ("there",), _catalogue)


def checked(*, at_rest: bool) -> ModelReport:
    wish = Stimulus("a reader asks", "clerk", LookUp(), NOW, at_rest=at_rest)
    return verify(
        model_of(
            Saga(
                "library",
                participants=(Participant("clerk", look_up, found, give_up),),
                outside=(CATALOGUE,),
                scenarios=(Scenario("a reader", (), (NOW,), stimuli=[wish]),),
            ),
            "a reader",
        )
    )


def test_a_persons_question_is_heard_and_answered_when_all_else_is_done() -> None:
    report = checked(at_rest=True)

    assert report.ok
    assert report.published == {"book.noted", "book.gave_up"}


def test_who_is_not_said_to_want_anything_at_rest_may_change_nothing_there() -> None:
    schedule = checked(at_rest=False).schedule

    assert schedule is not None
    assert (schedule.violation.rule, schedule.steps[-1].text) == ("moved_at_rest", "a reader asks")
