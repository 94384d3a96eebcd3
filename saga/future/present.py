"""One subject of a running system as the beginning of a model.

Its states are those that its events leave; what is owed to it is still on its way. States that
several subjects share are given by the caller. What the outsides know is what they must have said
for these events to come about. What is not known is never made up: code that needs it meets a
`VerifyError`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from saga.choreography import Choreography, Participant, State
from saga.declaration import Saga, Stimulus
from saga.envelope import Envelope, source_of
from saga.history.debts import Coming, Debt
from saga.history.story import Story
from saga.message import Command, Intent
from saga.outside import Outside, OutsideError
from saga.rules import RULES, Rules
from saga.runtime.kernel.fold import Fold, is_shared
from saga.runtime.kernel.step import Decision, StateId, react
from saga.text import first_line
from saga.verify import ASKED_MAX, Model, VerifyError
from saga.verify.model import Beginning, influential
from saga.wording import counted

START: Final = "as it is"
BOOKS_MAX: Final = 8
"""Ways in which an outside may have come to what it has said, beyond which none is followed."""

SharedStates = Mapping[tuple[str, StateId], State]
"""States about more than one subject, by participant and by what they are about."""


class UnknownState(VerifyError):
    """A state that is about more than one subject, and was not given."""

    def __init__(self, participant: str, state_id: StateId) -> None:
        kind, key = state_id
        super().__init__(
            f"the {kind.__name__} {key!r} of {participant} is about more than this subject, and "
            f"could not be read"
        )
        self.participant = participant
        self.state_id = state_id


@dataclass(frozen=True)
class ModelledSubject:
    """A subject as a model has it."""

    model: Model
    pending: Sequence[tuple[str, Envelope[Any]]]
    """What is on its way: to whom, and the message."""
    coming: Sequence[Coming]
    unjudged: Sequence[str]
    """Rules that are not looked at, since they read more than what is known of one subject."""
    untried: Sequence[str]
    """Types of commands that may be given from outside, whose content is unknown."""
    remarks: Sequence[str]
    """What is taken for granted."""
    shared: Sequence[str] = ()
    """The kinds of states that others may change meanwhile, and whose they are."""

    @property
    def starts(self) -> Sequence[str]:
        return list(self.model.begun)


def shared_keys(graph: Choreography, story: Story) -> dict[tuple[str, type[State]], set[str]]:
    """Keyed by participant and kind: the keys of the states about more than one subject that the
    events about this one concern."""
    found: dict[tuple[str, type[State]], set[str]] = {}
    for participant in graph.in_python:
        fold = story.folds[participant.name]
        own = [fold.find((r.own, story.subject)) for r in participant.reactions]
        for kind in filter(is_shared, participant.states):
            found[participant.name, kind] = {
                key
                for event in story.events.values()
                for state in dict.fromkeys(own)
                for key in kind.keys(event.data, state)
            }
    return found


class SubjectModels:
    """Makes models of one saga's subjects."""

    def __init__(self, saga: Saga) -> None:
        self.saga = saga
        whole = saga.choreography
        kept = influential(whole.participants)
        ends = any(kind.role.terminal for p in kept for kind in p.publishes)
        # Where nothing that ends a saga is taken by a participant, all of them count.
        self.influential = Choreography(kept, partial=True) if ends else whole
        """Those who can change how a saga ends."""
        self._rules: dict[tuple[tuple[str, ...], frozenset[type]], tuple[Rules, Sequence[str]]] = {}
        """Keyed by who takes part, and the types of books that are not known; making rules takes
        longer than applying them."""

    def present(
        self,
        story: Story,
        debts: Sequence[Debt],
        coming: Sequence[Coming],
        shared: SharedStates,
        now: datetime,
        *,
        influential_only: bool = False,
        among: Choreography | None = None,
    ) -> ModelledSubject:
        """The model that begins where the story ends; the debts are those that may still be met.
        With `influential_only`, without those who cannot change how it ends; or only with those
        `among` whom it is to go on.

        Raises `VerifyError` for a story of which something is missing or cannot be read.
        """
        _check_whole(story)
        graph = among or (self.influential if influential_only else self.saga.choreography)
        names = {participant.name for participant in graph.participants}
        pending = [
            (d.participant, d.event)
            for d in debts
            if d.event is not None and d.participant in names
        ]
        overdue = [Coming(d.participant, d.firing, d.answers) for d in debts if d.firing]
        coming = [each for each in (*overdue, *coming) if each.participant in names]
        outsides, books = _outsides(self.saga, graph, story, shared)
        known = {p.name: _known(p, story, shared) for p in graph.participants}
        rules, unjudged = self._applied(
            graph,
            frozenset(type(each.blank) for each in outsides if each.name not in books[0]),
        )
        stimuli, untried = _stimuli(graph, story, now)
        due_at = {each.at for each in coming}
        model = Model(
            name=story.subject,
            source="",
            choreography=graph,
            starts={},
            sent=(),
            stimuli=stimuli,
            moments=(now, *sorted(at for at in due_at if at > now)),
            judge=lambda view, at_rest: rules.judge(view, at_rest=at_rest),
            outside=outsides,
            names={story.subject: ""},
            begun={
                _start(number): Beginning(known, _told(graph, story, pending), each)
                for number, each in enumerate(books)
            },
            unsaid=_unsaid,
        )
        left_out = {p.name for p in self.saga.participants} - names
        if among is not None:
            left_out = set()  # The caller who chose these knows why.
        kinds = sorted({f"{k.__name__} of {name}" for name, (k, _) in shared if name in names})
        remarks = list(_remarks(graph, kinds, outsides, books, left_out))
        return ModelledSubject(model, pending, coming, unjudged, untried, remarks, kinds)

    def _applied(self, graph: Choreography, unread: frozenset[type]) -> tuple[Rules, Sequence[str]]:
        """The rules that can be judged by what is known of one subject; and the names of those that
        cannot."""
        key = tuple(participant.name for participant in graph.participants), unread
        if key not in self._rules:
            left_out = [
                invariant
                for invariant in self.saga.invariants
                if any(map(is_shared, invariant.states)) or not unread.isdisjoint(invariant.books)
            ]
            functions = {invariant.function for invariant in left_out}
            here = replace(
                self.saga,
                always=tuple(f for f in self.saga.always if f not in functions),
                at_rest=tuple(f for f in self.saga.at_rest if f not in functions),
            )
            rules = Rules(here, graph)
            judged = {invariant.name for invariant in (*rules.always, *rules.at_rest)}
            names = [i.name for i in self.saga.invariants if i.name not in judged]
            self._rules[key] = rules, names
        return self._rules[key]

    def judged(self, present: ModelledSubject) -> dict[str, str]:
        """Keyed by name: what each rule says that is judged, in a line."""
        names = {i.name: i for i in self.saga.invariants if i.name not in present.unjudged}
        own = {name: first_line(invariant.function) for name, invariant in names.items()}
        return own | dict(RULES)


def _check_whole(story: Story) -> None:
    if story.holes:
        raise VerifyError(f"the history lacks something: {story.holes[0]}")
    for step in story.steps:
        if step.attributes.key not in story.events:
            raise VerifyError(
                f"this version cannot read {step.attributes.type} {step.attributes.id}, so what it "
                f"has changed is not known"
            )


def _start(number: int) -> str:
    return START if number == 0 else f"{START}, if it came about otherwise ({number + 1})"


def _unsaid(participant: str, state_id: StateId) -> State:
    kind, key = state_id
    if is_shared(kind):
        raise UnknownState(participant, state_id)
    return kind(key)


def _known(participant: Participant, story: Story, shared: SharedStates) -> dict[StateId, State]:
    own = {
        state_id: state
        for state_id, state in story.folds[participant.name].states.items()
        if not is_shared(state_id[0])
    }
    return own | {id: state for (name, id), state in shared.items() if name == participant.name}


def _told(
    graph: Choreography, story: Story, pending: Sequence[tuple[str, Envelope[Any]]]
) -> list[tuple[Envelope[Any], list[str]]]:
    """What was published, with those to whom it is on its way. A corrected copy, which is not
    a fact, only where it is."""
    sources = {source_of(participant.name) for participant in graph.participants}
    receivers: dict[str, list[str]] = {}
    for name, event in pending:
        receivers.setdefault(event.id, []).append(name)
    return [
        (event, receivers.get(event.id, []))
        for event in story.events.values()
        if event.source in sources or event.id in receivers
    ]


def _asked_by_commands(graph: Choreography, outside: Outside[Any]) -> bool:
    """Whether an outside may be asked because of a command that no participant sends."""
    sent = {command.type for command in graph.commands}
    return any(
        issubclass(reaction.consumes, Command)
        and reaction.consumes.type not in sent
        and not outside.intents.isdisjoint(reaction.intends)
        for participant in graph.participants
        for reaction in participant.reactions
    )


def _remarks(
    graph: Choreography,
    kinds: Sequence[str],
    outsides: Sequence[Outside[Any]],
    books: Sequence[Mapping[str, Any]],
    left_out: Collection[str],
) -> Iterator[str]:
    if left_out:
        yield (
            f"without {', '.join(sorted(left_out))}: no participant takes what is published there, "
            f"so it cannot change how this ends"
        )
    if kinds:
        yield (
            f"{', '.join(kinds)}: as the databases have it now, since it is about others, too; "
            f"what these do to it meanwhile is not looked at"
        )
    known = sorted(outside.name for outside in outsides if outside.name in books[0])
    if known:
        yield (
            f"{', '.join(known)}: known by what was answered about this; what others have asked "
            f"for there, and use up, is not looked at"
        )
    for outside in outsides:
        if _asked_by_commands(graph, outside):
            yield (
                f"nothing is being asked of {outside.name} because of a command from outside: no "
                f"event would tell so yet"
            )
        if outside.name not in books[0]:
            yield f"what {outside.name} has answered so far does not follow from the events"
    if len(books) > 1:
        yield (
            f"what the outsides know may have come about in {counted(len(books), 'way')}; all "
            f"are tried"
        )


# --- commands from outside ----------------------------------------------------------------------


def _stimuli(graph: Choreography, story: Story, now: datetime) -> tuple[list[Stimulus], list[str]]:
    """The commands that may be given about the subject and whose content follows from its events,
    and the types of the others."""
    given: list[Stimulus] = []
    others: list[str] = []
    values = {
        name: getattr(event.data, name)
        for event in story.events.values()
        for name in type(event.data).model_fields
    }
    sent = {command.type for command in graph.commands}
    for participant in graph.in_python:
        due = {command for commands in participant.dues.values() for command in commands}
        for kind in participant.by_message:
            if not issubclass(kind, Command) or kind in due or kind.type in sent:
                continue
            command = _made(kind, values, story.subject)
            if command is None:
                others.append(kind.type)
            else:
                name = f"a client gives {kind.type} to {participant.name}"
                given.append(Stimulus(name, participant.name, command, now, at_rest=True))
    return given, sorted(others)


def _made(kind: type[Command], values: Mapping[str, Any], subject: str) -> Command | None:
    """A command about the subject, if all that it has to hold is among these values."""
    fields = kind.model_fields
    wanted = [name for name, field in fields.items() if field.is_required()]
    if not all(name in values for name in wanted):
        return None
    try:
        command = kind(**{name: values[name] for name in wanted})
        return command if command.subject == subject else None
    except (ValidationError, TypeError, ValueError):
        return None


# --- what the outsides know ---------------------------------------------------------------------


class _Unexplained(Exception):
    """No answer of the outsides leads to what a participant has published."""


_AllBooks = Mapping[str, Any]


def _outsides(
    saga: Saga, graph: Choreography, story: Story, shared: SharedStates
) -> tuple[tuple[Outside[Any], ...], list[_AllBooks]]:
    """The outsides, and what they may know by now, in each way that it may have come about. One of
    which that is not known is asked nothing: it raises `OutsideError`."""
    books: list[_AllBooks] = [{}]
    outsides: list[Outside[Any]] = []
    for participant in graph.in_python:
        asked = saga.asked_by(participant.name)
        if not asked:
            continue
        try:
            ways = _Replay(participant, asked, story, _known_shared(participant, shared)).books()
        except (_Unexplained, OutsideError, UnknownState) as error:
            outsides += (_silent(outside, str(error)) for outside in asked)
            continue
        outsides += asked
        books = [{**known, **way} for known in books for way in ways]
        if len(books) > BOOKS_MAX:
            raise VerifyError(
                f"what the outsides know may have come about in more than {BOOKS_MAX} ways"
            )
    return tuple(outsides), books


def _known_shared(participant: Participant, shared: SharedStates) -> dict[StateId, State]:
    return {id: state for (name, id), state in shared.items() if name == participant.name}


def _silent(outside: Outside[Any], why: str) -> Outside[Any]:
    async def refuse(_: Any) -> Any:
        raise OutsideError(
            f"{outside.name} would be asked, and what it has answered so far does not follow from "
            f"the events: {why}"
        )

    asks = dict.fromkeys(outside.intents, refuse)
    return replace(outside, ask=lambda _: asks)


class _Replay:
    """One participant's part of a story once more, to see what it was answered."""

    def __init__(
        self,
        participant: Participant,
        outsides: Sequence[Outside[Any]],
        story: Story,
        shared: Mapping[StateId, State],
    ) -> None:
        self._participant = participant
        self._outsides = outsides
        self._by_id = {event.id: event for event in story.events.values()}
        self._fold = Fold(participant)
        self._shared = shared
        self._fold.states.update(shared)
        own = [e for e in story.events.values() if e.source == source_of(participant.name)]
        self._steps: dict[str | None, list[Envelope[Any]]] = {}
        """Keyed by cause: what was published because of it, in the order of the first of each."""
        for event in sorted(own, key=lambda event: event.sequence or 0):
            self._steps.setdefault(event.causationid, []).append(event)

    def books(self) -> list[_AllBooks]:
        """What the outsides may know in the end. Raises `_Unexplained`."""
        blank: _AllBooks = {outside.name: outside.blank for outside in self._outsides}
        ways = [blank]
        for cause_id, events in self._steps.items():
            cause = self._by_id.get(cause_id or "")
            if cause is not None:
                ways = _distinct(after for way in ways for after in self._after(way, cause, events))
                if not ways:
                    published = " and ".join(event.type for event in events)
                    raise _Unexplained(
                        f"{self._participant.name} has published {published} because of "
                        f"{cause.type}, which its reactions do not lead to from here"
                    )
            elif any(self._may_have_asked(event) for event in events):
                raise _Unexplained(f"what led to {events[0].type} is not in the history")
            for event in events:
                if self._fold.kind_of(event.type) is not None:
                    self._fold.take(event)
            # These events are in what the databases have of it already.
            self._fold.states.update(self._shared)
        return ways

    def _may_have_asked(self, event: Envelope[Any]) -> bool:
        """Whether an event may have come of an answer."""
        return any(
            type(event.data) in self._participant.by_message[intent.answer].returns
            for reaction in self._participant.reactions
            for intent in reaction.intends
        )

    def _after(
        self, books: _AllBooks, cause: Envelope[Any], events: Sequence[Envelope[Any]]
    ) -> Iterator[_AllBooks]:
        """What the outsides may know once all this was published because of the cause."""
        wanted = tuple(event.type for event in events)
        if type(cause.data) not in self._participant.by_message:
            yield books
            return
        yield from self._answers(books, cause, cause.data, {}, (), wanted, events[-1].time, 0)

    def _answers(
        self,
        books: _AllBooks,
        cause: Envelope[Any],
        message: Any,
        changes: Mapping[StateId, State],
        said: tuple[str, ...],
        wanted: tuple[str, ...],
        now: datetime,
        depth: int,
    ) -> Iterator[_AllBooks]:
        def find(state_id: StateId) -> State:
            found = changes.get(state_id) or self._fold.states.get(state_id)
            return found or _unsaid(self._participant.name, state_id)

        try:
            decision: Decision = react(self._participant, cause, message, find, now)
        except VerifyError:
            raise
        except Exception:  # Whatever a domain raises: this was not the way.
            return
        said += tuple(event.type for event in decision.events)
        if said == wanted:
            # The outside may have been asked more, and will be asked again.
            yield books
        if decision.intent is None or depth > ASKED_MAX or wanted[: len(said)] != said:
            return
        for answer, after in self._heard(books, decision.intent):
            changed = {**changes, **decision.changes}
            yield from self._answers(after, cause, answer, changed, said, wanted, now, depth + 1)

    def _heard(self, books: _AllBooks, intent: Intent) -> Iterator[tuple[Any, _AllBooks]]:
        outside = next((each for each in self._outsides if type(intent) in each.intents), None)
        if outside is None:
            return
        for decision in outside.decisions:
            try:
                answer, after, _ = outside.hear(books[outside.name], intent, decision)
            except OutsideError:
                raise
            except Exception:  # noqa: S112 - it failed, or would not have it: no answer came of it
                continue
            yield answer, {**books, outside.name: after}


def _distinct(ways: Iterable[_AllBooks]) -> list[_AllBooks]:
    found: list[_AllBooks] = []
    for way in ways:
        if way not in found:
            found.append(way)
        if len(found) > BOOKS_MAX:
            break
    return found
