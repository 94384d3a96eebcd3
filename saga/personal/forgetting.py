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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx

from saga.auth.keys import KeysError, changing
from saga.auth.settings import AuthSettings
from saga.backup.manifest import MANIFEST, Manifest, digest_of
from saga.declaration import EarlyEnd, Saga
from saga.deployment import Deployment
from saga.dlq.audit import who
from saga.dlq.store import Store
from saga.envelope import rfc3339
from saga.errors import Explained, InputError, NotFound
from saga.http import post_to_one
from saga.outside import ErasureRequest, OutsideError
from saga.personal import requests
from saga.personal.keystore import REASON_MAX_CHARACTERS, KeyStore
from saga.personal.needle import CHUNK_BYTES
from saga.personal.opening import open_store, store_url
from saga.personal.requests import Request
from saga.personal.whom import POLL_SECONDS, PersonLookup, Whom
from saga.runtime.disk import explained
from saga.runtime.kernel.database import is_postgresql
from saga.runtime.kernel.sqlite import scrub, sqlite_file
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import PersonalSettings, Sealing, load
from saga.runtime.tasks import in_thread
from saga.runtime.urls import sqlite_url
from saga.wording import counted

ASK_SECONDS: Final = 30.0
"""How long a service may take to end a saga."""
MARGIN_SECONDS: Final = 0.5
"""What is waited longer than keys are known for: what was opened last is written then."""
LISTED_MAX: Final = 20
"""Subjects that are named in one line."""
_API_KEYS: Final = "API keys"
_ROTATE: Final = (
    "rotate the master key (`saga persons rotate-key`) and destroy the old one, which alone can "
    "unwrap it"
)
_FOR_NOTHING_OPEN: Final = {"waits_for": (), "why": "what failed is to be done again"}

Report = Callable[[str], None]


class ForgettingError(Explained):
    """A person cannot be forgotten as asked. Says what is in the way."""


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
        self._lookup = PersonLookup(deployment, folder, saga.choreography, store)

    async def whom(self, given: str) -> Whom:
        """Find a person by their clear name, by a sealed text, or by their id. Raises
        `InputError` for an unknown person, and what databases raise."""
        return await self._lookup.whom(given)

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

        Raises what the key store, the outsides, the broker and databases raise; the request waits
        then."""
        outcome = Outcome(whom)
        asked = Request(
            person_id=whom.person.person_id,
            reason=reason,
            who=who(),
            asked_at=utc_now(),
            waits_for=whom.open,
            texts=tuple(whom.values.values()),
        )
        # From now on it is known, even if this command is ended.
        request = await in_thread(requests.take_up, self._folder, asked)
        traces = await in_thread(self._store.traces, whom.person.person_id, whom.values)
        if traces:
            waits = await self._clear_the_way(outcome, request, wait_seconds, report)
            if waits is not None:
                return await self._put_off(outcome, waits)
        request = await self._destroy(outcome, request, traces, report)
        await in_thread(self._take_out, outcome)  # What was written meanwhile.
        for folder in backups:
            if (folder / MANIFEST).is_file():
                await in_thread(self._take_out_of_backup, outcome, folder)
        if not whom.values:
            outcome.left.append(
                "their key was gone already, so what they are called in clear is not known here: "
                "`saga forget --verify` looks for it, if you give it"
            )
        await in_thread(self._note, request, outcome)
        if outcome.again:
            return await self._put_off(outcome, request.model_copy(update=_FOR_NOTHING_OPEN))
        await in_thread(requests.drop, self._folder, request.person_id)
        return outcome

    async def _put_off(self, outcome: Outcome, request: Request) -> Outcome:
        await in_thread(requests.keep, self._folder, request)
        outcome.request = request
        return outcome

    async def _clear_the_way(
        self, outcome: Outcome, request: Request, wait_seconds: float, report: Report
    ) -> Request | None:
        """Do all that has to be done while their key is there. Returns None once it may be
        destroyed: nothing of theirs is open then, and nothing begins any more; or the request, with
        what it waits for."""
        deadline = time.monotonic() + wait_seconds
        waits = await self._until_nothing_is_open(outcome, request, deadline, report)
        if waits is not None:
            return waits
        # While what they are called is known: it cannot be told once the key is gone.
        await in_thread(self._take_out, outcome)
        if outcome.again:
            return request.model_copy(update=_FOR_NOTHING_OPEN)
        outcome.left.clear()  # It is said once more, once the key is gone.
        await in_thread(self._store.retire, request.person_id)
        await self._outwait(report, "nothing new is sealed for them; processes may go on")
        return await self._until_nothing_is_open(outcome, request, deadline, report)

    async def _until_nothing_is_open(
        self, outcome: Outcome, request: Request, deadline: float, report: Report
    ) -> Request | None:
        """End what is open, as of what was published by now. Returns None once nothing is; or the
        request, with what it waits for."""
        while True:
            if why := await self._lookup.not_recorded(request.person_id):
                outcome.refused.append(f"what is open is not known: {why}")
                return request.model_copy(update={"waits_for": (), "why": why})
            outcome.whom = await self._lookup.whom(request.person_id)
            if not outcome.whom.open:
                return None
            still_open = await self._end(outcome, deadline, report)
            if still_open:
                return request.model_copy(update={"waits_for": still_open, "why": ""})

    async def _end(self, outcome: Outcome, deadline: float, report: Report) -> tuple[str, ...]:
        """End what is open; returns what still is at the deadline."""
        open_now = outcome.whom.open
        outcome.refused.clear()  # Those that still are open are asked once more.
        if self._saga.early_end is None:
            outcome.refused.append(
                f"{self._saga.name} does not say how a saga is ended before its time "
                f"(`Saga.early_end`): each ends by itself"
            )
        else:
            for subject in open_now:
                await self._end_one(self._saga.early_end, subject, outcome)
        wait_seconds = max(0.0, deadline - time.monotonic())
        report(
            f"waiting for {counted(len(open_now), 'open saga')} to end, {wait_seconds:.3g} s at "
            f"most"
        )
        while still_open := await self._lookup.open_among(open_now):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return still_open

    async def _end_one(self, early: EarlyEnd, subject: str, outcome: Outcome) -> None:
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
            if subject not in outcome.ended:
                outcome.ended.append(subject)
        elif answer.status_code != httpx.codes.CONFLICT:  # Then it has ended by itself.
            outcome.refused.append(f"{subject}: {early.participant} answered {answer.status_code}")

    async def _destroy(
        self, outcome: Outcome, request: Request, traces: tuple[bytes, ...], report: Report
    ) -> Request:
        """Destroy the key, in the store and in what processes have read of it; returns the request,
        which knows whether the key was looked for. None of `traces` means that it was gone
        already."""
        person_id, before = request.person_id, outcome.whom
        forgotten = await in_thread(self._store.forget, person_id, request.reason)
        outcome.forgotten_at = forgotten.forgotten_at
        if traces:
            await self._outwait(report, "the key is destroyed; processes may know it")
            await self._say_what_began(outcome, before)
        url = store_url(self._deployment.personal_settings(self._folder))
        if is_postgresql(url):
            outcome.left.append(
                "the key store is on a server, whose log and dead rows may hold the wrapped key "
                f"for a while: {_ROTATE}"
            )
        elif not traces:
            if not request.key_store_searched:
                outcome.left.append(
                    f"{sqlite_file(url)} was not looked through for the wrapped key, which was "
                    f"gone already, so that its bytes are not known: {_ROTATE}"
                )
        elif await in_thread(_left_of, sqlite_file(url), traces):
            outcome.left.append(
                f"{sqlite_file(url)} still holds the wrapped key in a free page or its log: end "
                f"what reads it, and {_ROTATE}"
            )
        else:
            request = request.model_copy(update={"key_store_searched": True})
            await in_thread(requests.keep, self._folder, request)
        return request

    async def _outwait(self, report: Report, what: str) -> None:
        """Wait until no process uses what it has read of the key store before now."""
        wait_seconds = self._store.cache_seconds + MARGIN_SECONDS
        report(f"{what} for {wait_seconds:g} s more, waiting")
        await asyncio.sleep(wait_seconds)

    async def _say_what_began(self, outcome: Outcome, before: Whom) -> None:
        """Name what began while the key was being destroyed: by a command that was sealed
        before, and that came late. It goes on under the sealed text."""
        why = await self._lookup.not_recorded(before.person.person_id)
        if why:
            outcome.left.append(
                f"whether something began for them while the key was destroyed is not known: {why}"
            )
        after = await self._lookup.whom(before.person.person_id)
        outcome.whom = replace(
            after,
            values=before.values,
            references=tuple(sorted({*before.references, *after.references})),
        )
        began = [subject for subject in after.subjects if subject not in {*before.subjects}]
        if began:
            shown = ", ".join(began[:LISTED_MAX]) + (", …" if len(began) > LISTED_MAX else "")
            outcome.left.append(
                f"begun while the key was destroyed, and going on under the sealed text: "
                f"{counted(len(began), 'saga')}. Their owner cannot be told by name how they "
                f"end, so "
                f"look at them: {shown}"
            )

    def _take_out(self, outcome: Outcome) -> None:
        """Revoke their API keys, which name them, and have outsides take out what they have in
        clear."""
        whom = outcome.whom
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
            clear = ErasureRequest(
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

    def _take_out_of_backup(self, outcome: Outcome, folder: Path) -> None:
        """Remove what a backup's copies of the outsides' books have in clear."""
        whom = outcome.whom
        manifest = Manifest.load(folder)
        outsides = dict(manifest.outside)
        for outside in self._saga.outside:
            copied = outsides.get(outside.name)
            if copied is None or outside.forget is None:
                continue
            file = folder / copied.file
            clear = ErasureRequest(
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

    def _note(self, request: Request, outcome: Outcome) -> None:
        """Say in the audit record who forgot whom, and why."""
        url = self._deployment.dead_letters_url
        if url is None:
            raise NotFound("the deployment names no store of dead letters: dead_letters_url")
        store = Store(url)
        try:
            result = {
                "asked_by": request.who,
                "asked_at": rfc3339(request.asked_at),
                "subjects": len(outcome.whom.subjects),
                "ended": len(outcome.ended),
                "taken_out": outcome.taken_out,
                "left": len(outcome.left),
            }
            store.note("forget", request.reason, {"person": request.person_id}, result)
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
