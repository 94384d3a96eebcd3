"""Who speaks the toy words: four participants, of whom the signatures alone are looked at."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import Final

from saga.archive import OBSERVER
from saga.choreography import Choreography, Participant, State
from tests.words import (
    Agreed,
    Begin,
    Begun,
    Cancel,
    Cancelled,
    Completed,
    Denied,
    Held,
    Inquire,
    Inquired,
    Noted,
    Refused,
    Released,
    Voided,
)


class Thing(State):
    pass


class Shelf(State):
    pass


class Question(State):
    pass


class Note(State):
    pass


def begin(command: Begin, thing: Thing) -> Begun | None: ...
def complete(event: Agreed, thing: Thing) -> Completed | None: ...
def give_up(event: Refused, thing: Thing) -> Cancelled | None: ...
def give_in(event: Denied, thing: Thing) -> Cancelled | None: ...
def cancel(command: Cancel, thing: Thing) -> Cancelled | None: ...
def hold(event: Begun, shelf: Shelf) -> Held | Refused | None: ...
def release(event: Cancelled, shelf: Shelf) -> Released | None: ...
def inquire(event: Held, question: Question) -> Inquire | None: ...
def hear(answer: Inquired, question: Question) -> Agreed | Denied | Voided | None: ...
def void(event: Cancelled, question: Question) -> Voided | None: ...
def note_completed(event: Completed, note: Note) -> Noted | None: ...
def note_cancelled(event: Cancelled, note: Note) -> Noted | None: ...


STARTER: Final = Participant("starter", begin, complete, give_up, give_in, cancel)
KEEPER: Final = Participant("keeper", hold, release)
ASKER: Final = Participant("asker", inquire, hear, void)
TELLER: Final = Participant("teller", note_completed, note_cancelled)

GRAPH: Final = Choreography((STARTER, KEEPER, ASKER, TELLER), (OBSERVER,))
