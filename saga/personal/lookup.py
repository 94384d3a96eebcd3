"""What a system has about a person the key store knows: in its archive, its dead letters, its
outboxes."""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.queries import IS_OPEN
from saga.archive.store import Fact, events, strays
from saga.archive.subjects import subjects as subjects_table
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.dlq.desk import open_desk
from saga.dlq.letters import DeadLetter
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.dlq.store import Store
from saga.dues import Item, listing
from saga.errors import NotFound
from saga.history.archive import Archive
from saga.history.debts import coming_of, debts_of
from saga.history.pages import about
from saga.history.story import tell
from saga.personal.keystore import KeyStore, Person, UnknownPerson
from saga.personal.requests import waiting_for
from saga.personal.seal import PREFIX, Forgotten, Unsealable, person_id_in, sealed
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.statements import any_of, on_postgresql
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.tasks import in_thread
from saga.wording import counted

AT_ONCE: Final = 500
POLL_SECONDS: Final = 0.2
CATCH_UP_SECONDS: Final = 30.0
"""How long is waited for the archive to have what was published."""
_PERSON_CHARACTERS: Final = 22


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """A person the key store knows, and all that a system has about them."""

    person: Person
    values: dict[str, str]
    """Keyed by what they are called in clear: its sealed form. Empty, once the key is gone."""
    references: tuple[str, ...]
    """All sealed texts of theirs."""
    subjects: tuple[str, ...]
    """What was done for them."""
    open: tuple[str, ...]
    """Those of these to which a participant may still owe an event."""
    letters: tuple[DeadLetter, ...]
    """Dead letters about them that nothing was done with."""
    dues: tuple[Item, ...]
    """What is due about these subjects, something to be sent again for instance."""
    dues_not_listed: int
    """So many more are due, about whatever subject."""
    not_looked_at: tuple[str, ...] = ()
    """Outboxes that may hold something of theirs and cannot be read from here, a line each."""
    spelt_otherwise: tuple[str, ...] = ()
    """The ids of persons of the same name in another spelling, who are others to the key store."""


class PersonLookup:
    """Looks for what one system, which runs, has about people. Changes nothing."""

    def __init__(
        self, deployment: Deployment, folder: Path, choreography: Choreography, store: KeyStore
    ) -> None:
        self._deployment = deployment
        self._folder = folder
        self._choreography = choreography
        self._store = store

    async def record_of(self, given: str) -> PersonRecord:
        """Find a person by their clear name, by a sealed text, or by their id. Raises
        `InputError` for an unknown person, and what databases raise."""
        person = await in_thread(self._person, given)
        marker = marker_of(person.person_id)
        subjects, texts = await in_thread(self._mentioned, marker)
        waiting = await in_thread(waiting_for, self._folder, person.person_id)
        if waiting is not None:
            texts |= {*waiting.texts}
        async with open_desk(self._deployment, self._choreography) as desk:
            letters = await in_thread(_letters_about, desk.store, {*subjects}, marker.encode())
        dues = await listing(self._deployment, self._choreography)
        values = await in_thread(self._opened, texts)
        in_no_event = not sealed(given) and given != person.person_id and given not in values
        if in_no_event and (text := await in_thread(self._store.sealed_of, given)):
            values[given] = text
        return PersonRecord(
            person=person,
            values=values,
            references=tuple(sorted(texts | {*values.values()})),
            subjects=subjects,
            open=await self.open_among(subjects),
            letters=letters,
            dues=tuple(item for item in dues.items if item.subject in {*subjects}),
            dues_not_listed=dues.more,
            not_looked_at=self._outboxes_not_read(),
            spelt_otherwise=await in_thread(self._spelt_otherwise, values, person.person_id),
        )

    def _person(self, given: str) -> Person:
        if len(given) == _PERSON_CHARACTERS:
            try:
                return self._store.person(given)
            except UnknownPerson:
                pass  # It may be a name as well.
        person_id = person_id_in(given) if sealed(given) else self._store.person_of(given)
        if person_id is None:
            others = self._spelt_otherwise([given])
            spelt = f"; in another spelling, person {', '.join(others)} is known" if others else ""
            raise NotFound(
                "the key store knows no person of that name: they were never sealed, or are "
                "forgotten already, or a request about them waits (`saga forget --status`)"
                f"{spelt}; `saga forget --verify` looks for what is in clear"
            )
        return self._store.person(person_id)

    def _spelt_otherwise(self, values: Iterable[str], but: str = "") -> tuple[str, ...]:
        """The ids of persons whose name differs from one of these by capitals, by how its accents
        are encoded, or by blanks."""
        spelt = {spelling for value in values for spelling in spellings(value)}
        ids = {self._store.person_of(spelling) for spelling in sorted(spelt)}
        return tuple(sorted(id for id in ids if id is not None and id != but))

    def _mentioned(self, marker: str) -> tuple[tuple[str, ...], set[str]]:
        """The subjects of events that name a person, and the sealed texts in these."""
        url = Archive(self._deployment).url
        rows = read_database(url, lambda connection: _naming(connection, marker))
        texts: set[str] = set()
        for _, body in rows:
            texts |= sealed_texts_in(body, marker.encode())
        return tuple(sorted({subject for subject, _ in rows if subject})), texts

    def _opened(self, texts: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in texts:
            try:
                found[self._store.open(text)] = text
            except (Forgotten, Unsealable):
                continue
        return found

    async def open_among(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """Those of these subjects that have not ended, or about which something is owed or due."""
        return await in_thread(self._open_among, subjects)

    def _open_among(self, subjects: Sequence[str]) -> tuple[str, ...]:
        url = Archive(self._deployment).url
        maybe = read_database(url, lambda connection: _maybe_open(connection, subjects))
        found: list[str] = []
        now = utc_now()
        for start in range(0, len(maybe), AT_ONCE):
            some = maybe[start : start + AT_ONCE]
            told = about(url, some)
            found += (one for one in some if is_open(self._choreography, one, told[one], now))
        return tuple(found)

    async def not_recorded(self, person_id: str) -> str:
        """Why what was published about a person by now may not all be in the archive, once it was
        waited for; empty if it is. Raises what databases and the broker raise."""
        archive = Archive(self._deployment)
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while behind := await in_thread(self._unpublished, marker_of(person_id)):
            if time.monotonic() > deadline:
                return (
                    f"{behind} has not published all that it has decided: start it where it does "
                    f"not run; `saga status` tells what is in its way"
                )
            await asyncio.sleep(POLL_SECONDS)
        if await archive.caught_up(max(0.0, deadline - time.monotonic())):
            return ""
        return (
            f"the history is {counted(await archive.behind(), 'message')} behind the stream; "
            f"start its "
            f"service, and wait"
        )

    def _outboxes_not_read(self) -> tuple[str, ...]:
        """Why `_unpublished` looks into some outboxes only, a line for each of the others."""
        graph, urls = self._choreography, self._deployment.database_urls
        foreign = [one.name for one in graph.foreign]
        nowhere = [one.name for one in graph.in_python if one.name not in urls]
        return (
            *(
                f"the outbox of {name} was not looked at, nor anything else that it keeps: it is "
                f"in another language; have those who run it say that nothing of theirs is there"
                for name in foreign
            ),
            *(
                f"the outbox of {name} was not looked at: the deployment does not say where its "
                f"database is (database_urls)"
                for name in nowhere
            ),
        )

    def _unpublished(self, marker: str) -> str:
        """A participant in whose outbox an event waits that names a person; empty for none. See
        `_outboxes_not_read`."""
        outbox = Tables(sa.MetaData()).outbox  # Each has one of this shape.
        query = sa.select(sa.func.count()).select_from(outbox)
        for participant in self._choreography.in_python:
            url = self._deployment.database_urls.get(participant.name)
            if url is not None and read_database(
                url,
                lambda connection: connection.scalar(
                    query.where(_holds(connection, outbox.c.body, marker))
                ),
            ):
                return participant.name
        return ""


def is_open(graph: Choreography, subject: str, facts: Sequence[Fact], now: datetime) -> bool:
    """Whether a subject has not ended, or something is owed or due about it. By the participants'
    own reactions, which know better than the types of its events."""
    story = tell(graph, subject, facts)
    if story.summary.ended_at is None:
        return True
    return bool(debts_of(graph, story, now) or coming_of(graph, story, now))


def spellings(name: str) -> frozenset[str]:
    """A name in the ways that people and programs write it: in capitals or not, with its accents
    composed or not, with one blank between words."""
    plain = " ".join(name.split())
    cases = (name, plain, plain.lower(), plain.upper(), plain.title(), plain.casefold())
    return frozenset(unicodedata.normalize(form, each) for each in cases for form in ("NFC", "NFD"))


def marker_of(person_id: str) -> str:
    """How every sealed text of a person begins."""
    return f"{PREFIX}{person_id}."


def _letters_about(
    store: Store, subjects: Collection[str], marker: bytes
) -> tuple[DeadLetter, ...]:
    """The dead letters about these subjects, or whose body has the marker in it."""
    found: list[DeadLetter] = []
    after: tuple[datetime, int] | None = None
    while page := store.page(Selection(), HERE, AT_ONCE, after, contents=True):
        # Their bodies are of no use any more, and may be long.
        found += (
            replace(letter, body=b"", raw=b"")
            for letter in page
            if letter.subject in subjects or marker in letter.body
        )
        after = page[-1].first_failed_at, page[-1].number
    return tuple(found)


def _naming(connection: Connection, marker: str) -> list[tuple[str | None, bytes]]:
    """Subject and body of every event and stray that names a person."""
    found: list[tuple[str | None, bytes]] = []
    for table, subject in ((events, events.c.subject), (strays, sa.null())):
        body = table.c.body
        query = sa.select(subject, body).where(_holds(connection, body, marker))
        found += [(row[0], bytes(row[1])) for row in connection.execute(query)]
    return found


def _holds(connection: Connection, body: sa.Column[bytes], marker: str) -> sa.ColumnElement[bool]:
    """Whether a body has the marker in it."""
    if on_postgresql(connection):
        return sa.func.pg_catalog.position(body, marker.encode()) > 0
    return sa.func.instr(body, marker.encode()) > 0


def _maybe_open(connection: Connection, subjects: Sequence[str]) -> list[str]:
    """Those about which a participant may owe something, by the types of their events."""
    found: list[str] = []
    column = subjects_table.c.subject
    for start in range(0, len(subjects), AT_ONCE):
        some = subjects[start : start + AT_ONCE]
        query = sa.select(column).where(IS_OPEN, any_of(connection, column, some))
        found += connection.scalars(query)
    return sorted(found)


def sealed_texts_in(body: bytes, marker: bytes) -> set[str]:
    """The sealed texts of a person in a document."""
    texts: set[str] = set()
    start = body.find(marker)
    while start >= 0:
        end = start + len(marker)
        while end < len(body) and (body[end : end + 1].isalnum() or body[end] in b"-_"):
            end += 1
        texts.add(body[start:end].decode("ascii"))
        start = body.find(marker, end)
    return {text for text in texts if sealed(text)}
