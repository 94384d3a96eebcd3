"""Forgetting a person: what is open is ended, their key destroyed, and what outsides have in clear
taken out.

What was sealed under the key stays where it is, in histories, backups and dead letters, and cannot
be read any more: books add up and histories fold as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import OBSERVER
from saga.archive.queries import IS_OPEN
from saga.archive.store import events, strays
from saga.archive.subjects import subjects as subjects_table
from saga.auth.keys import KeysError, changing
from saga.auth.settings import AuthSettings
from saga.backup.manifest import MANIFEST, Manifest, digest_of
from saga.declaration import Saga
from saga.deployment import Deployment
from saga.dlq.audit import who
from saga.dlq.desk import open_desk
from saga.dlq.letters import DeadLetter
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.dlq.store import Store
from saga.dues import Item, listing
from saga.errors import Explained, InputError
from saga.http import post_to_one
from saga.outside import Clear, OutsideError
from saga.personal import requests
from saga.personal.keystore import REASON_MAX_CHARACTERS, KeyStore, Person, UnknownPerson
from saga.personal.needle import CHUNK_BYTES
from saga.personal.opening import open_store, store_url
from saga.personal.requests import Request
from saga.personal.seal import PREFIX, Forgotten, Unsealable, person_id_in, sealed
from saga.runtime.disk import explained
from saga.runtime.kernel.database import is_postgresql
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.sqlite import scrub, sqlite_file
from saga.runtime.kernel.statements import any_of, on_postgresql
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import PersonalSettings, Sealing, load
from saga.runtime.tasks import in_thread
from saga.runtime.urls import sqlite_url

ASK_SECONDS: Final = 30.0
"""How long a service may take to end a saga."""
POLL_SECONDS: Final = 0.2
AT_ONCE: Final = 500
MARGIN_SECONDS: Final = 0.5
"""What is waited longer than keys are known for: what was opened last is written then."""
_PERSON_CHARACTERS: Final = 22
_API_KEYS: Final = "API keys"

Report = Callable[[str], None]


class ForgettingError(Explained):
    """A person cannot be forgotten as asked. Says what is in the way."""


@dataclass(frozen=True, slots=True)
class Whom:
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


@dataclass
class Outcome:
    """What was done, and what is left to people."""

    whom: Whom
    ended: list[str] = field(default_factory=list)
    """The subjects that were ended before their time."""
    refused: list[str] = field(default_factory=list)
    """Why some were not, a line each."""
    request: Request | None = None
    """It waits, for these."""
    forgotten_at: datetime | None = None
    taken_out: dict[str, int] = field(default_factory=dict)
    """Keyed by outside: in how many places it had them in clear."""
    left: list[str] = field(default_factory=list)
    """What is for people to do, a line each."""
    again: list[str] = field(default_factory=list)
    """What failed and may go well when it is run again, a line each; the request waits."""

    def took(self, name: str, count: int) -> None:
        """So many more were taken out of a place."""
        self.taken_out[name] = self.taken_out.get(name, 0) + count


class Forgetter:
    """Forgets people of one system, which runs."""

    def __init__(self, deployment: Deployment, folder: Path, saga: Saga, store: KeyStore) -> None:
        self._deployment = deployment
        self._folder = folder
        self._saga = saga
        self._store = store

    # --- looking -----------------------------------------------------------------------------

    async def whom(self, given: str) -> Whom:
        """Find a person by their clear name, by a sealed text, or by their id. Raises
        `InputError` for an unknown person, and what databases raise."""
        person = await in_thread(self._person, given)
        marker = f"{PREFIX}{person.person_id}."
        subjects, texts = await in_thread(self._mentioned, marker)
        async with open_desk(self._deployment, self._saga.choreography) as desk:
            letters = await in_thread(_letters_about, desk.store, {*subjects}, marker.encode())
        dues = await listing(self._deployment, self._saga.choreography)
        values = await in_thread(self._opened, texts)
        if not sealed(given) and given != person.person_id and given not in values:
            values[given] = await in_thread(self._store.seal, given)  # Of no event yet.
        return Whom(
            person=person,
            values=values,
            references=tuple(sorted(texts | {*values.values()})),
            subjects=subjects,
            open=await self._open_among(subjects),
            letters=letters,
            dues=tuple(item for item in dues.items if item.subject in {*subjects}),
            dues_not_listed=dues.more,
        )

    def _person(self, given: str) -> Person:
        if len(given) == _PERSON_CHARACTERS:
            try:
                return self._store.person(given)
            except UnknownPerson:
                pass  # It may be a name as well.
        person_id = person_id_in(given) if sealed(given) else self._store.person_of(given)
        if person_id is None:
            raise InputError(
                "the key store knows no person of that name: they were never sealed, or are "
                "forgotten already; `saga forget --verify` looks for what is in clear"
            )
        return self._store.person(person_id)

    def _mentioned(self, marker: str) -> tuple[tuple[str, ...], set[str]]:
        """The subjects of events that name a person, and the sealed texts in these."""
        url = self._deployment.database_urls[OBSERVER.name]
        rows = read_database(url, lambda connection: _naming(connection, marker))
        texts: set[str] = set()
        for _, body in rows:
            texts |= _sealed_texts(body, marker.encode())
        return tuple(sorted({subject for subject, _ in rows if subject})), texts

    def _opened(self, texts: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in texts:
            try:
                found[self._store.open(text)] = text
            except (Forgotten, Unsealable):
                continue
        return found

    async def _open_among(self, subjects: Sequence[str]) -> tuple[str, ...]:
        url = self._deployment.database_urls[OBSERVER.name]
        return await in_thread(read_database, url, lambda connection: _open(connection, subjects))

    # --- doing -------------------------------------------------------------------------------

    async def forget(
        self,
        whom: Whom,
        reason: str,
        *,
        wait_seconds: float,
        backups: Sequence[Path] = (),
        report: Report,
    ) -> Outcome:
        """End what is open, and forget them; or keep the request, if something is still open after
        `wait_seconds`. Outsides take them out of the copies of their books in `backups`, too, as
        far as these are folders with a backup. Done again, it goes on where it stopped.

        Raises what the key store, the outsides and databases raise."""
        outcome = Outcome(whom)
        asked = Request(
            person_id=whom.person.person_id,
            reason=reason,
            who=who(),
            asked_at=utc_now(),
            waits_for=whom.open,
        )
        # From now on it is known, even if this command is ended.
        requests.keep(self._folder, asked)
        still_open = await self._end(whom, outcome, wait_seconds, report)
        if still_open:
            outcome.request = asked.model_copy(update={"waits_for": still_open})
            requests.keep(self._folder, outcome.request)
            return outcome
        # While what they are called is known: it cannot be told once the key is gone.
        await in_thread(self._take_out, whom, outcome)
        if outcome.again:
            outcome.request = asked.model_copy(update={"waits_for": ()})
            requests.keep(self._folder, outcome.request)
            return outcome
        outcome.left.clear()  # It is said once more below.
        await self._destroy(whom, reason, outcome, report)
        await in_thread(self._take_out, whom, outcome)  # What was written meanwhile.
        for folder in backups:
            if (folder / MANIFEST).is_file():
                await in_thread(self._take_out_of_backup, whom, outcome, folder)
        if not whom.values:
            outcome.left.append(
                "their key was gone already, so what they are called in clear is not known here: "
                "`saga forget --verify` looks for it, if you give it"
            )
        await in_thread(self._note, whom, reason, outcome)
        if outcome.again:
            outcome.request = asked.model_copy(update={"waits_for": ()})
            requests.keep(self._folder, outcome.request)
        else:
            requests.drop(self._folder, whom.person.person_id)
        return outcome

    async def _end(
        self, whom: Whom, outcome: Outcome, wait_seconds: float, report: Report
    ) -> tuple[str, ...]:
        """End what is open; returns what still is."""
        if not whom.open:
            return ()
        if self._saga.early_end is None:
            outcome.refused.append(
                f"{self._saga.name} does not say how a saga is ended before its time "
                f"(`Saga.early_end`): each ends by itself"
            )
        else:
            for subject in whom.open:
                await self._end_one(subject, outcome)
        report(f"waiting for {len(whom.open)} open sagas to end, {wait_seconds:g} s at most")
        deadline = time.monotonic() + wait_seconds
        while still_open := await self._open_among(whom.open):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return still_open

    async def _end_one(self, subject: str, outcome: Outcome) -> None:
        early = self._saga.early_end
        if early is None:
            return
        urls = self._deployment.http_urls.get(early.participant, ())
        try:
            answer = await post_to_one(urls, early.path_for(subject), None, ASK_SECONDS)
        except httpx.HTTPError as error:
            outcome.refused.append(
                f"{subject}: {early.participant} did not answer: "
                f"{str(error) or type(error).__name__}"
            )
            return
        if answer is None:
            outcome.refused.append(f"{subject}: no service {early.participant} runs; start it")
        elif answer.is_success:
            outcome.ended.append(subject)
        elif answer.status_code != httpx.codes.CONFLICT:  # Then it has ended by itself.
            outcome.refused.append(f"{subject}: {early.participant} answered {answer.status_code}")

    async def _destroy(self, whom: Whom, reason: str, outcome: Outcome, report: Report) -> None:
        """Destroy the key, in the store and in what processes have read of it."""
        person_id = whom.person.person_id
        traces = await in_thread(self._store.traces, person_id)
        forgotten = await in_thread(self._store.forget, person_id, reason)
        outcome.forgotten_at = forgotten.forgotten_at
        wait_seconds = self._store.cache_seconds + MARGIN_SECONDS
        report(f"the key is destroyed; processes may know it for {wait_seconds:g} s more, waiting")
        await asyncio.sleep(wait_seconds)
        url = store_url(self._deployment.personal_settings(self._folder))
        if is_postgresql(url):
            outcome.left.append(
                "the key store is on a server, whose log and dead rows may hold the wrapped key "
                "for a while: rotate the master key (`saga persons rotate-key`) and destroy the "
                "old one"
            )
        elif await in_thread(_left_of, sqlite_file(url), traces):
            outcome.left.append(
                f"{sqlite_file(url)} still holds the wrapped key in a free page or its log: end "
                f"what reads it, then run this again"
            )

    def _take_out(self, whom: Whom, outcome: Outcome) -> None:
        """Revoke their API keys, which name them, and have outsides take out what they have in
        clear."""
        file = load(AuthSettings, data_dir=self._folder).keys_file
        if not whom.values and file.is_file():
            outcome.left.append(
                "API keys were not looked for: what they are called in clear is not known; "
                "`saga keys list` has the names"
            )
        elif file.is_file():
            try:
                with changing(file) as keys:
                    others = [k for k in keys if not {k.owner, k.name} & whom.values.keys()]
                    outcome.took(_API_KEYS, len(keys) - len(others))
                    keys[:] = others
            except KeysError as error:
                outcome.again.append(f"their API keys: {error}")
        for outside in self._saga.outside:
            if outside.forget is None:
                outcome.left.append(
                    f"{outside.name} cannot be told by us to forget a person: ask those who run it"
                )
                continue
            clear = Clear(
                values=whom.values,
                references=whom.references,
                subjects=whom.subjects,
                folder=self._folder,
                books_url=self._deployment.outside_urls.get(outside.name),
            )
            try:
                outcome.took(outside.name, outside.forget(clear))
            except (OutsideError, InputError, OSError) as error:
                why = explained(error) if isinstance(error, OSError) else str(error)
                outcome.again.append(f"{outside.name}: {why}")

    def _take_out_of_backup(self, whom: Whom, outcome: Outcome, folder: Path) -> None:
        """Remove what a backup's copies of the outsides' books have in clear."""
        manifest = Manifest.load(folder)
        outsides = dict(manifest.outside)
        for outside in self._saga.outside:
            copied = outsides.get(outside.name)
            if copied is None or outside.forget is None:
                continue
            file = folder / copied.file
            clear = Clear(
                values=whom.values,
                references=whom.references,
                subjects=whom.subjects,
                folder=folder,
                books_url=sqlite_url(file),
            )
            try:
                outcome.took(f"{outside.name} in {folder}", outside.forget(clear))
            except (OutsideError, InputError, OSError) as error:
                why = explained(error) if isinstance(error, OSError) else str(error)
                outcome.left.append(f"{outside.name} in {folder}: {why}")
            # Also where it failed: it may have written some.
            changed = {"bytes": file.stat().st_size, "sha256": digest_of(file)}
            outsides[outside.name] = copied.model_copy(update=changed)
            manifest.model_copy(update={"outside": outsides}).save(folder)

    def _note(self, whom: Whom, reason: str, outcome: Outcome) -> None:
        """Say in the audit record who forgot whom, and why."""
        url = self._deployment.dead_letters_url
        if url is None:
            raise InputError("the deployment names no store of dead letters: dead_letters_url")
        store = Store(url)
        try:
            result = {
                "subjects": len(whom.subjects),
                "ended": len(outcome.ended),
                "taken_out": outcome.taken_out,
                "left": len(outcome.left),
            }
            store.note("forget", reason, {"person": whom.person.person_id}, result)
        finally:
            store.close()


def open_keys(deployment: Deployment, folder: Path) -> KeyStore:
    """The key store of a system; makes none. Blocks. Raises `ForgettingError`, and what opening it
    raises."""
    settings = deployment.personal_settings(folder)
    check_sealing(settings)
    return open_store(settings, existing=True)


def check_sealing(settings: PersonalSettings) -> None:
    """Raise `ForgettingError` where nothing is sealed."""
    url = store_url(settings)
    there = is_postgresql(url) or sqlite_file(url).is_file()
    if settings.personal is Sealing.OFF and not there:
        raise ForgettingError(
            "nothing is sealed in this system, so no person can be forgotten: what entered in "
            "clear is in histories and backups for good; set PERSONAL=sealed for what comes, see "
            "docs/personal-data.md"
        )


def check_reason(reason: str) -> None:
    """Raise `InputError` for a reason that the key store does not take."""
    if not 0 < len(reason) <= REASON_MAX_CHARACTERS:
        raise InputError(
            f"the --reason has {len(reason)} characters; write 1 to {REASON_MAX_CHARACTERS}, and "
            f"nothing that tells who it is about"
        )


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
        has = (
            sa.func.pg_catalog.position(body, marker.encode())
            if on_postgresql(connection)
            else sa.func.instr(body, marker.encode())
        )
        query = sa.select(subject, body).where(has > 0)
        found += [(row[0], bytes(row[1])) for row in connection.execute(query)]
    return found


def _open(connection: Connection, subjects: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    column = subjects_table.c.subject
    for start in range(0, len(subjects), AT_ONCE):
        some = subjects[start : start + AT_ONCE]
        query = sa.select(column).where(IS_OPEN, any_of(connection, column, some))
        found += connection.scalars(query)
    return tuple(sorted(found))


def _sealed_texts(body: bytes, marker: bytes) -> set[str]:
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


def _left_of(path: Path, traces: tuple[bytes, ...]) -> bool:
    """Whether a SQLite file or its log holds any of these, after it was scrubbed."""
    with contextlib.suppress(sqlite3.Error):  # What it has left is found.
        scrub(path)
    return holds_any(path, traces)


def holds_any(path: Path, traces: tuple[bytes, ...]) -> bool:
    """Whether any of these is in the bytes of a SQLite file or its log. Raises `OSError`."""
    longest = max(map(len, traces), default=0)
    for file in (path, path.with_name(path.name + "-wal")):
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            tail = b""
            while chunk := stream.read(CHUNK_BYTES):
                window = tail + chunk
                if any(trace in window for trace in traces):
                    return True
                tail = window[-longest:]
    return False
