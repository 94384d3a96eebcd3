"""Personal data of commands that come in clear over the broker: sealed before anything is kept.

What the publisher has sent stays with the broker as long as the delivery is not acknowledged, and
in its files until it writes over them; a retry and a dead letter are made of the sealed body.
Events are what their participant has published: the history has them as they are, and so have the
states.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

from saga.choreography import Participant
from saga.envelope import Envelope, Undecodable, digest_of, is_recorded
from saga.limits import json_of
from saga.message import Command, Event
from saga.personal.marks import (
    document_with_personal,
    personal_fields,
    personal_values,
)
from saga.personal.masks import Masks
from saga.personal.persons import Persons, SealingAway
from saga.personal.seal import CLEAR_MAX_BYTES, Forgotten, sealed
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import EVENTS_EXCHANGE

T = TypeVar("T")

BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
_CUT: Final = "…"


class SealedCommand(NamedTuple):
    """A command without clear names, with the one it was made of, or itself where nothing had to be
    sealed: kept in memory until it is done."""

    envelope: Envelope[Any]
    in_clear: Envelope[Any]

    @property
    def former_digest(self) -> bytes:
        """The digest under which it may have been done, before anything was sealed."""
        return digest_of(self.in_clear, b"")

    def delivery(self, delivery: Delivery) -> Delivery:
        """The delivery with the personal texts in its body sealed, and all else as it came: of this
        a retry or a dead letter is made."""
        if self.envelope is self.in_clear:
            return delivery
        data = self.envelope.data
        by_value = dict(
            zip(personal_values(self.in_clear.data), personal_values(data), strict=True)
        )
        return delivery.with_body(
            _changed(type(data), json_of(delivery.body), lambda value: by_value.get(value, value))
        )


class IntakeSeal:
    """Seals what one participant takes from its queues. Belongs to one event loop."""

    def __init__(self, persons: Persons, participant: Participant) -> None:
        self._persons = persons
        self._kinds = {kind.type: kind for kind in participant.intake if personal_fields(kind)}
        taken: list[type[Event | Command]] = [*participant.consumes, *participant.intake]
        self._taken = {kind.type: kind for kind in taken}
        self._masks = Masks(taken)
        self._asking = {
            kind.type for kind in self._kinds.values() if participant.by_message[kind].intends
        }
        """Because of these, an outside may be asked before anything is published."""

    def concerns(self, envelope: Envelope[Any]) -> bool:
        """Whether that is a command from outside with something in clear that is to be sealed, or
        with what only may look sealed."""
        if envelope.type not in self._kinds or is_recorded(envelope):
            return False
        values = personal_values(envelope.data)
        return any(map(sealed, values)) or (self._persons.sealing and bool(values))

    def at_once(self, envelope: Envelope[Any]) -> SealedCommand | None:
        """The command sealed, if that needs no asking of the key store. Raises ValueError for a
        value that only looks sealed."""
        data = self._persons.sealed_at_once(envelope.data)
        return None if data is None else _sealed(envelope, data)

    async def learn(self, envelopes: Iterable[Envelope[Any]]) -> None:
        """Ask the key store once about all these commands, so that they are sealed `at_once`. Those
        that it has no answer to are as before: `once_sealed` waits for it, or says why."""
        await self._persons.learn(
            value for envelope in envelopes for value in personal_values(envelope.data)
        )

    async def once_sealed(self, envelope: Envelope[Any], *, tried: bool) -> SealedCommand:
        """The command sealed, however long the key store is away. `tried` says that it may have
        come before: then what it has an outside asked goes on to its end. Raises ValueError for a
        value that is too long, or only looks sealed, and `Undecodable` where its person is
        forgotten: nothing new begins for them."""
        try:
            await self._insist(lambda: self._persons.check_sealed(envelope.data))
        except Forgotten as error:
            if not (tried and envelope.type in self._asking):
                raise Undecodable("forgotten", f"{error}; nothing is begun for them") from error
        data = await self._insist(lambda: self._persons.as_given(envelope.data))
        return _sealed(envelope, data)

    async def unreadable(self, delivery: Delivery) -> Delivery:
        """A delivery that is no message, with what stands where its type has personal fields
        sealed. Where it says no type that this participant takes, that is what stands under a name
        that any of its types gives a personal field. One that is no JSON stays as it is, and so
        does an event that came by the exchange of events, where participants alone may publish. Any
        client may say in a header that another message did."""
        if not self._persons.sealing:
            return delivery
        try:
            document = json_of(delivery.body)
        except ValueError:
            return delivery
        if not isinstance(document, dict):
            return delivery
        type_ = _text(document, "type")
        kind = self._taken.get(type_)
        if delivery.exchange == EVENTS_EXCHANGE and type_ not in self._kinds:
            return delivery
        found: dict[str, str] = {}

        def note(value: str) -> str:
            found[value] = _cut(value)
            return value

        def with_names(change: Callable[[str], str]) -> Any:
            if kind is None:
                return self._masks.changed_anywhere(document, change)
            return document | {"data": document_with_personal(kind, document.get("data"), change)}

        with_names(note)
        if not found:
            return delivery
        by_value = await self._insist(lambda: self._persons.seal(found.values()))
        whole = with_names(lambda value: by_value[found[value]])
        return delivery.with_body(json.dumps(whole, ensure_ascii=False).encode())

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """What comes of work with the key store, once that is there."""
        backoff_seconds, this = BACKOFF_MIN_SECONDS, object()
        try:
            while True:
                try:
                    result = await work()
                except SealingAway as error:
                    self._persons.loop.failed(error, this)
                    await asyncio.sleep(backoff_seconds)
                    backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
                else:
                    self._persons.loop.succeeded(this)
                    return result
        finally:
            self._persons.loop.forget(this)


def _sealed(envelope: Envelope[Any], data: Command) -> SealedCommand:
    if data is envelope.data:
        return SealedCommand(envelope, envelope)
    return SealedCommand(envelope.model_copy(update={"data": data}), envelope)


def _changed(kind: type[Command], document: Any, change: Callable[[str], str]) -> bytes:
    """The JSON document with the personal texts in its data changed, and all else as it came."""
    data = document_with_personal(kind, document.get("data"), change)
    return json.dumps(document | {"data": data}, ensure_ascii=False).encode()


def _text(document: Any, name: str) -> str:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, str) else ""


def _cut(value: str) -> str:
    """What of a text is sealed where it is longer than any that is taken."""
    if len(value.encode(errors="replace")) <= CLEAR_MAX_BYTES:
        return value
    return value.encode(errors="replace")[: CLEAR_MAX_BYTES - 3].decode(errors="ignore") + _CUT
