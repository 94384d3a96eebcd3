"""What a replay would do, by the letter, the services' inboxes and the archive."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import OBSERVER
from saga.archive.subjects import SUBJECTS, Subject
from saga.choreography import Choreography, Participant
from saga.deployment import Deployment
from saga.dlq.letters import DeadLetter, document_of, message_key_of, way_before_death
from saga.envelope import (
    Decoder,
    Envelope,
    MessageKey,
    Undecodable,
    digest_of,
    schema_uri,
    source_of,
)
from saga.history import pages
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables
from saga.runtime.messaging.dead_letters import ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY
from saga.runtime.messaging.topology import reads
from saga.runtime.messaging.trust import check_sender
from saga.wording import counted

REPLAYS_MAX: Final = 3
"""How often a letter is sent again before an operator has to insist."""
_AT_ONCE: Final = 500


class Expectation(StrEnum):
    """What a replay would lead to: the message being handled, or why not."""

    HANDLED = "handled"
    ALREADY_DONE = "already done"
    UNDECODABLE = "cannot be decoded"
    CAPPED = "replayed too often"
    NO_QUEUE = "no such queue"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a replay of one letter would do.

    `upcast_from` is the version of the payload if that is not the newest. `known` says whether the
    archive knows its subject, and `ended_by` which event ended that one's saga. With `already_done`
    the inbox would skip the message, so it need not be sent.
    """

    expectation: Expectation
    detail: str
    decodes: bool
    upcast_from: int | None
    known: bool
    ended_by: str | None
    already_done: bool

    @property
    def saga(self) -> str:
        """Where its saga stands, in a word or two; empty if the archive does not know."""
        if self.ended_by is not None:
            return f"ended by {self.ended_by}"
        return "open" if self.known else ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def counts_of(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts there are by what a replay is expected to do with the letter."""
    counts: defaultdict[str, int] = defaultdict(int)
    for verdict in verdicts:
        counts[str(verdict.expectation)] += 1
    return dict(counts)


class Examiner:
    """Examines letters of one system."""

    def __init__(
        self, deployment: Deployment, graph: Choreography, *, replays_max: int = REPLAYS_MAX
    ) -> None:
        self._deployment = deployment
        self._replays_max = replays_max
        self._participants = {p.name: p for p in graph.participants}
        self._decoders = {p.name: decoder_of(p) for p in graph.participants}

    async def examine(
        self, letters: Sequence[DeadLetter], *, force: bool = False
    ) -> dict[int, Verdict]:
        """A verdict on each letter, by its number. With `force` none was replayed too often."""
        done = await self.done(letters)
        known = await self._subjects({letter.subject for letter in letters if letter.subject})
        return {
            letter.number: self._verdict(
                letter, letter.number in done, known.get(letter.subject or ""), force
            )
            for letter in letters
        }

    async def done(self, letters: Iterable[DeadLetter]) -> set[int]:
        """The numbers of the letters whose message its participant has dealt with, as far as that
        is known: of one in another language, what it has answered. The letters have to have their
        contents."""
        by_participant: defaultdict[str, dict[int, MessageKey]] = defaultdict(dict)
        digests: dict[int, bytes] = {}
        for letter in letters:
            if (key := message_key_of(letter.body)) is not None:
                by_participant[letter.participant][letter.number] = key
                digests[letter.number] = self._digest(letter)
        found: set[int] = set()
        for participant, keys in by_participant.items():
            if self.is_foreign(participant):
                answered = await self._answered(participant, set(keys.values()))
                found.update(number for number, key in keys.items() if key.id in answered)
                continue
            url = self._deployment.database_urls.get(participant)
            if url is None:
                continue
            wanted = set(keys.values())
            done = await asyncio.to_thread(read_database, url, partial(_in_inbox, wanted))
            found.update(
                number
                for number, key in keys.items()
                if key in done and done[key] in (None, digests[number])
            )
        return found

    def is_foreign(self, participant: str) -> bool:
        """Whether it is in another language, so that its inbox cannot be read."""
        return participant in self._participants and self._participants[participant].foreign

    async def _answered(self, participant: str, keys: Collection[MessageKey]) -> Collection[str]:
        """The ids of those of these messages because of which it has published something."""
        url = self._deployment.database_urls.get(OBSERVER.name)
        if url is None:
            return ()
        return await asyncio.to_thread(pages.causes_among, url, source_of(participant), keys)

    def _digest(self, letter: DeadLetter) -> bytes:
        """What the inbox has of the message if it was done; nothing that was done has none."""
        decoder = self._decoders.get(letter.participant)
        try:
            return digest_of(decoder.decode(letter.body), letter.body) if decoder else b""
        except Exception:  # What cannot be decoded was not done.
            return b""

    async def knows(self, subject: str) -> bool:
        """Whether the archive knows such a subject."""
        return bool(await self._subjects({subject}))

    async def _subjects(self, subjects: Collection[str]) -> Mapping[str, Subject]:
        """What the archive tells of these subjects; of none, if the system has no archive."""
        url = self._deployment.database_urls.get(OBSERVER.name)
        if url is None or not subjects:
            return {}
        return await asyncio.to_thread(read_database, url, partial(_subjects_in, subjects))

    def _verdict(
        self, letter: DeadLetter, done: bool, known: Subject | None, force: bool
    ) -> Verdict:
        decodes, upcast_from, problem = self._decode(letter)
        participant = self._participants.get(letter.participant)
        expectation, detail = Expectation.HANDLED, ""
        ended_by = known.ended_by if known else None
        if ended_by is not None:
            detail = f"{ended_by} was said already: only what that leaves to do will be done"
        if done:
            expectation = Expectation.ALREADY_DONE
            detail = f"the inbox of {letter.participant} has it"
            if self.is_foreign(letter.participant):
                detail = f"{letter.participant} has answered it"
        elif participant is None or not reads(participant, letter.queue):
            expectation = Expectation.NO_QUEUE
            detail = f"{letter.queue} is no queue of {letter.participant}"
        elif letter.replays >= self._replays_max and not force:
            expectation = Expectation.CAPPED
            detail = f"replayed {counted(letter.replays, 'time')}; --force sends it once more"
        elif not decodes:
            expectation, detail = Expectation.UNDECODABLE, problem
        return Verdict(
            expectation,
            detail,
            decodes,
            upcast_from,
            known is not None,
            ended_by,
            done,
        )

    def _decode(self, letter: DeadLetter) -> tuple[bool, int | None, str]:
        decoder = self._decoders.get(letter.participant)
        if decoder is None:
            return False, None, f"there is no participant {letter.participant}"
        try:
            envelope = decoder.decode(letter.body)
            _check_sender(letter, envelope)
        except Undecodable as error:
            return False, None, str(error)
        except Exception as error:  # What a decoder did not foresee is undecodable too.
            return False, None, f"{type(error).__name__}: {error}"
        schema = (document_of(letter.body) or {}).get("dataschema")
        if schema == schema_uri(type(envelope.data)):
            return True, None, ""
        return True, int(str(schema).rpartition(":")[2]), ""


def _check_sender(letter: DeadLetter, envelope: Envelope[Any]) -> None:
    """Refuse what its participant has refused for where it came from: a replay comes by another
    way, and would be taken."""
    exchange, key = (letter.headers.get(name) for name in (ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY))
    if exchange is None and key is None:
        exchange, key = way_before_death(letter.headers)
    if isinstance(exchange, str) and isinstance(key, str):
        check_sender(exchange, key, envelope, letter.queue)


def decoder_of(participant: Participant) -> Decoder:
    """The decoder that the participant's own consumer has."""
    return Decoder((*participant.consumes, *participant.intake))


def _askable(texts: Iterable[str]) -> list[str]:
    """Those that a database can be asked for; PostgreSQL takes no NUL, so has none with it."""
    return [text for text in texts if "\0" not in text]


def _in_inbox(
    messages: Collection[MessageKey], connection: Connection
) -> dict[MessageKey, bytes | None]:
    # The kernel gives each service an inbox of this shape; the metadata is only for the query.
    tables = Tables(sa.MetaData())
    wanted = [message for message in messages if "\0" not in message.id + message.source]
    found: dict[MessageKey, bytes | None] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        found |= tables.already_done(connection, wanted[start : start + _AT_ONCE])
    return found


def _subjects_in(subjects: Collection[str], connection: Connection) -> dict[str, Subject]:
    wanted = _askable(subjects)
    found: dict[str, Subject] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        states = SUBJECTS.load(connection, wanted[start : start + _AT_ONCE])
        found |= {key: subject for key, (subject, _) in states.items()}
    return found
