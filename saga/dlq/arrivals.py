"""Copies that arrive in the store: which are new, and what becomes of their letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.letters import Copy, DeadMessage, digest_of, to_json
from saga.dlq.states import LetterState
from saga.dlq.tables import chunks, copies, letters
from saga.runtime.messaging.dead_letters import key_of

_KNOWN: Final = tuple(each.name for each in fields(DeadMessage) if each.name in letters.c)
"""What a letter's row has from its first copy."""
_OF_LAST_FAILURE: Final = (
    *("queue", "reason", "error_type", "error", "fingerprint", "attempts", "replays"),
    "last_failed_at",
)
"""What a letter's row has from its newest copy."""
_CHANGING: Final = (*_OF_LAST_FAILURE, "state", "copies", "copy", "first_failed_at")
_UPDATE_LETTER: Final = (
    letters.update()
    .where(letters.c.number == sa.bindparam("old_number"))
    .values({name: sa.bindparam(name) for name in _CHANGING})
)


def take(connection: Connection, found: Sequence[Copy], now: datetime) -> int:
    """Keep what one participant's queue held; returns how many copies were not known yet."""
    participant = found[0].participant
    found = _apart(connection, found)
    keys = sorted({copy.key for copy in found})
    known = _by_key(connection, participant, keys)
    fresh: dict[str, Copy] = {}
    for copy in found:
        if copy.key not in known:
            fresh.setdefault(copy.key, copy)
    if fresh:
        connection.execute(letters.insert(), [_row(copy) for copy in fresh.values()])
        known = _by_key(connection, participant, keys)
    numbers = {key: row.number for key, row in known.items()}
    new = _new_copies(connection, found, numbers)
    if not new:
        return 0
    ids = _insert(connection, new, now)
    by_letter: defaultdict[int, list[tuple[Copy, int]]] = defaultdict(list)
    for (number, died), copy in new.items():
        by_letter[number].append((copy, ids[number, died]))
    changes = [
        _changed(known[group[0][0].key], group) | {"old_number": number}
        for number, group in by_letter.items()
    ]
    connection.execute(_UPDATE_LETTER, changes)
    return len(new)


def _insert(
    connection: Connection, new: Mapping[tuple[int, str], Copy], now: datetime
) -> dict[tuple[int, str], int]:
    """Insert copies, keyed as `_new_copies` has them; return their ids, keyed likewise."""
    connection.execute(
        copies.insert(),
        [
            {
                "letter": number,
                "died": died,
                "headers": to_json(copy.headers),
                "properties": to_json(copy.properties),
                "raw": copy.raw,
                "body": copy.body,
                "collected_at": now,
            }
            for (number, died), copy in new.items()
        ],
    )
    ids: dict[tuple[int, str], int] = {}
    for part in chunks({number for number, _ in new}):
        query = sa.select(copies.c.letter, copies.c.died, copies.c.id).where(
            copies.c.letter.in_(part)
        )
        ids.update(((row.letter, row.died), row.id) for row in connection.execute(query))
    return ids


def _apart(connection: Connection, found: Sequence[Copy]) -> list[Copy]:
    """The copies, with another key where the id that a publisher gave is another message's too.

    Of what cannot be decoded, that is all the name there is; nothing else keeps a publisher from
    giving it to all of its messages, each of which is a letter to be replayed.
    """
    named = {copy.key for copy in found if not copy.named_by_event}
    bodies: dict[str, bytes] = {}
    for part in chunks(sorted(named)):
        query = sa.select(letters.c.key, copies.c.body).join(copies, copies.c.id == letters.c.copy)
        of_these = letters.c.participant == found[0].participant, letters.c.key.in_(part)
        bodies.update((row.key, row.body) for row in connection.execute(query.where(*of_these)))
    return [
        copy
        if copy.named_by_event or bodies.setdefault(copy.key, copy.body) == copy.body
        else replace(copy, key=key_of(None, copy.body))
        for copy in found
    ]


def _new_copies(
    connection: Connection, found: Sequence[Copy], numbers: Mapping[str, int]
) -> dict[tuple[int, str], Copy]:
    """Those that are not kept yet, by their letter's number and what tells them apart from its
    other copies: when they died, and where that is the same, what is in them as well."""
    there: dict[tuple[int, str], str | None] = {}
    for part in chunks(numbers.values()):
        query = sa.select(copies.c.letter, copies.c.died).where(copies.c.letter.in_(part))
        there.update(((row.letter, row.died), None) for row in connection.execute(query))
    new: dict[tuple[int, str], Copy] = {}
    for copy in found:
        number = numbers[copy.key]
        first = number, copy.died
        if first in there:
            if there[first] is None:
                there[first] = _digest_in(connection, *first)
            if there[first] == copy.digest:
                continue
            first = number, f"{copy.died} {copy.digest}"
        if first not in there:
            there[first] = copy.digest
            new[first] = copy
    return new


def _digest_in(connection: Connection, number: int, died: str) -> str | None:
    """What is in a copy that is kept; None where too little is known of it to say."""
    query = sa.select(copies.c.raw, copies.c.body).where(
        copies.c.letter == number, copies.c.died == died
    )
    row = connection.execute(query).one()
    return None if row.raw is None else digest_of(row.raw, row.body)


def _changed(row: sa.Row[Any], group: Sequence[tuple[Copy, int]]) -> dict[str, Any]:
    """The letter after these copies of it, each with its id, have come.

    One that was replayed as often as the letter has failed again. One that was replayed less often
    is from before, and says nothing of where the letter stands now.
    """
    values = {name: getattr(row, name) for name in _CHANGING}
    for copy, id in sorted(group, key=lambda item: item[0].last_failed_at):
        values["copies"] += 1
        values["first_failed_at"] = min(values["first_failed_at"], copy.first_failed_at)
        if copy.replays < values["replays"]:
            continue
        if values["state"] in (LetterState.SENDING, LetterState.SENT, LetterState.DONE):
            values["state"] = LetterState.DEAD
        values |= {name: getattr(copy, name) for name in _OF_LAST_FAILURE} | {"copy": id}
    return values


def _row(copy: Copy) -> dict[str, Any]:
    """A letter no copy of which has been counted yet."""
    known = {name: getattr(copy, name) for name in _KNOWN}
    return known | {"state": LetterState.DEAD, "copies": 0, "copy": 0, "note": ""}


def _by_key(
    connection: Connection, participant: str, keys: Sequence[str]
) -> dict[str, sa.Row[Any]]:
    found: dict[str, sa.Row[Any]] = {}
    for part in chunks(keys):
        query = sa.select(letters).where(
            letters.c.participant == participant, letters.c.key.in_(part)
        )
        found.update((row.key, row) for row in connection.execute(query))
    return found
