"""Forgetting a person: what is open is ended, their key destroyed, and what outsides have in clear
taken out.

What was sealed under the key stays where it is, in histories, backups and dead letters, and cannot
be read any more: books add up and histories fold as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from saga.declaration import EarlyEnd, Saga
from saga.deployment import Deployment
from saga.dlq.audit import who
from saga.errors import Explained, InputError
from saga.personal.keystore import REASON_MAX_CHARACTERS, KeyStore
from saga.personal.lookup import POLL_SECONDS, PersonRecord
from saga.personal.opening import open_store, store_url
from saga.personal.requests import Request
from saga.runtime.kernel.database import is_postgresql
from saga.runtime.kernel.sqlite import sqlite_file
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import PersonalSettings, Sealing
from saga.runtime.tasks import in_thread
from saga.wording import counted

MARGIN_SECONDS: Final = 0.5
"""What is waited longer than keys are known for: what was opened last is written then."""
LISTED_MAX: Final = 20
"""Subjects that are named in one line."""
_FOR_NOTHING_OPEN: Final = {"waits_for": (), "why": "what failed is to be done again"}

Report = Callable[[str], None]


class ForgettingError(Explained):
    """A person cannot be forgotten as asked. Says what is in the way."""


@dataclass
class Outcome:
    """What was done, and what is left to people."""

    record: PersonRecord
    ended: list[str] = field(default_factory=list)
    """The subjects that were ended before their time."""
    refused: list[str] = field(default_factory=list)
    """Why some were not, a line each."""
    request: Request | None = None
    """It waits, for these."""
    forgotten_at: datetime | None = None
    began: list[str] = field(default_factory=list)
    """The subjects that began while their key was destroyed."""
    taken_out: dict[str, int] = field(default_factory=dict)
    """Keyed by outside: in how many places it had them in clear."""
    left: list[str] = field(default_factory=list)
    """What is for people to do, a line each."""
    again: list[str] = field(default_factory=list)
    """What failed and may go well when it is run again, a line each; the request waits."""

    def took(self, name: str, count: int) -> None:
        """So many more were taken out of a place."""
        self.taken_out[name] = self.taken_out.get(name, 0) + count


class NotEnded(Explained):
    """A saga was not ended early. Says why."""


class PersonalDataSystem(Protocol):
    """The system that a person is forgotten in: one that runs, or a simulated one."""

    async def record_of(self, given: str) -> PersonRecord:
        """Find a person by their clear name, by a sealed text, or by their id. Raises
        `InputError` for an unknown person, and what databases raise."""

    async def open_among(self, subjects: Sequence[str]) -> tuple[str, ...]:
        """Those of these subjects that have not ended, or about which something is owed or due."""

    async def not_recorded(self, person_id: str) -> str:
        """Why what was published about a person by now may not all be known, once it was waited
        for; empty if it is. Raises what databases and the broker raise."""

    async def take_up(self, request: Request) -> Request:
        """Keep a request that is worked on from now on, and return it. If one about the same person
        waits, it goes on with that one."""

    async def keep(self, request: Request) -> None:
        """Keep a request, in the place of an earlier one about the same person."""

    async def drop(self, person_id: str) -> None:
        """The person is forgotten."""

    async def end(self, early: EarlyEnd, subject: str) -> bool:
        """End an open saga; False where it has ended by itself. Raises `NotEnded`."""

    async def take_out(self, outcome: Outcome) -> None:
        """Take out what is in clear outside the participants, and note in `outcome` what was."""

    async def take_out_of_backup(self, outcome: Outcome, folder: Path) -> None:
        """The same in a backup's copies, if that folder is one."""

    async def key_left(self, request: Request, traces: tuple[bytes, ...]) -> Sequence[str]:
        """Where a key that was just destroyed may still be, a line each for people. None of
        `traces` means that its bytes are not known."""

    async def note(self, request: Request, outcome: Outcome) -> None:
        """Say in the audit record who forgot whom, and why."""


class Forgetter:
    """Forgets people of one system."""

    def __init__(self, saga: Saga, store: KeyStore, system: PersonalDataSystem) -> None:
        """See `saga.personal.running.forgetter_of`."""
        self._saga = saga
        self._store = store
        self._system = system

    async def record_of(self, given: str) -> PersonRecord:
        """See `PersonalDataSystem.record_of`."""
        return await self._system.record_of(given)

    async def forget(
        self,
        record: PersonRecord,
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
        outcome = Outcome(record)
        asked = Request(
            person_id=record.person.person_id,
            reason=reason,
            who=who(),
            asked_at=utc_now(),
            waits_for=record.open,
            texts=tuple(record.values.values()),
        )
        # From now on it is known, even if this command is ended.
        request = await self._system.take_up(asked)
        traces = await in_thread(self._store.traces, record.person.person_id, record.values)
        if traces:
            waits = await self._clear_the_way(outcome, request, wait_seconds, report)
            if waits is not None:
                return await self._put_off(outcome, waits)
        request = await self._destroy(outcome, request, traces, report)
        outcome.left += outcome.record.not_looked_at
        await self._system.take_out(outcome)  # What was written meanwhile.
        for folder in backups:
            await self._system.take_out_of_backup(outcome, folder)
        if not record.values:
            outcome.left.append(
                "their key was gone already, so what they are called in clear is not known here: "
                "`saga forget --verify` looks for it, if you give it"
            )
        await self._system.note(request, outcome)
        if outcome.again:
            return await self._put_off(outcome, request.model_copy(update=_FOR_NOTHING_OPEN))
        await self._system.drop(request.person_id)
        return outcome

    async def _put_off(self, outcome: Outcome, request: Request) -> Outcome:
        await self._system.keep(request)
        outcome.request = request
        return outcome

    async def _clear_the_way(
        self, outcome: Outcome, request: Request, wait_seconds: float, report: Report
    ) -> Request | None:
        """Do all that has to be done while their key is there. Returns None once it may be
        destroyed: nothing of theirs is open then, and nothing begins any more; or the request, with
        what it waits for."""
        deadline = _now() + wait_seconds
        waits = await self._until_nothing_is_open(outcome, request, deadline, report)
        if waits is not None:
            return waits
        # While what they are called is known: it cannot be told once the key is gone.
        await self._system.take_out(outcome)
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
            if why := await self._system.not_recorded(request.person_id):
                outcome.refused.append(f"what is open is not known: {why}")
                return request.model_copy(update={"waits_for": (), "why": why})
            outcome.record = await self._system.record_of(request.person_id)
            if not outcome.record.open:
                return None
            still_open = await self._end(outcome, deadline, report)
            if still_open:
                return request.model_copy(update={"waits_for": still_open, "why": ""})

    async def _end(self, outcome: Outcome, deadline: float, report: Report) -> tuple[str, ...]:
        """End what is open; returns what still is at the deadline."""
        open_now = outcome.record.open
        outcome.refused.clear()  # Those that still are open are asked once more.
        if self._saga.early_end is None:
            outcome.refused.append(
                f"{self._saga.name} does not say how a saga is ended before its time "
                f"(`Saga.early_end`): each ends by itself"
            )
        else:
            for subject in open_now:
                await self._end_one(self._saga.early_end, subject, outcome)
        wait_seconds = max(0.0, deadline - _now())
        report(
            f"waiting for {counted(len(open_now), 'open saga')} to end, {wait_seconds:.3g} s at "
            f"most"
        )
        while still_open := await self._system.open_among(open_now):
            if _now() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        return still_open

    async def _end_one(self, early: EarlyEnd, subject: str, outcome: Outcome) -> None:
        try:
            ended = await self._system.end(early, subject)
        except NotEnded as error:
            outcome.refused.append(f"{subject}: {error}")
        else:
            if ended and subject not in outcome.ended:
                outcome.ended.append(subject)

    async def _destroy(
        self, outcome: Outcome, request: Request, traces: tuple[bytes, ...], report: Report
    ) -> Request:
        """Destroy the key, in the store and in what processes have read of it; returns the request,
        which knows whether the key was looked for. None of `traces` means that it was gone
        already."""
        person_id = request.person_id
        if traces:
            # Before: once the key is gone, what began meanwhile cannot be told from the rest.
            request = request.model_copy(update={"subjects_before": outcome.record.subjects})
            await self._system.keep(request)
        forgotten = await in_thread(self._store.forget, person_id, request.reason)
        outcome.forgotten_at = forgotten.forgotten_at
        if request.subjects_before is not None:
            await self._outwait(
                report, "the key is destroyed; processes may know it", forgotten.forgotten_at
            )
            await self._say_what_began(outcome, request.subjects_before)
        elif request.resumed_at is not None:
            outcome.left.append(
                "what began for them while the key was destroyed is not known: the request that "
                "did that does not say what was there before; look at what is open of "
                f"{listed(outcome.record.subjects)}"
            )
        left = await self._system.key_left(request, traces)
        outcome.left += left
        if traces and not left:
            request = request.model_copy(update={"key_store_searched": True})
            await self._system.keep(request)
        return request

    async def _outwait(self, report: Report, what: str, changed_at: datetime | None = None) -> None:
        """Wait until no process uses what it has read of the key store before it was changed: at
        that time, or just now."""
        wait_seconds = self._store.cache_seconds + MARGIN_SECONDS
        if changed_at is not None:
            passed = (utc_now() - changed_at).total_seconds()
            wait_seconds = min(wait_seconds, max(0.0, wait_seconds - passed))
        if wait_seconds:
            report(f"{what} for {wait_seconds:.3g} s more, waiting")
            await asyncio.sleep(wait_seconds)

    async def _say_what_began(self, outcome: Outcome, subjects_before: Sequence[str]) -> None:
        """Name what began while the key was being destroyed: by a command that was sealed
        before, and that came late. It goes on under the sealed text."""
        before = outcome.record
        why = await self._system.not_recorded(before.person.person_id)
        if why:
            outcome.left.append(
                f"whether something began for them while the key was destroyed is not known: {why}"
            )
        after = await self._system.record_of(before.person.person_id)
        outcome.record = replace(
            after,
            values=before.values,
            spelt_otherwise=before.spelt_otherwise,
            references=tuple(sorted({*before.references, *after.references})),
        )
        known = {*subjects_before}
        outcome.began = [subject for subject in after.subjects if subject not in known]
        if outcome.began:
            outcome.left.append(
                f"begun while the key was destroyed, and going on under the sealed text: "
                f"{counted(len(outcome.began), 'saga')}. Their owner cannot be told by name how "
                f"they end, so look at them: {listed(outcome.began)}"
            )


def _now() -> float:
    """Seconds, as the clock of the event loop counts them."""
    return asyncio.get_running_loop().time()


def listed(subjects: Sequence[str]) -> str:
    """Subjects in one line, as many as fit."""
    more = ", …" if len(subjects) > LISTED_MAX else ""
    return (", ".join(subjects[:LISTED_MAX]) or "nothing") + more


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
