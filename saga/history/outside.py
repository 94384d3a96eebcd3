"""What participants asked their outsides, as far as these remember: it is in no event.

Only looked up, never asked: nothing is done by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from saga.choreography import State
from saga.declaration import Saga
from saga.history import HistoryError
from saga.message import Intent
from saga.outside import Memory, OutsideError


class Remembered:
    """What all outsides of one participant remember, several of which may have been asked about one
    state; see `saga.outside.Memory`."""

    def __init__(self, memories: Sequence[Memory]) -> None:
        self._memories = memories

    @property
    def keys(self) -> Collection[str]:
        return frozenset(key for memory in self._memories for key in memory.keys)

    def asked(self, state: State) -> Sequence[Intent]:
        return [i for m in self._memories if (i := m.asked(state)) is not None]

    def taken_back(self, state: State) -> Sequence[Intent]:
        return [i for m in self._memories if (i := m.taken_back(state)) is not None]

    def contradictions(self, state: State) -> Sequence[str]:
        return [c for m in self._memories if (c := m.contradiction(state))]


def memory_of(saga: Saga, participant: str, urls: Mapping[str, str]) -> Remembered:
    """What the outsides of a participant remember; blocks. `urls` say by name where their books
    are.

    Raises `HistoryError` if that cannot be read, or no way to read it is declared: a question that
    is open would be lost.
    """
    memories: list[Memory] = []
    (asking,) = (p for p in saga.participants if p.name == participant)
    for intent in dict.fromkeys(i for r in asking.reactions for i in r.intends):
        if saga.answering(intent) is None:
            raise HistoryError(
                f"{participant} asks {intent.__name__}, and no outside is said to take that: what "
                f"was asked and not answered yet is in no event; declare an `Outside` with `read` "
                f"and `memory`"
            )
    for outside in saga.asked_by(participant):
        if outside.no_books:
            continue
        if outside.read is None or outside.memory is None:
            raise HistoryError(
                f"{participant} asks {outside.name}, whose books cannot be read for what was asked "
                f"and not answered yet: no event tells it; give its declaration `read` and "
                f"`memory`, or say in `no_books` why there are none"
            )
        url = urls.get(outside.name)
        if url is None:
            raise HistoryError(f"nothing says where {outside.name} keeps its books; add its URL")
        try:
            memories.append(outside.memory(outside.read(url)))
        except (OutsideError, OSError) as error:
            raise HistoryError(str(error)) from error
    return Remembered(memories)
