"""Replays: the letters each was begun with, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.audit import append
from saga.dlq.selection import Selection
from saga.dlq.states import HERE, OPEN, ItemState, LetterState
from saga.dlq.tables import chunks, items, letters, reading, runs
from saga.runtime.kernel.tables import utc_now


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay: what was selected, how it is to be done, and how it ended."""

    number: int
    selection: dict[str, Any]
    settings: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    outcome: str


class Replays:
    """The replays in a store. Any number of commands may use it at the same time; it blocks."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def unfinished(self) -> Replay | None:
        """The replay that was begun and never came to an end."""
        with reading(self._engine) as connection:
            query = sa.select(runs).where(runs.c.ended_at.is_(None)).order_by(runs.c.number)
            row = connection.execute(query).first()
        return _replay(row) if row else None

    def begin(
        self, selection: Selection, numbers: Sequence[int], settings: Mapping[str, Any], why: str
    ) -> Replay:
        """Freeze the selection: these letters, in this order."""
        with self._engine.begin() as connection:
            row = {
                "selection": json.dumps(selection.to_json()),
                "settings": json.dumps(dict(settings)),
                "started_at": utc_now(),
                "outcome": "",
            }
            replay = connection.execute(runs.insert().returning(runs), row).one()
            rows = [
                {
                    "run": replay.number,
                    "letter": number,
                    "position": position,
                    "state": ItemState.WAITING,
                    "detail": "",
                }
                for position, number in enumerate(numbers)
            ]
            if rows:
                connection.execute(items.insert(), rows)
            result = {"run": replay.number, "state": "begun", "letters": len(rows)}
            append(connection, "replay", why, selection.to_json(), result)
        return _replay(replay)

    def end(self, replay: Replay, outcome: str, result: Mapping[str, Any], why: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                runs.update()
                .where(runs.c.number == replay.number)
                .values(ended_at=utc_now(), outcome=outcome)
            )
            append(connection, "replay", why, replay.selection, {"run": replay.number, **result})

    def pause(self, replay: Replay, why: str, result: Mapping[str, Any], reason: str) -> None:
        """It was stopped, and waits to be resumed."""
        summary = {"run": replay.number, "state": "stopped", **result, "stopped": why}
        with self._engine.begin() as connection:
            append(connection, "replay", reason, replay.selection, summary)

    def get(self, number: int) -> Replay | None:
        """The replay of that number, if there is one."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(runs).where(runs.c.number == number)).first()
        return _replay(row) if row else None

    def newest(self, limit: int, before: int | None = None) -> list[Replay]:
        """The newest replays, the newest first; `before` the one of that number."""
        query = sa.select(runs).order_by(runs.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(runs.c.number < before)
        with reading(self._engine) as connection:
            return [_replay(row) for row in connection.execute(query)]

    def page_of(
        self, replay: Replay, limit: int, after: int | None = None
    ) -> list[tuple[int, int, ItemState, str]]:
        """So many letters of a replay that are not done, behind the one in that position: position,
        number, state, and what more is known."""
        query = (
            sa.select(items.c.position, items.c.letter, items.c.state, items.c.detail)
            .where(items.c.run == replay.number, items.c.state != ItemState.DONE)
            .order_by(items.c.position)
            .limit(limit)
        )
        if after is not None:
            query = query.where(items.c.position > after)
        with reading(self._engine) as connection:
            return [(r.position, r.letter, r.state, r.detail) for r in connection.execute(query)]

    def open_items(self, replay: Replay) -> list[tuple[int, ItemState]]:
        """The letters of a replay whose fate is unknown, in order."""
        with reading(self._engine) as connection:
            query = (
                sa.select(items.c.letter, items.c.state)
                .where(items.c.run == replay.number, items.c.state.in_(OPEN))
                .order_by(items.c.position)
            )
            return [(row.letter, row.state) for row in connection.execute(query)]

    def count(self, replay: Replay) -> dict[ItemState, int]:
        with reading(self._engine) as connection:
            query = (
                sa.select(items.c.state, sa.func.count())
                .where(items.c.run == replay.number)
                .group_by(items.c.state)
            )
            return {row[0]: row[1] for row in connection.execute(query)}

    def items_of(self, replay: Replay) -> list[tuple[int, ItemState, str]]:
        with reading(self._engine) as connection:
            query = (
                sa.select(items.c.letter, items.c.state, items.c.detail)
                .where(items.c.run == replay.number)
                .order_by(items.c.position)
            )
            return [(row.letter, row.state, row.detail) for row in connection.execute(query)]

    def of_letter(self, number: int) -> list[tuple[int, datetime, ItemState]]:
        """The replays that a letter was part of: number, start, and what became of it there."""
        with reading(self._engine) as connection:
            query = (
                sa.select(runs.c.number, runs.c.started_at, items.c.state)
                .join(runs, runs.c.number == items.c.run)
                .where(items.c.letter == number)
                .order_by(runs.c.number)
            )
            return [(row.number, row.started_at, row.state) for row in connection.execute(query)]

    def mark_sending(self, replay: Replay, replays: Mapping[int, int]) -> set[int]:
        """Before letters are sent: which of them, and that they will have been replayed so often.

        Returns those that may go: the others are no dead letters any more, they were dealt
        with meanwhile.
        """
        going: set[int] = set()
        with self._engine.begin() as connection:
            for number, count in replays.items():
                turned = connection.execute(
                    letters.update()
                    .where(letters.c.number == number, letters.c.state.in_(HERE))
                    .values(state=LetterState.SENDING, replays=count)
                )
                if turned.rowcount:
                    going.add(number)
            _set_items(connection, replay, going, ItemState.SENDING)
        return going

    def mark_sent(self, replay: Replay, numbers: Collection[int]) -> None:
        """The broker has confirmed these. (One that is dead again already stays dead.)"""
        with self._engine.begin() as connection:
            for part in chunks(numbers):
                connection.execute(
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state == LetterState.SENDING)
                    .values(state=LetterState.SENT)
                )
            _set_items(connection, replay, numbers, ItemState.SENT)

    def mark_items(
        self, replay: Replay, numbers: Collection[int], state: ItemState, detail: str = ""
    ) -> None:
        """What became of letters of the replay; what is done is done for the letter too, and what
        was refused is dead as before."""
        if not numbers:
            return
        turned = {ItemState.DONE: LetterState.DONE, ItemState.REFUSED: LetterState.DEAD}.get(state)
        with self._engine.begin() as connection:
            if turned is not None:
                for part in chunks(numbers):
                    connection.execute(
                        letters.update()
                        .where(
                            letters.c.number.in_(part),
                            letters.c.state.in_((*HERE, LetterState.SENT)),
                        )
                        .values(state=turned)
                    )
            _set_items(connection, replay, numbers, state, detail)


def _replay(row: sa.Row[Any]) -> Replay:
    return Replay(
        row.number,
        json.loads(row.selection),
        json.loads(row.settings),
        row.started_at,
        row.ended_at,
        row.outcome,
    )


def _set_items(
    connection: Connection,
    replay: Replay,
    numbers: Collection[int],
    state: ItemState,
    detail: str = "",
) -> None:
    for part in chunks(numbers):
        connection.execute(
            items.update()
            .where(items.c.run == replay.number, items.c.letter.in_(part))
            .values(state=state, detail=detail)
        )
