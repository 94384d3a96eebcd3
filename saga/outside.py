"""Whom a participant asks, said once: for the checker, the simulation, the books and a rebuild.

An outside's rules are pure: a question changes its books, and how it decides on something new is
given. So the same adapter that puts questions to the real one puts them to a `Desk`, in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from saga.choreography import State
from saga.errors import Explained
from saga.message import Answer, Ask, Intent
from saga.retry import TransientError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from saga.personal.persons import Persons

B = TypeVar("B")
T = TypeVar("T")


class OutsideError(Explained):
    """An outside's books cannot be read, or it cannot be asked in memory. Names it and the way
    out."""


@dataclass
class Desk(Generic[B]):
    """An outside in memory: its books, and what it decides where a question is new to it.

    `said` is how it took the last question, in a word or two; by default its decision.
    """

    books: B
    decision: Any
    said: str = ""

    async def hear(self, question: Callable[[], T], told: Callable[[], str] = str) -> T:
        """What `question` comes to, asked where the outside is: here and at once, by default. An
        adapter that opens sealed values, for which it may have to wait, works on the desk only in
        such a question. `told` gives what the outside reads in clear."""
        return question()


class AwayDesk(Desk[B]):
    """An outside that fails: as soon as it is asked, or once it is `done` with the question."""

    def __init__(self, books: B, decision: Any, error: Exception, *, done: bool) -> None:
        self.error = error
        self.done = done
        self.kept = books
        self.decision = decision
        self.said = ""

    @property
    def books(self) -> B:
        if not self.done:
            raise self.error
        return self.kept

    @books.setter
    def books(self, books: B) -> None:
        self.kept = books
        raise self.error


class Memory(Protocol):
    """What an outside remembers of what a participant asked it. Looked up, never asked."""

    @property
    def keys(self) -> Collection[str]:
        """The subjects that anything was ever asked about."""
        ...

    def asked(self, state: State) -> Intent | None:
        """The question that was asked about a state's subject and that no event of the participant
        tells of; None if there is none."""
        ...

    def taken_back(self, state: State) -> Intent | None:
        """The question by which a state that is in the middle of one is left to its subject's
        cancellation, because what the outside gave was given back since; None if it was not."""
        ...

    def contradiction(self, state: State) -> str | None:
        """What the outside did that cannot be, by what the participant said."""
        ...


@dataclass(frozen=True, slots=True)
class ErasureRequest:
    """A person to be forgotten, as an outside knows them."""

    values: Mapping[str, str]
    """Keyed by what they are called in clear: its sealed form, which takes its place. Empty where
    the key was destroyed before the outside was told."""
    references: Collection[str]
    """All sealed forms that the outside may know them by."""
    subjects: Collection[str]
    """What was done for them."""
    folder: Path
    """The system's data folder."""
    books_url: str | None
    """Where the outside keeps its books, if it keeps any."""
    papers: Collection[Path] = ()
    """The files and folders in which it keeps anything else; see `Outside.papers`."""


Doubt = Callable[["Connection", Collection[str], str], int]
"""Notes about so many subjects why it is not known what was asked; see `Outside.doubt`."""


@dataclass(frozen=True)
class Outside(Generic[B]):
    """One outside.

    `ask` puts intents to a desk as the service puts them to the real one. `read` reads the real
    one's books; one that keeps none says why in `no_books`, and what then takes their place.
    """

    name: str
    asked_by: str
    """The participant's name."""
    blank: B
    """Its books at the beginning: immutable and hashable, of a type of their own."""
    decisions: tuple[Any, ...]
    """All it may decide on something new, the usual one first."""
    ask: Callable[[Desk[B]], Mapping[type[Intent], Ask]]
    opens: Callable[[Desk[B], Persons], Mapping[type[Intent], Ask]] | None = None
    """The same where personal data is sealed, for one that is told whom something is about: as the
    service opens that at the last moment, by the key store that it asks. It works on the desk only
    in what that is asked to `hear`."""
    fails: tuple[type[Exception], ...] = (TransientError,)
    """What a question may end with besides an answer: its message is tried again, or dead. Of an
    outside that is idempotent, the checker has every question end with each of them, too, before it
    has its effect and after: the adapter must let that through."""
    idempotent: bool = True
    """Whether the same question, asked again, has no second effect and gets the same answer."""
    read: Callable[[str], B] | None = None
    """Reads its books at a URL; blocks. Raises `OutsideError`."""
    setting: str | None = None
    """The service's setting that holds that URL."""
    file: str | None = None
    """By default its books are in this SQLite file in the data folder."""
    no_books: str = ""
    traces: Callable[[Path], Collection[str]] | None = None
    """What a system's data folder tells of the subjects that it may have been asked about. Blocks.
    Raises `OSError`."""
    doubt: Doubt | None = None
    """For one that is not idempotent: notes in the database of `asked_by` that it may have been
    asked about these subjects already, and why that is not known, so that an operator decides
    before it is asked again. Returns of how many that is so."""
    memory: Callable[[B], Memory] | None = None
    """What its books tell of questions that no event tells of."""
    papers: Callable[[Path], Collection[Path]] | None = None
    """Where else it keeps what it was told, for a system with that data folder: files and folders
    that the search for a forgotten person has to look through."""
    forget: Callable[[ErasureRequest], int] | None = None
    """Takes what an operator is called in clear out of its books and its papers, so that no byte of
    it is left, and the books add up as before. Returns in how many places it was; blocks. None for
    one that only people can ask for that. Raises `OutsideError`, `OSError` and what databases
    raise."""

    @cached_property
    def intents(self) -> frozenset[type[Intent]]:
        """The questions it takes."""
        return frozenset(self.ask(Desk(self.blank, self.decisions[0])))

    def hear(self, books: B, intent: Intent, decision: Any) -> tuple[Answer, B, str]:
        """The answer to a question, the books after it, and how it was taken. Raises what the
        question ends with, and `OutsideError` if the adapter waits for something."""
        desk = Desk(books, decision)
        answer = at_once(self.ask(desk)[type(intent)](intent), self.name)
        return answer, desk.books, desk.said or str(decision)

    def hear_in_vain(self, books: B, intent: Intent) -> Iterator[tuple[Answer, B, str]]:
        """What the participant takes for an answer, the books after it, and how it came about,
        where the outside fails in each of its ways: nothing, as long as the adapter lets that
        through. Raises what else the question ends with."""
        for kind in self.fails:
            for done in (False, True):
                error = kind.__new__(kind, f"{self.name} is away")
                desk = AwayDesk(books, self.decisions[0], error, done=done)
                try:
                    answer = at_once(self.ask(desk)[type(intent)](intent), self.name)
                except self.fails:
                    continue
                said = f"{kind.__name__}, {'when all' if done else 'before anything'} is done"
                yield answer, desk.kept, said


def at_once(question: Awaitable[Answer], name: str) -> Answer:
    """The answer to a question that waits for nothing."""
    waiting = question.__await__()
    try:
        next(waiting)
    except StopIteration as answered:
        answer: Answer = answered.value
        return answer
    raise OutsideError(
        f"asking {name} in memory waited for something; let its adapter only work on the desk"
    )
