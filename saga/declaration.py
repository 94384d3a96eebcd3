"""What a domain says of its saga as a whole: all that no single participant may know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saga.choreography import Choreography, ChoreographyError, Observer, Participant, State
from saga.load import OWN_COMMANDS
from saga.message import Command, Event, Intent, Priority
from saga.outside import Outside
from saga.view import Broken, Invariant, View, Violation

if TYPE_CHECKING:
    from saga.archive.view import SubjectView
    from saga.load.plan import Load


class SagaError(ChoreographyError):
    """A declaration that contradicts itself. Names what, and the way out."""


def _always(_: View) -> bool:
    return True


def _anything(_: View) -> Iterable[Violation]:
    return ()


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A command that may be given to a participant at any time and any number of times, or never.

    `at` is the time then. It is given only `when` the participant's own states allow it, and
    `then` says what is wrong with them afterwards. Only one that says `at_rest` may change anything
    once all that was sent is done: an operator who decides what was left to them.
    """

    name: str
    participant: str
    command: Command
    at: datetime
    when: Callable[[View], bool] = _always
    then: Callable[[View], Iterable[Violation]] = _anything
    at_rest: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world in which `saga verify` tries everything that can happen."""

    name: str
    sent: Sequence[tuple[str, Command | Event]]
    """The messages on their way at the beginning, each with the participant it goes to. Like all
    others they may arrive twice or late; at rest they have arrived."""
    moments: Sequence[datetime]
    """The times an event may be reacted to by a reaction that asks for `now`; any other is called
    at the first of them."""
    starts: Mapping[str, Sequence[tuple[str, Command]]] = field(default_factory=lambda: {"": ()})
    """How it may begin, by name: the commands each participant has carried out before."""
    stimuli: Sequence[Stimulus] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """What subjects are called in schedules."""
    only: Collection[str] | None = None
    """The participants that take part; None for all of them."""
    without: Collection[str] = ()
    """Participants that take no part; another scenario should have them."""
    always: tuple[Callable[..., Iterable[Broken]], ...] = ()
    at_rest: tuple[Callable[..., Iterable[Broken]], ...] = ()
    """Invariants that hold only here, beside those of the saga."""
    influential: bool = False
    """Whether participants are left out whose messages no other takes, and that take no commands of
    others: they cannot change what becomes of others, and a smaller scenario is enough to see
    what they do."""
    decisions: Mapping[str, Collection[Any]] = field(default_factory=dict)
    """Keyed by outside: what it may decide here; any other may decide anything. For a world that is
    too large otherwise; another scenario should have the rest."""
    timers_last: bool = False
    """Whether what is due is done only once all that was sent is: a world in which time is not what
    is tried, and which is much smaller."""
    priorities: Mapping[str, Priority] = field(default_factory=dict)
    """Keyed by subject: how what comes from outside about it travels; what is not here is normal.
    All events about these have to travel like that, what is due as well (`Due.priority`)."""


@dataclass(frozen=True, slots=True)
class PersonsChoice:
    """What an operator may decide about a subject that a rule of `for_people` names.

    `paths` are of the participant's own HTTP, by what each does: the decision is a POST there, with
    no body, and `{subject}` stands for the subject. The service refuses what is not for an operator
    to decide. `commands` are, by the same names, what the service then gives itself about a
    subject: the simulation decides by these.
    """

    rule: str
    participant: str
    paths: Mapping[str, str]
    commands: Mapping[str, Callable[[str], Command]] = field(default_factory=dict)

    def path(self, way: str, subject: str) -> str:
        return self.paths[way].replace("{subject}", quote(subject, safe=""))


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """How a saga that is open is ended before its time, where whom it is for is to be forgotten: a
    POST to a participant's own HTTP, with no body, where `{subject}` stands for the subject. The
    service refuses it (409) once it has ended by itself. `command` is what the service then gives
    itself about a subject: the simulation ends by it."""

    participant: str
    path: str
    command: Callable[[str], Command] | None = None

    def path_for(self, subject: str) -> str:
        return self.path.replace("{subject}", quote(subject, safe=""))


@dataclass(frozen=True)
class Saga:
    """A saga: its participants, whom they ask, what must hold, and how that is tried.

    `always` holds at any moment, `at_rest` for what nothing more will happen to by itself. What
    follows from the roles of events need not be said (`saga.rules`).
    """

    name: str
    participants: tuple[Participant, ...]
    observers: tuple[Observer, ...] = ()
    subject: type[State] | None = None
    """The state whose life the saga is."""
    outside: tuple[Outside[Any], ...] = ()
    always: tuple[Callable[..., Iterable[Broken]], ...] = ()
    at_rest: tuple[Callable[..., Iterable[Broken]], ...] = ()
    for_people: tuple[Callable[..., Iterable[Broken]], ...] = ()
    """Written like invariants: what is right, and waits for an operator's decision."""
    choices: tuple[PersonsChoice, ...] = ()
    """What an operator may decide about what these name, and where."""
    early_end: EarlyEnd | None = None
    """How a saga is ended early when its person is to be forgotten; without it, forgetting waits
    for the saga's end."""
    scenarios: tuple[Scenario, ...] = ()
    load: Load | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    """Its own `publish` and `demo`, in the place of the engine's: by name, `module:function`, a
    function as typer takes it."""
    view: SubjectView[Any] | None = None
    """What the archive shows of a subject beside what it shows of any saga's."""

    def __post_init__(self) -> None:
        names = {participant.name for participant in self.participants}
        for outside in self.outside:
            if outside.asked_by not in names:
                raise SagaError(
                    f"{self.name}: the outside {outside.name!r} is asked by {outside.asked_by!r}, "
                    f"which is no participant; name one of {', '.join(sorted(names))}"
                )
        for what, many in (
            ("outsides", [outside.name for outside in self.outside]),
            ("types of books", [type(outside.blank).__name__ for outside in self.outside]),
            ("scenarios", [scenario.name for scenario in self.scenarios]),
            ("invariants", [invariant.name for invariant in self.invariants]),
        ):
            if twice := sorted({name for name in many if many.count(name) > 1}):
                raise SagaError(f"{self.name}: two {what} are called {', '.join(twice)}")
        if strange := sorted(self.commands.keys() - {*OWN_COMMANDS}):
            raise SagaError(
                f"{self.name}: `commands` has {', '.join(strange)}; a saga may have its own "
                f"{' and '.join(OWN_COMMANDS)}"
            )
        if self.early_end is not None and self.early_end.participant not in names:
            raise SagaError(
                f"{self.name}: it is to be ended early by {self.early_end.participant!r}, which is "
                f"no participant; name one of {', '.join(sorted(names))}"
            )
        rules = {invariant.name for invariant in self.left_to_people}
        for choice in self.choices:
            if choice.rule not in rules or choice.participant not in names:
                raise SagaError(
                    f"{self.name}: a choice is about {choice.rule!r} in {choice.participant!r}; "
                    f"name a rule of `for_people` and a participant"
                )
            if strange := sorted(choice.commands.keys() - choice.paths.keys()):
                raise SagaError(
                    f"{self.name}: a choice about {choice.rule!r} has commands for "
                    f"{', '.join(strange)}, and no path; its ways are {', '.join(choice.paths)}"
                )
        for invariant in (*self.invariants, *self.left_to_people):
            self._check(invariant)

    def _check(self, invariant: Invariant) -> None:
        """Whether there is anything of what an invariant reads."""
        states = {kind for p in self.participants for kind in p.states}
        strangers: list[type] = [
            kind
            for kind in invariant.states
            if not any(issubclass(known, kind) or issubclass(kind, known) for known in states)
        ]
        for kind in invariant.states:
            if len(several := [s.__name__ for s in states if issubclass(s, kind)]) > 1:
                raise SagaError(
                    f"{invariant.where} reads States[{kind.__name__}], which is several kinds at "
                    f"once: {', '.join(sorted(several))}; name the one that it is about"
                )
        types = {event.type for event in self.choreography.events}
        strangers += [kind for kind in invariant.events if kind.type not in types]
        books = {type(outside.blank) for outside in self.outside}
        strangers += [kind for kind in invariant.books if kind not in books]
        if strangers:
            raise SagaError(
                f"{invariant.where} reads {', '.join(kind.__name__ for kind in strangers)}, which "
                f"no participant and no outside of {self.name} has"
            )

    @cached_property
    def choreography(self) -> Choreography:
        """The graph of all participants, and who observes them."""
        return Choreography(self.participants, self.observers)

    @cached_property
    def always_holds(self) -> tuple[Invariant, ...]:
        return tuple(map(Invariant.of, self.always))

    @cached_property
    def holds_at_rest(self) -> tuple[Invariant, ...]:
        return tuple(map(Invariant.of, self.at_rest))

    @cached_property
    def left_to_people(self) -> tuple[Invariant, ...]:
        return tuple(map(Invariant.of, self.for_people))

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (*self.always_holds, *self.holds_at_rest)

    def scenario(self, name: str) -> Scenario:
        """The scenario of that name. Raises `SagaError`."""
        for scenario in self.scenarios:
            if scenario.name == name:
                return scenario
        there_are = ", ".join(repr(scenario.name) for scenario in self.scenarios) or "none"
        raise SagaError(f"{self.name} has no scenario {name!r}; there are {there_are}")

    def answering(self, intent: type[Intent]) -> Outside[Any] | None:
        """The outside that takes such a question; None if none is said to."""
        return next((each for each in self.outside if intent in each.intents), None)

    def asked_by(self, participant: str) -> tuple[Outside[Any], ...]:
        """The outsides that a participant asks."""
        return tuple(each for each in self.outside if each.asked_by == participant)

    def with_(self, *stand_ins: Participant | Outside[Any]) -> Saga:
        """The saga with these in the place of those of the same names, or beside the others."""
        participants = {p.name: p for p in self.participants}
        outside = {each.name: each for each in self.outside}
        for each in stand_ins:
            if isinstance(each, Participant):
                participants[each.name] = each
            else:
                outside[each.name] = each
        return replace(
            self, participants=tuple(participants.values()), outside=tuple(outside.values())
        )

    # --- what is not looked at ------------------------------------------------------------------

    def judged(self, *, really: bool) -> tuple[Invariant, ...]:
        """The invariants that can be judged: all where outsides are simulated, and `really` those
        that read no books but such as can be read."""
        readable = {type(each.blank) for each in self.outside if each.read is not None}
        return tuple(i for i in self.invariants if not really or readable.issuperset(i.books))

    def unwatched(self, *, really: bool = False) -> Iterator[str]:
        """The states and the books that no invariant reads, and the questions that no outside
        takes: whether all is well with them is unknown. On a system that `really` runs,
        only what is `judged` there counts."""
        judged = self.judged(really=really)
        read = {kind for invariant in judged for kind in invariant.states}
        for participant in self.choreography.in_python:
            for kind in participant.states:
                if not any(issubclass(kind, watched) for watched in read):
                    yield f"no invariant reads {kind.__name__} of {participant.name}"
        books = {kind for invariant in judged for kind in invariant.books}
        for outside in self.outside:
            if type(outside.blank) not in books and not (really and outside.no_books):
                yield f"no invariant reads the books of {outside.name}"
        for participant in self.participants:
            for intent in dict.fromkeys(i for r in participant.reactions for i in r.intends):
                if self.answering(intent) is None:
                    yield f"no outside is said to take {intent.__name__} of {participant.name}"

    def elsewhere(self) -> Iterator[str]:
        """Whose databases cannot be read here."""
        for participant in self.choreography.foreign:
            yield f"{participant.name} is in another language: its database cannot be read here"

    def unread(self) -> Iterator[str]:
        """The outsides whose real books nothing reads, without a word why."""
        for outside in self.outside:
            if outside.read is None and not outside.no_books:
                yield f"the books of {outside.name} cannot be read: its declaration has no `read`"
