"""A saga of toys in the archive: nothing is written for it, and its subjects are no UUIDs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from saga.archive import queries, store
from saga.archive.views import projection_of
from saga.choreography import Choreography, Participant, State
from saga.deployment import Deployment
from saga.envelope import Envelope, wrap
from saga.history import trace as asked
from saga.history.archive import Archive
from saga.history.rebuild import rebuild_views
from saga.history.whereabouts import MessageLocations
from saga.limits import TEXT_MAX_BYTES
from saga.message import Command, Decided, Event, EventTypes, Priority, Role
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.step import react
from saga.testing import NOW
from tests.stores import HISTORY


class About(Event):
    name: str

    @property
    def subject(self) -> str:
        return self.name


class Send(Command):
    type: ClassVar[str] = "kite.send"
    name: str

    @property
    def subject(self) -> str:
        return self.name


class Land(Send):
    type: ClassVar[str] = "kite.land"


class Sent(About):
    type: ClassVar[str] = "kite.sent"
    publisher: ClassVar[str] = "kite"


class Landed(About):
    type: ClassVar[str] = "kite.landed"
    publisher: ClassVar[str] = "kite"
    role: ClassVar[Role] = Role.CANCELLATION


class StringPaidOut(About):
    type: ClassVar[str] = "string.paid_out"
    publisher: ClassVar[str] = "winch"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True


class StringReeledIn(About):
    type: ClassVar[str] = "string.reeled_in"
    publisher: ClassVar[str] = "winch"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (StringPaidOut,)
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Kite(State):
    aloft: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, aloft=isinstance(message, Sent))


@dataclass(frozen=True, slots=True)
class Winch(State):
    out: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, out=isinstance(message, StringPaidOut))


def send(command: Send, kite: Kite) -> Sent | None:
    return None if kite.aloft else Sent(name=command.name)


def land(command: Land, kite: Kite) -> Landed | None:
    return Landed(name=command.name) if kite.aloft else None


def pay_out(event: Sent, winch: Winch) -> StringPaidOut | None:
    return None if winch.out else StringPaidOut(name=event.name)


def reel_in(event: Landed, winch: Winch) -> StringReeledIn | None:
    return StringReeledIn(name=event.name) if winch.out else None


KITE = Participant("kite", send, land)
WINCH = Participant("winch", pay_out, reel_in)
KITES = Choreography([KITE, WINCH])
PROJECTION = projection_of(KITES)

NAMES = ["Ada's kite", "ada's kite", "red/blue", "a/timeline", "€" * 85, "k" * TEXT_MAX_BYTES]


class Sky:
    """What is said of the kites; the winch may be away."""

    def __init__(self) -> None:
        self.events: list[Envelope[Any]] = []
        self._folds = {participant.name: Fold(participant) for participant in (KITE, WINCH)}

    def give(self, command: Command) -> None:
        cause = wrap(
            command,
            id=f"{command.type} {NAMES.index(command.subject)}",
            source="/test",
            time=NOW,
            priority=Priority.NORMAL,
        )
        self._react(KITE, cause)

    def deliver(self) -> None:
        done = {event.causationid for event in self.events}
        for event in [*self.events]:
            if type(event.data) in WINCH.by_message and event.id not in done:
                self._react(WINCH, event)

    def _react(self, participant: Participant, cause: Envelope[Any]) -> None:
        fold = self._folds[participant.name]
        at = NOW + timedelta(milliseconds=len(self.events))
        decision = react(participant, cause, cause.data, fold.find, at)
        for event in decision.events:
            fold.take(event)
        self.events += decision.events


async def archive(folder: Path, events: Sequence[Envelope[Any]]) -> Deployment:
    url = f"sqlite:///{folder / 'history.db'}"
    database = await open_database(url, HISTORY)
    facts = [store.Fact(event, event.to_bytes()) for event in events]
    await database.transaction(lambda c: store.append(c, facts, NOW, PROJECTION))
    await database.close()
    return Deployment(
        amqp_url="amqp://nowhere",
        http_urls={},
        database_urls={"history": url},
    )


@pytest.fixture
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*_: object) -> MessageLocations:
        return MessageLocations()

    async def behind(_: Archive) -> int:
        return 0

    monkeypatch.setattr(asked, "look", look)
    monkeypatch.setattr(Archive, "behind", behind)


@pytest.mark.usefixtures("_no_broker")
async def test_trace_stuck_and_show_tell_of_any_subject(tmp_path: Path) -> None:
    sky = Sky()
    for name in NAMES:
        sky.give(Send(name=name))
    sky.deliver()
    for name in NAMES[:3]:
        sky.give(Land(name=name))
    owing = sky.events[-1]
    landed = [event for event in sky.events if event.type == Landed.type][:2]
    for event in landed:
        sky._react(WINCH, event)
    deployment = await archive(tmp_path, sky.events)
    now = NOW + timedelta(days=1)

    found = await asked.stuck(deployment, KITES, now=now)
    assert [(one.story.subject, [d.answers for d in one.debts]) for one in found.subjects] == [
        (owing.subject, [(StringReeledIn.type,)])
    ]
    for name in NAMES:
        told = await asked.trace(deployment, KITES, name, now=now)
        assert (told.story.subject, told.story.view, told.story.summary.kind) == (
            name,
            None,
            "Kite",
        )
        assert told.story.summary.settled == (name in NAMES[:2])
        assert told.late == (name == owing.subject)
        shown = await asked.past(deployment, KITES, name, at=NOW + timedelta(minutes=1))
        assert {type(s) for states in shown.states.values() for s in states} == {Kite, Winch}


async def test_what_was_folded_as_it_came_is_what_is_folded_anew(tmp_path: Path) -> None:
    sky = Sky()
    for name in NAMES:
        sky.give(Send(name=name))
        sky.give(Land(name=name))
    deployment = await archive(tmp_path, sky.events)
    url = deployment.database_urls["history"]

    async def all_subjects() -> list[object]:
        database = await open_database(url, HISTORY)
        found = await database.read(lambda c: queries.search(c, queries.Search(), 99))
        await database.close()
        return list(found)

    before = await all_subjects()
    assert await rebuild_views(url, KITES) == len(NAMES) == len(before)
    assert await all_subjects() == before
