"""What a process asks the key store: to seal what enters, and to open at the last moment.

Belongs to one event loop. The store is opened in a thread, when it is first needed. What is known
is answered at once, and so is what a file on a quick disk can be asked: a thread takes turns with
the loop at every statement. Else the store is asked in the thread. Values that come at the same
time share one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel

from saga.errors import Explained
from saga.personal.keystore import KeyStore, KeyStoreAway, KeyStoreError, WouldWait
from saga.personal.marks import personal_values, with_personal
from saga.personal.master import MasterKeyError
from saga.personal.opening import open_store
from saga.personal.seal import Unsealable, sealed
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.settings import PersonalSettings, Sealing

log = logging.getLogger(__name__)

GROUP_MAX: Final = 500
"""Values sealed in one transaction."""
GATHER_SECONDS: Final = 0.005
"""How long a value that is to be sealed waits for others, where one was sealed so shortly before: a
transaction takes some ten times the CPU of a value in it. What comes alone does not wait."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
PATIENCE_SECONDS: Final = 1_200.0
"""How long opening waits for a key store that is away: less than the half an hour after which the
broker takes a delivery back."""

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class SealingAway(Explained):
    """Nothing can be sealed or opened for now. Says why; it may pass, or be put right."""


_AWAY: Final = (KeyStoreAway, KeyStoreError, MasterKeyError)


class Persons:
    """One process's access to the keys of persons."""

    def __init__(
        self, settings: PersonalSettings, open_it: Callable[[], KeyStore] | None = None
    ) -> None:
        """Opens nothing yet; `open_it` makes the store, by default as the settings say."""
        self.settings = settings
        self.sealing = settings.personal is Sealing.SEALED
        """Whether clear values of personal fields are sealed here."""
        self.loop = RetryLoop("persons", "use the key store of persons", vital=False)
        self._open_it = open_it or partial(open_store, settings)
        self._store: KeyStore | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False
        self._seals = _Batcher(
            self._ask,
            lambda store, values: store.seal_all(values),
            lambda store, value: store.seal(value),
            gather_seconds=GATHER_SECONDS,
        )
        self._opens = _Batcher(
            self._ask,
            lambda store, values: store.open_all(values),
            lambda store, value: store.open(value),
        )

    async def check(self) -> None:
        """Open the store, if anything is to be sealed. One that is away is waited for later. Raises
        `KeyStoreError` and `MasterKeyError`, which no waiting fixes."""
        if not self.sealing:
            return
        try:
            await self._ask(lambda store: None)
        except KeyStoreAway as error:
            log.warning("%s; what enters is turned away until it is there", error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the store, which counts as away from now on."""
        self._closed = True
        await self._seals.close()
        await self._opens.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def sealed_at_once(self, message: M) -> M | None:
        """The message as it is to be published: with its values sealed where this process seals,
        and those that came sealed known to be this key store's; None where that needs asking.
        Raises `Unsealable` where one only looks sealed."""
        found: dict[str, str] = {}
        for value in personal_values(message):
            if sealed(value):
                if not self._opens_at_once(value):
                    return None
            elif self.sealing:
                known = None if self._store is None else self._store.known(value)
                if known is None:
                    return None
                found[value] = known
        return _with(message, found)

    def _opens_at_once(self, value: str) -> bool:
        return self._opened_at_once(value) is not None

    def _opened_at_once(self, value: str) -> str | None:
        """What a sealed text says, where that needs no asking."""
        return None if self._store is None else self._store.opened(value)

    async def learn(self, values: Iterable[str]) -> None:
        """Ask the store about all these values in one go, so that they are sealed and opened at
        once from then on. If it is away, or one of them is wrong, they may be unknown as before:
        who asks about each alone is told why."""
        texts = {*values}
        to_open = {value for value in texts if sealed(value)}
        to_seal = texts - to_open if self.sealing else set()

        def ask(store: KeyStore) -> None:
            store.open_all(to_open)
            store.seal_all(to_seal)

        with contextlib.suppress(Exception):
            await self._ask(ask)

    async def check_sealed(self, message: BaseModel) -> None:
        """Let no text pass for a sealed value that only looks like one, nor one of who is
        forgotten. Raises `Unsealable`, `Forgotten` and `SealingAway`."""
        for value in personal_values(message):
            if sealed(value):
                await self.open_now(value)

    async def as_given(self, message: M) -> M:
        """The message as it is to be published: sealed where this process seals. Raises as
        `seal_message` does."""
        return await self.seal_message(message) if self.sealing else message

    async def seal_message(self, message: M) -> M:
        """The message with its personal values sealed. Raises `SealingAway`, and ValueError for a
        value that is too long."""
        return _with(message, await self.seal(personal_values(message)))

    async def seal(self, values: Iterable[str]) -> dict[str, str]:
        """Each of the values, sealed. Raises as `seal_message` does."""
        result: dict[str, str] = {}
        waiting: dict[str, asyncio.Future[str]] = {}
        for value in values:
            if sealed(value):
                result[value] = value
            elif self._store is not None and (known := self._store.known(value)) is not None:
                result[value] = known
            elif value not in waiting:
                waiting[value] = self._seals.result_of(value)
        for value, future in waiting.items():
            try:
                result[value] = await asyncio.shield(future)
            except _AWAY as error:
                raise SealingAway(str(error)) from error
        return result

    async def open(self, value: str) -> str:
        """What a value says, sealed or not. A store that is away is waited for; raises `Forgotten`,
        `Unsealable`, and at last `SealingAway`."""
        if not sealed(value):
            return value
        if (known := self._opened_at_once(value)) is not None:
            return known
        clock = asyncio.get_running_loop().time
        deadline, backoff_seconds, this = clock() + PATIENCE_SECONDS, BACKOFF_MIN_SECONDS, object()
        try:
            while True:
                try:
                    opened = await self._opened(value)
                except _AWAY as error:
                    self._check_awaited(error)
                    self.loop.failed(error, this)
                    if clock() > deadline:
                        raise SealingAway(str(error)) from error
                    await asyncio.sleep(backoff_seconds)
                    backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
                else:
                    self.loop.succeeded(this)
                    return opened
        finally:
            self.loop.forget(this)

    async def open_now(self, value: str) -> str:
        """The same without waiting. Raises `SealingAway` at once."""
        if not sealed(value):
            return value
        try:
            return await self._opened(value)
        except _AWAY as error:
            self._check_awaited(error)
            raise SealingAway(str(error)) from error

    def _check_awaited(self, error: Exception) -> None:
        """Where nothing is sealed, no keys are to come, and any client may write a text that
        only looks sealed: it is not waited for. Raises `Unsealable`."""
        if not self.sealing and not isinstance(error, KeyStoreAway):
            raise Unsealable(
                "a text looks like a sealed value, and nothing is sealed here; name the person in "
                "clear"
            ) from error

    async def texts_of(self, value: str) -> tuple[str, ...]:
        """The texts that stand for a clear value: itself, as from before anything was sealed, and
        its sealed form, if its person is known. Raises `SealingAway`."""
        if self._store is not None and (known := self._store.known(value)) is not None:
            return value, known
        try:
            found = await self._ask(lambda store: store.sealed_of(value))
        except _AWAY as error:
            raise SealingAway(str(error)) from error
        return (value,) if found is None or found == value else (value, found)

    async def _opened(self, value: str) -> str:
        """What a sealed text says, at once where its person's key is known."""
        found = self._opened_at_once(value)
        return await asyncio.shield(self._opens.result_of(value)) if found is None else found

    async def _ask(self, question: Callable[[KeyStore], T]) -> T:
        """Ask here and now, if that keeps the loop free; else in the thread of the store, in which
        it is opened as well."""
        if self._closed:
            raise KeyStoreAway("the key store was closed, as this process ends")
        if self._store is not None:
            with contextlib.suppress(WouldWait), self._store.at_once():
                return question(self._store)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="persons")

        def work() -> T:
            if self._store is None:
                self._store = self._open_it()
            return question(self._store)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Batcher:
    """Asks the store about values that wait, group by group; who comes meanwhile joins the next
    one. A value that is waited for already is asked about once."""

    def __init__(
        self,
        ask: Callable[[Callable[[KeyStore], Any]], Awaitable[Any]],
        about_all: Callable[[KeyStore, Iterable[str]], dict[str, str]],
        about_one: Callable[[KeyStore, str], str],
        *,
        gather_seconds: float = 0.0,
    ) -> None:
        """`about_one` tells what is wrong where `about_all` raises. What comes within
        `gather_seconds` of a group waits for so long for others."""
        self._gather_seconds = gather_seconds
        self._answered_at = -math.inf
        self._ask, self._about_all, self._about_one = ask, about_all, about_one
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._worker: asyncio.Task[None] | None = None

    def result_of(self, value: str) -> asyncio.Future[str]:
        """What the store answers. Others may wait for the same future: shield it."""
        future = self._waiting.get(value)
        if future is None:
            future = self._waiting[value] = asyncio.get_running_loop().create_future()
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        return future

    async def close(self) -> None:
        """Answer nothing more."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            if clock() < self._answered_at + self._gather_seconds:
                await asyncio.sleep(self._gather_seconds)
            group = dict(islice(self._waiting.items(), GROUP_MAX))
            for value in group:
                del self._waiting[value]
            try:
                done = await self._asked([*group])
            except asyncio.CancelledError:
                for future in group.values():
                    future.cancel()
                raise
            except Exception as error:
                done = dict.fromkeys(group, error)
            for value, future in group.items():
                _settle(future, done[value])
            self._answered_at = clock()

    async def _asked(self, values: list[str]) -> Mapping[str, str | Exception]:
        try:
            found: dict[str, str] = await self._ask(lambda store: self._about_all(store, values))
            return found
        except Exception as error:
            if len(values) == 1 or isinstance(error, KeyStoreAway | KeyStoreError):
                raise
        # A value that cannot be sealed or opened must not fail the others.
        each: dict[str, str | Exception] = {}
        for value in values:
            try:
                each[value] = await self._answer_to(value)
            except (KeyStoreAway, KeyStoreError):
                raise
            except Exception as error:
                each[value] = error
            await asyncio.sleep(0)  # As each may take a commit of the event loop's time.
        return each

    async def _answer_to(self, value: str) -> str:
        found: str = await self._ask(lambda store: self._about_one(store, value))
        return found


def _with(message: M, sealed_by_value: Mapping[str, str]) -> M:
    if not sealed_by_value:
        return message
    return with_personal(message, lambda value: sealed_by_value.get(value, value))


def _settle(future: asyncio.Future[str], outcome: str | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, str):
        future.set_result(outcome)
        return
    future.set_exception(outcome)
    future.exception()  # Who asked may have gone.
