"""The system that runs, as far as a person is forgotten in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from saga.auth.keys import KeysError, changing, read_keys
from saga.backup.manifest import MANIFEST, Manifest, digest_of
from saga.declaration import EarlyEnd, Saga
from saga.deployment import FILE_NAME, Deployment
from saga.dlq.store import Store
from saga.envelope import rfc3339
from saga.errors import InputError, NotFound
from saga.http import post_to_one
from saga.outside import ErasureRequest, OutsideError
from saga.personal import requests
from saga.personal.forgetting import LISTED_MAX, Forgetter, NotEnded, Outcome
from saga.personal.keystore import KeyStore
from saga.personal.lookup import PersonLookup
from saga.personal.needle import CHUNK_BYTES
from saga.personal.opening import store_url
from saga.personal.requests import Request
from saga.runtime.disk import explained
from saga.runtime.kernel.database import is_postgresql
from saga.runtime.kernel.sqlite import scrub, sqlite_file
from saga.runtime.tasks import in_thread
from saga.runtime.urls import sqlite_url

ASK_SECONDS: Final = 30.0
"""How long a service may take to end a saga."""
_API_KEYS: Final = "API keys"
_ROTATE: Final = (
    "rotate the master key (`saga persons rotate-key`) and destroy the old one, which alone can "
    "unwrap it"
)


def forgetter_of(deployment: Deployment, folder: Path, saga: Saga, store: KeyStore) -> Forgetter:
    """What forgets people of the system in a data folder."""
    return Forgetter(saga, store, RunningSystem(deployment, folder, saga, store))


class RunningSystem(PersonLookup):
    """See `saga.personal.forgetting.PersonalDataSystem`."""

    def __init__(self, deployment: Deployment, folder: Path, saga: Saga, store: KeyStore) -> None:
        super().__init__(deployment, folder, saga.choreography, store)
        self._saga = saga

    async def take_up(self, request: Request) -> Request:
        return await in_thread(requests.take_up, self._folder, request)

    async def keep(self, request: Request) -> None:
        await in_thread(requests.keep, self._folder, request)

    async def drop(self, person_id: str) -> None:
        await in_thread(requests.drop, self._folder, person_id)

    async def end(self, early: EarlyEnd, subject: str) -> bool:
        urls = self._deployment.http_urls.get(early.participant, ())
        try:
            answer = await post_to_one(urls, early.path_for(subject), None, ASK_SECONDS)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise NotEnded(f"{early.participant} did not answer: {why}") from error
        if answer is None:
            raise NotEnded(f"no service {early.participant} runs; start it")
        if not answer.is_success and answer.status_code != httpx.codes.CONFLICT:
            raise NotEnded(f"{early.participant} answered {answer.status_code}")
        return answer.is_success

    async def take_out(self, outcome: Outcome) -> None:
        await in_thread(self._take_out, outcome)

    async def take_out_of_backup(self, outcome: Outcome, folder: Path) -> None:
        if (folder / MANIFEST).is_file():
            await in_thread(self._take_out_of_backup, outcome, folder)

    async def key_left(self, request: Request, traces: tuple[bytes, ...]) -> Sequence[str]:
        return await in_thread(self._key_left, request, traces)

    async def note(self, request: Request, outcome: Outcome) -> None:
        await in_thread(self._note, request, outcome)

    def _key_left(self, request: Request, traces: tuple[bytes, ...]) -> Sequence[str]:
        url = store_url(self._deployment.personal_settings(self._folder))
        if is_postgresql(url):
            return [
                "the key store is on a server, whose log and dead rows may hold the wrapped key "
                f"for a while: {_ROTATE}"
            ]
        file = sqlite_file(url)
        if not traces:
            if request.key_store_searched:
                return []
            return [
                f"{file} was not looked through for the wrapped key, which was gone already, so "
                f"that its bytes are not known: {_ROTATE}"
            ]
        if _left_of(file, traces):
            return [
                f"{file} still holds the wrapped key in a free page or its log: end what reads it, "
                f"and {_ROTATE}"
            ]
        return []

    def _take_out(self, outcome: Outcome) -> None:
        """Revoke their API keys, which name them, and have outsides take out what they have in
        clear."""
        record = outcome.record
        try:
            self._revoke_keys(outcome)
        except KeysError as error:
            outcome.again.append(f"their API keys: {error}")
        for outside in self._saga.outside:
            if outside.forget is None:
                outcome.left.append(
                    f"{outside.name} cannot be told by us to forget a person: ask those who run it"
                )
                continue
            clear = ErasureRequest(
                values=record.values,
                references=record.references,
                subjects=record.subjects,
                folder=self._folder,
                books_url=self._deployment.outside_urls.get(outside.name),
                papers=self._deployment.outside_papers.get(outside.name, ()),
            )
            try:
                outcome.took(outside.name, outside.forget(clear))
            except (OutsideError, InputError, OSError) as error:
                why = explained(error) if isinstance(error, OSError) else str(error)
                outcome.again.append(f"{outside.name}: {why}")

    def _revoke_keys(self, outcome: Outcome) -> None:
        """Take their API keys out of the file that services read. Raises `KeysError`."""
        record, file = outcome.record, self._deployment.api_keys_file
        if file is None:
            outcome.left.append(
                f"API keys were not looked at: {self._folder / FILE_NAME} does not say where they "
                f"are (api_keys_file); `saga keys list --file FILE` has the names, "
                f"`saga keys revoke` ends a key"
            )
            return
        if self._deployment.api_keys_copied and not file.exists():
            outcome.left.append(
                f"API keys were not looked at: services have copies of {file}, which is not to be "
                f"seen from here; `saga keys list --file FILE`, where they are made, has the names"
            )
            return
        if read_keys(file):
            if not record.values:
                outcome.left.append(
                    f"API keys were not looked for: what they are called in clear is not known; "
                    f"`saga keys list --file {file}` has the names"
                )
                return
            with changing(file) as keys:
                others = [k for k in keys if not {k.owner, k.name} & record.values.keys()]
                outcome.took(_API_KEYS, len(keys) - len(others))
                keys[:] = others
        if self._deployment.api_keys_copied and outcome.taken_out.get(_API_KEYS):
            outcome.left.append(
                f"services have copies of {file}, which name them, and take their keys until what "
                f"made these copies runs again (`python -m saga.bootstrap`, the container `init`)"
            )

    def _take_out_of_backup(self, outcome: Outcome, folder: Path) -> None:
        """Remove what a backup's copies of the outsides' books have in clear."""
        record = outcome.record
        manifest = Manifest.load(folder)
        outsides = dict(manifest.outside)
        for outside in self._saga.outside:
            copied = outsides.get(outside.name)
            if copied is None or outside.forget is None:
                continue
            file = folder / copied.file
            clear = ErasureRequest(
                values=record.values,
                references=record.references,
                subjects=record.subjects,
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
                "subjects": len(outcome.record.subjects),
                "ended": len(outcome.ended),
                "began": outcome.began[:LISTED_MAX],
                "taken_out": outcome.taken_out,
                "left": len(outcome.left),
            }
            store.note("forget", request.reason, {"person": request.person_id}, result)
        finally:
            store.close()


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
