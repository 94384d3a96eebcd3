"""Forgetting a person in a run as `saga forget` does, by an operator whose command is killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from saga.archive.store import Fact
from saga.declaration import EarlyEnd
from saga.errors import InputError
from saga.load.plan import Given
from saga.message import Command
from saga.personal.forgetting import Forgetter, NotEnded, Outcome
from saga.personal.keystore import KeyStore, KeyStoreAway, Person, UnknownPerson
from saga.personal.lookup import CATCH_UP_SECONDS, POLL_SECONDS, PersonRecord, is_open, marker_of
from saga.personal.lookup import sealed_texts_in as texts_in
from saga.personal.requests import Request
from saga.personal.seal import Forgotten, Unsealable
from saga.runtime.kernel.work import Done, Duplicate
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.runtime.tasks import in_thread
from saga.simulation.broker import EPOCH
from saga.simulation.doors import Doors
from saga.simulation.loop import SimulatedProcess
from saga.simulation.recovery import as_read

if TYPE_CHECKING:
    from saga.simulation.world import World

FORGETTING_SHARE: Final = 0.6
"""Runs with doors in which a person is forgotten."""
FORGOTTEN_MAX: Final = 2
"""Persons, of one run."""
LATER_SHARE: Final = 0.3
"""Of these, those who are forgotten after the storm."""
LATER_MAX_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 2.0
"""How long a command waits for open sagas to end, before the request is left for later."""
RESUME_SECONDS: Final = 15.0
"""How often what waits is resumed."""
KILLED_SHARE: Final = 0.4
"""Commands that are killed, in a storm."""
KILLED_MAX_SECONDS: Final = 60.0
AGAIN_SHARE: Final = 0.3
"""Persons who are forgotten once more."""
TRIES_MAX: Final = 100
"""Commands about one person."""
_REASON: Final = "they asked"


@dataclass
class OperatorsFiles:
    """What outlives an operator's command."""

    requests: dict[str, Request] = field(default_factory=dict)
    """Keyed by person id: those that wait."""
    ended: dict[str, type[Command]] = field(default_factory=dict)
    """Keyed by subject that was to be ended early: by what."""
    facts: dict[str, dict[bytes, Fact]] = field(default_factory=dict)
    """Keyed by subject and body: the archive, which reads the stream at once."""
    read: tuple[int, int] = (0, 0)
    """How often the broker was lost, and how much of its stream was read since."""


class ForgettingOperator:
    """Forgets some persons of a run, and insists on it."""

    def __init__(
        self, world: World, doors: Doors, kind: type[Forgetter], chance: random.Random
    ) -> None:
        self._world = world
        self._doors = doors
        self._kind = kind
        self._chance = chance
        self.files = OperatorsFiles()

    def draw(self) -> Mapping[str, float]:
        """When whom to forget, in seconds from the storm's beginning."""
        names = sorted(self._doors.names)
        if not names or self._chance.random() >= FORGETTING_SHARE:
            return {}
        count = min(len(names), self._chance.randint(1, FORGOTTEN_MAX))
        storm_seconds = self._world.weather.storm_seconds
        found = {}
        for name in self._chance.sample(names, count):
            later = self._chance.random() < LATER_SHARE
            most = LATER_MAX_SECONDS if later else storm_seconds
            found[name] = self._chance.random() * most + (storm_seconds if later else 0.0)
        return found

    async def forget(self, name: str, after_seconds: float) -> None:
        """Forget that person, however often that takes, and perhaps once more."""
        await asyncio.sleep(after_seconds)
        person_id = ""
        again = self._chance.random() < AGAIN_SHARE
        for _ in range(TRIES_MAX):
            process = SimulatedProcess("operator's command")
            self._world.trace.note("operator", "forgets one of the persons")
            task = self._world.loop.spawn(process, self._command(process, person_id or name))
            if not self._world.weather.calm and self._chance.random() < KILLED_SHARE:
                killed = self._chance.random() * KILLED_MAX_SECONDS
                await asyncio.wait((task,), timeout=killed)
            else:
                await asyncio.wait((task,))
            calm = self._world.weather.calm
            outcome = task.result() if task.done() and not task.cancelled() else None
            self._world.loop.kill(process)
            if isinstance(outcome, Outcome):
                person_id = outcome.record.person.person_id
                if outcome.request is None:
                    self._world.trace.note("operator", "has forgotten one of the persons")
                    if not again:
                        return
                    again = False
            elif isinstance(outcome, InputError) and calm and not person_id:
                self._world.trace.note("operator", "is told that there is no such person")
                return
            await asyncio.sleep(RESUME_SECONDS)

    async def _command(
        self, process: SimulatedProcess, given: str
    ) -> Outcome | InputError | KeyStoreAway:
        """`saga forget`, once; or the error that it ends with: `InputError` where what is given
        leads to no person."""
        try:
            store = await in_thread(self._doors.store, process)
            system = SimulatedSystem(self._world, self.files, store)
            forgetter = self._kind(self._world.scene.saga, store, system)
            record = await forgetter.record_of(given)
            return await forgetter.forget(
                record,
                _REASON,
                wait_seconds=WAIT_SECONDS,
                report=lambda said: self._world.trace.note("operator", said),
            )
        except (InputError, KeyStoreAway) as error:
            return error


class SimulatedSystem:
    """See `saga.personal.forgetting.PersonalDataSystem`; for one command."""

    def __init__(self, world: World, files: OperatorsFiles, store: KeyStore) -> None:
        self._world = world
        self._files = files
        self._store = store

    # --- what is known ----------------------------------------------------------------------------

    async def record_of(self, given: str) -> PersonRecord:
        person = await in_thread(self._person, given)
        marker = marker_of(person.person_id).encode()
        subjects: set[str] = set()
        texts: set[str] = set()
        for subject, facts in self._archive().items():
            for body in facts:
                if marker in body:
                    subjects.add(subject)
                    texts |= texts_in(body, marker)
        if (request := self._files.requests.get(person.person_id)) is not None:
            texts |= {*request.texts}
        found = tuple(sorted(subjects))
        return PersonRecord(
            person=person,
            values=await in_thread(self._opened, sorted(texts)),
            references=tuple(sorted(texts)),
            subjects=found,
            open=await self.open_among(found),
            letters=(),
            dues=(),
            dues_not_listed=0,
        )

    def _person(self, given: str) -> Person:
        with suppress(UnknownPerson):
            return self._store.person(given)
        person_id = self._store.person_of(given)
        if person_id is None:
            raise InputError("no such person is known")
        return self._store.person(person_id)

    def _opened(self, texts: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in texts:
            with suppress(Forgotten, Unsealable):
                found[self._store.open(text)] = text
        return found

    async def open_among(self, subjects: Sequence[str]) -> tuple[str, ...]:
        archive, graph = self._archive(), self._world.choreography
        now = EPOCH + timedelta(seconds=self._world.loop.time())
        return tuple(
            one for one in subjects if is_open(graph, one, [*archive.get(one, {}).values()], now)
        )

    async def not_recorded(self, person_id: str) -> str:
        marker = marker_of(person_id).encode()
        deadline = self._world.loop.time() + CATCH_UP_SECONDS
        while why := self._not_recorded(marker):
            if self._world.loop.time() > deadline:
                return why
            await asyncio.sleep(POLL_SECONDS)
        return ""

    def _not_recorded(self, marker: bytes) -> str:
        if self._world.recovering or not self._world.broker.has(HISTORY_STREAM):
            return "the history is behind"
        waiting = (
            name
            for name, store in self._world.stores.items()
            if any(marker in body for body in store.waiting())
        )
        return next((f"{name} has not published all that it has decided" for name in waiting), "")

    def _archive(self) -> Mapping[str, Mapping[bytes, Fact]]:
        """What the archive knows by now, keyed by subject and body."""
        losses, read = self._files.read
        if losses != self._world.losses:
            read = 0
        messages = self._world.broker.messages_in(HISTORY_STREAM)
        for item in as_read(messages[read:], self._world.choreography):
            if isinstance(item, Fact):
                about = self._files.facts.setdefault(item.attributes.subject, {})
                about.setdefault(item.body, item)
        self._files.read = self._world.losses, len(messages)
        return self._files.facts

    # --- what is done -----------------------------------------------------------------------------

    async def take_up(self, request: Request) -> Request:
        earlier = self._files.requests.get(request.person_id)
        if earlier is not None:
            request = request.as_asked_before(earlier)
        await self.keep(request)
        return request

    async def keep(self, request: Request) -> None:
        self._files.requests[request.person_id] = request

    async def drop(self, person_id: str) -> None:
        self._files.requests.pop(person_id, None)

    async def end(self, early: EarlyEnd, subject: str) -> bool:
        if early.command is None:
            raise NotEnded("its declaration has no command to end it by")
        command = early.command(subject)
        self._files.ended[subject] = type(command)
        given = Given(early.participant, command, f"early end of {subject}")
        outcome = await self._world.clients.ask_once(given)
        if not isinstance(outcome, Done | Duplicate):
            raise NotEnded(f"{early.participant} did not answer")
        return isinstance(outcome, Done) and bool(outcome.events)

    async def take_out(self, outcome: Outcome) -> None:
        """Nothing: no outside of a run keeps what it is told in clear, which the verdict checks."""

    async def take_out_of_backup(self, outcome: Outcome, folder: Path) -> None:
        """Nothing: a run has no backups."""

    async def key_left(self, request: Request, traces: tuple[bytes, ...]) -> Sequence[str]:
        return ()  # Its bytes are in no file.

    async def note(self, request: Request, outcome: Outcome) -> None:
        """Nothing: no audit record is read here."""
