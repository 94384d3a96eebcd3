"""The doors of a run: whatever is personal is sealed where it comes in, and opened by who is to
tell it outside. The doors are the services' own; here is what they open on, and who looks on.

A part of all runs has them, of a saga that has personal data. In such a run every personal value
has a tag in it, which is looked for wherever anything is kept or sent.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from pydantic import ValidationError

from saga.choreography import Choreography
from saga.declaration import SagaError
from saga.envelope import Attributes, Undecodable
from saga.load.plan import Given, Plan
from saga.message import Command, Intent
from saga.personal.forgetting import MARGIN_SECONDS
from saga.personal.keystore import KeyStore
from saga.personal.marks import personal_fields, personal_values, with_personal
from saga.personal.persons import Persons
from saga.personal.seal import Forgotten, Unsealable, person_id_in, sealed
from saga.runtime.messaging.dead_letters import REASON, Reason
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE
from saga.runtime.settings import PersonalSettings, PersonalShown, Sealing
from saga.simulation.broker import EPOCH, PublishedMessage
from saga.simulation.keys import RemoteKeys, SimulatedKeys
from saga.simulation.loop import SimulatedLoop, SimulatedProcess, current_process
from saga.simulation.trace import SimulationTrace
from saga.simulation.weather import FREEZE_MAX_SECONDS, FaultSchedule

DOORS_SHARE: Final = 1 / 3
"""Runs that have doors, of a saga with personal data."""
OPEN_FIRST_SHARE: Final = 0.3
"""Runs, of these, in which sealing is switched on when some sagas have begun."""
ROLLED_MAX_SECONDS: Final = 10.0
"""How long after that a replica may go on as it was."""
CLEAR_SHARE: Final = 0.5
"""Commands over the broker that a publisher sends in clear."""
FORGED_CHARACTERS: Final = 10
"""At the end of a sealed text, which a forger changes."""
KNOWN_SECONDS: Final = (0.5, 5.0)
"""How long a process may know a key; in production longer, which takes more steps to wait for."""
SETTLED_SECONDS: Final = 90.0
"""How long after the storm something may still fail for what an outside said in it."""
TAG_CHARACTERS: Final = 6
_SEALED: Final = re.compile(rb"~1\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{23,706}")
_NOTHING_TAKEN: Final = [[None]]
_ALPHABET: Final = "bcdfghjkmnpqrstvwxz"

M = TypeVar("M", bound=Command)
Trouble = Callable[[str, str], None]
"""Called with a rule and what broke it."""


def has_personal_data(choreography: Choreography) -> bool:
    """Whether any message of a saga has a personal field."""
    return any(
        personal_fields(kind)
        for participant in choreography.participants
        for kind in (*participant.by_message, *participant.intake)
    ) or any(map(personal_fields, choreography.events))


class Doors:
    """What is sealed in one run, and who may open it."""

    def __init__(
        self,
        keys: SimulatedKeys,
        loop: SimulatedLoop,
        weather: FaultSchedule,
        trace: SimulationTrace,
        chance: random.Random,
        kinds: tuple[type[Persons], type[KeyStore]],
        on_crash: Callable[[SimulatedProcess], None],
        trouble: Trouble,
        ended: Callable[[], Collection[str]],
    ) -> None:
        """`kinds` are the classes that processes ask, and that these ask the store by; `on_crash`
        kills a process before it does anything more; `ended` tells the subjects of which an event
        is committed that ends them."""
        self.keys = keys
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self.chance = chance
        """Of all that is about the doors."""
        self._persons_kind, self._store_kind = kinds
        self._on_crash = on_crash
        self._trouble = trouble
        self.sealing = chance.random() >= OPEN_FIRST_SHARE
        """Whether a process that starts now seals."""
        self.cache_seconds = chance.choice(KNOWN_SECONDS)
        self._tag = "".join(chance.choices(_ALPHABET, k=TAG_CHARACTERS))
        self._clear = self._tag.encode()
        self._names: dict[str, str] = {}
        """Keyed by a value with the tag: as the plan has it."""
        self._persons: dict[SimulatedProcess, Persons] = {}
        self.in_clear: set[str] = set()
        """Subjects whose beginning a replica has taken before it sealed: they end in clear."""
        self.forged: list[str] = []
        """Texts that only look sealed."""
        self._texts: defaultdict[str, set[str]] = defaultdict(set)
        """Keyed by what they say: the sealed texts that were sent."""
        self._seen: set[bytes] = set()
        """Sealed texts that were sent."""
        self._began: defaultdict[str, dict[str, float]] = defaultdict(dict)
        """Keyed by person id and by subject: when the first event about it was sent."""
        self.turned_away: set[str] = set()
        """Subjects that nothing began about, since a command names by a sealed text who was
        forgotten before it was done: it is dead, and begins nothing."""
        self._forgotten: dict[str, float] = {}
        """Keyed by person id: when their key was destroyed."""
        self._ended = ended
        keys.on_destroyed = self._destroyed

    def close(self) -> None:
        """Let go of the key store, which outlives the run."""
        self.keys.on_destroyed = lambda _: None

    # --- what the plan says -----------------------------------------------------------------------

    def marked(self, plan: Plan) -> Plan:
        """The plan, with the tag in each personal value."""
        decisions = {
            name: lambda intent, decide=decide: decide(self._as_planned(intent))
            for name, decide in plan.decisions.items()
        }
        return replace(
            plan,
            given=[self._marked(given) for given in plan.given],
            before=[self._marked(given) for given in plan.before],
            decisions=decisions,
        )

    def _marked(self, given: Given) -> Given:
        if not personal_fields(type(given.command)):
            return given
        marked = with_personal(given.command, lambda value: f"{value}-{self._tag}")
        try:
            type(marked).model_validate_json(marked.model_dump_json())
        except ValidationError as error:
            raise SagaError(
                f"{type(marked).__name__} takes no value with {TAG_CHARACTERS + 1} characters more "
                f"in a personal field, so it cannot be looked for: let the load draw shorter ones, "
                f"of which letters and a hyphen may follow; {error}"
            ) from error
        before = personal_values(given.command)
        self._names |= dict(zip(personal_values(marked), before, strict=True))
        return replace(given, command=marked)

    def _as_planned(self, intent: Intent) -> Intent:
        """The question, as if its personal values were those of the plan."""
        return with_personal(intent, lambda value: self._names.get(self.said(value), value))

    def said(self, value: str) -> str:
        """What a value says, sealed or not; nothing of one that only looks sealed."""
        try:
            return self.keys.meaning(value) if sealed(value) else value
        except (KeyError, Unsealable):
            return ""

    @property
    def names(self) -> Collection[str]:
        """What persons are called in this run."""
        return self._names.keys()

    # --- the key store ----------------------------------------------------------------------------

    def open(self, process: SimulatedProcess, *, sealing: bool | None = None) -> Persons:
        """What a process asks the key store by, which seals as one does that starts now."""
        persons = self._persons_kind(
            _SEALING if (self.sealing if sealing is None else sealing) else _IN_CLEAR,
            lambda: self.store(process),
        )
        self._persons[process] = persons
        return persons

    def store(self, process: SimulatedProcess) -> KeyStore:
        """Open the key store for a process. Blocks, as in a thread of `SimulatedLoop`."""
        database = RemoteKeys(
            self.keys,
            process.name,
            self._loop,
            self._weather,
            self._trace,
            lambda: self._on_crash(process),
        )
        return self._store_kind(
            database,
            self.keys.master,
            cache_seconds=self.cache_seconds,
            now=lambda: EPOCH + timedelta(seconds=self._loop.time()),
            monotonic=self._loop.time,
            random_bytes=self.chance.randbytes,
        )

    @property
    def here(self) -> Persons:
        """What the process whose code is running asks the key store by."""
        return self._persons[current_process()]

    # --- what others send -------------------------------------------------------------------------

    def in_clear_by_chance(self) -> bool:
        """Whether a publisher is one that does not seal."""
        return not self.sealing or self.chance.random() < CLEAR_SHARE

    def forge(self, command: M) -> M:
        """The command with texts that only look sealed."""
        seen = sorted(text for texts in self._texts.values() for text in texts)

        def forged(_: str) -> str:
            if seen and self.chance.random() < 0.5:
                changed = "".join(self.chance.choices(_ALPHABET, k=FORGED_CHARACTERS))
                text = self.chance.choice(seen)[:-FORGED_CHARACTERS] + changed
            else:
                drawn = "".join(self.chance.choices(_ALPHABET, k=62))
                text = f"~1.{drawn[:22]}.{drawn[22:]}"
            self.forged.append(text)
            return text

        return with_personal(command, forged)

    def unreadable(self, body: bytes) -> bytes:
        """The body of a command, with what no field takes in the place of one that names no person;
        of one that has none, in the place of its id."""
        document = json.loads(body)
        data = document["data"]
        others = sorted(name for name, value in data.items() if self._tag not in json.dumps(value))
        if others:
            data[self.chance.choice(others)] = _NOTHING_TAKEN
        else:
            document["id"] = _NOTHING_TAKEN
        return json.dumps(document).encode()

    # --- what is looked at ------------------------------------------------------------------------

    def begins(self, persons: Persons | None, subject: str) -> None:
        """A replica that asks the key store by `persons` takes a command about a subject."""
        if persons is not None and not persons.sealing:
            self.in_clear.add(subject)

    def sent(self, name: str, message: PublishedMessage) -> None:
        """A service has sent a message."""
        for part in (message.raw, message.body):
            if self._clear in part and not self._is_exempt(message.body):
                where = message.exchange or message.routing_key
                type_ = message.properties.type
                self._trouble("in_clear", f"{type_} of {name} to {where} names a person in clear")
        for text in _SEALED.findall(message.body):
            if text not in self._seen:
                self._seen.add(text)
                self._see(name, text.decode("ascii"))
            if message.exchange == EVENTS_EXCHANGE:  # A copy that is dead has begun nothing.
                about = Attributes.of(message.body).subject
                person_id = person_id_in(text.decode("ascii"))
                self._began[person_id].setdefault(about, self._loop.time())
            elif message.exchange == DEAD_EXCHANGE:
                self._see_turned_away(message, person_id_in(text.decode("ascii")))
        if message.exchange == DEAD_EXCHANGE:
            self._see_dead(name, message)

    def same(self, body: bytes) -> bytes:
        """What a body that has something in clear, and the copy of it that is sealed, have in
        common, and no other has."""
        if self._clear in body or _SEALED.search(body):
            try:
                return "\t".join(Attributes.of(body).key).encode()
            except Undecodable:
                pass
        return body

    def _is_exempt(self, body: bytes) -> bool:
        """Whether a message is about a saga that began in clear."""
        if not self.in_clear:
            return False
        try:
            return Attributes.of(body).subject in self.in_clear
        except Undecodable:
            return False

    def _see_turned_away(self, message: PublishedMessage, person_id: str) -> None:
        subject = Attributes.of(message.body).subject
        if person_id in self._forgotten and subject not in self._began[person_id]:
            self.turned_away.add(subject)

    def _see_dead(self, name: str, message: PublishedMessage) -> None:
        headers = message.properties.headers or {}
        calm_for = self._loop.time() - self._weather.storm_seconds
        if calm_for < SETTLED_SECONDS or headers.get(REASON) != Reason.FAILED:
            return
        subject = Attributes.of(message.body).subject
        for person_id in self._forgotten:
            if subject in self._began[person_id]:
                self._trouble(
                    "forgotten_unsettled",
                    f"{message.properties.type} is dead in {name}, and about person {person_id}, "
                    f"who was forgotten",
                )

    def _see(self, name: str, text: str) -> None:
        if text in self.forged:
            return
        person_id = person_id_in(text)
        if not self.keys.knows(person_id) or not (said := self.said(text)):
            self._trouble(
                "cannot_be_opened", f"{name} has sent a text of person {person_id}, who has no key"
            )
            return
        self._texts[said].add(text)

    def _destroyed(self, person_id: str) -> None:
        """A person's key was destroyed just now. All that had begun as long before as processes
        know a key was known to who has it destroyed."""
        now = self._forgotten[person_id] = self._loop.time()
        ended = self._ended()
        known_for = self.cache_seconds + MARGIN_SECONDS
        for subject, began in self._began[person_id].items():
            if subject not in ended and began < now - known_for:
                self._trouble(
                    "forgotten_while_open",
                    f"the key of person {person_id} was destroyed while {subject} was open",
                )

    async def look_for_forgotten(self, name: str, persons: Persons) -> None:
        """See that a process opens nothing of who was forgotten."""
        texts = sorted(text for texts in self._texts.values() for text in texts)
        for text in texts:
            person_id = person_id_in(text)
            if self._forgotten.get(person_id, math.inf) + self.cache_seconds < self._loop.time():
                with contextlib.suppress(Forgotten):
                    await persons.open_now(text)
                    self._trouble("opened_after", f"{name} opens a text of {person_id}, forgotten")

    @property
    def anyone_forgotten(self) -> bool:
        return bool(self._forgotten)

    def told(self, outside: str, intent: Intent, told: str, asked_at: float) -> None:
        """An outside was asked, and has read this."""
        for value in personal_values(intent):
            name = self.said(value)
            person_id = person_id_in(value) if sealed(value) else ""
            forgotten_at = self._forgotten.get(person_id, math.inf)
            if name in unquote(told):
                known_for = self.cache_seconds + FREEZE_MAX_SECONDS
                if asked_at > forgotten_at + known_for:
                    self._trouble(
                        "opened_after",
                        f"{outside} was told of person {person_id} {asked_at - forgotten_at:.0f} s "
                        f"after they were forgotten",
                    )
            elif asked_at < forgotten_at:
                self._trouble(
                    "named_otherwise",
                    f"{outside} was asked {type(intent).__name__} about {intent.subject}, and told "
                    f"{told!r}, which is not {name!r}",
                )

    def at_rest(self, kept: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, str]]:
        """What is wrong with what is kept: places, with a piece of what is there. Yields rules, and
        what broke them."""
        forged = [text.encode() for text in self.forged]
        exempt = [subject.encode() for subject in self.in_clear]
        for place, piece in kept:
            if self._clear in piece and not any(subject in piece for subject in exempt):
                yield "in_clear", f"{place} names a person in clear"
            if "dead letters" not in place and any(text in piece for text in forged):
                yield "forged_taken", f"{place} has a text that only looks sealed"
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        findable = {*self.keys.found_by_name()}
        for said, texts in self._texts.items():
            by_name[said] = [person for person in {*map(person_id_in, texts)} if person in findable]
            if len(by_name[said]) > 1 or len({*map(person_id_in, texts)}) < len(texts):
                yield "sealed_otherwise", f"one value is sealed as {' and as '.join(sorted(texts))}"


def settings_of(sealing: Sealing) -> PersonalSettings:
    """Settings that no environment changes."""
    return PersonalSettings.model_construct(personal=sealing, personal_shown=PersonalShown.MASKED)


_SEALING: Final = settings_of(Sealing.SEALED)
_IN_CLEAR: Final = settings_of(Sealing.OFF)


def pieces_of(rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    """What database rows hold, in pieces about one subject each."""
    for row in rows:
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in row if v is not None]
        yield from b"\t".join(texts).split(b"\n")
