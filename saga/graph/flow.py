"""The flow of the choreography: messages and reactions, who leads to whom, and on which path.

A message leads to the reactions that take it, a reaction to the messages that it may decide on; a
command is one of those that participants send each other, or comes from outside. An intent leads to
the reaction that takes its answer. What is due about a state is a command that the clock gives:
which reaction made it due is for the state to say, so nothing leads to it but time.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Final

from saga.choreography import Choreography, Participant, Reaction, State
from saga.message import Answer, Command, Decided, Event, Intent, Role
from saga.retry import Retry
from saga.wording import counted

CLOCK: Final = "◷"
"""Marks what the clock gives."""


class Path(StrEnum):
    """What a part of the flow belongs to; it follows from the roles of the events."""

    HAPPY = "happy"
    FAILURE = "failure"
    COMPENSATION = "compensation"


_PATHS = {
    Role.STEP: Path.HAPPY,
    Role.EFFECT: Path.HAPPY,
    Role.COMPLETION: Path.HAPPY,
    Role.FAILURE: Path.FAILURE,
    Role.CANCELLATION: Path.FAILURE,
    Role.COMPENSATION: Path.COMPENSATION,
}


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A place in the code; `file` is relative to the working directory if it is below it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @classmethod
    def of(cls, thing: Callable[..., Any] | type) -> SourceLine:
        """Where a function or a class is defined."""
        thing = inspect.unwrap(thing)
        file = FilePath(inspect.getsourcefile(thing) or "?")
        code = getattr(thing, "__code__", None)
        line = code.co_firstlineno if code else inspect.getsourcelines(thing)[1]
        if file.is_relative_to(FilePath.cwd()):
            file = file.relative_to(FilePath.cwd())
        return cls(str(file), line)


@dataclass(frozen=True)
class Step:
    """One participant's reaction."""

    participant: Participant
    reaction: Reaction

    @property
    def name(self) -> str:
        return f"{self.participant.name}.{self.reaction.name}"

    @property
    def source(self) -> SourceLine:
        return SourceLine.of(self.reaction.function)

    @property
    def retry(self) -> Retry | None:
        """The policy for what it takes; None for what is not delivered to it by the broker."""
        taken = self.reaction.consumes
        delivered = issubclass(taken, Event) or (issubclass(taken, Command) and taken.intake)
        return self.participant.retry_of(taken) if delivered else None


Node = Step | type[Event] | type[Command] | type[Intent]


class Flow:
    """The graph of a choreography. Events and commands are named by type: each is there in its
    newest version only, whatever version a signature names."""

    def __init__(self, choreography: Choreography) -> None:
        self.choreography = choreography
        self.steps = tuple(
            Step(participant, reaction)
            for participant in choreography.participants
            for reaction in participant.reactions
        )
        self._newest = {message.type: message for message in choreography.recorded}

    @cached_property
    def commands(self) -> tuple[type[Command], ...]:
        """What participants are told, by each other or from outside."""
        taken = _of_kind(Command, (step.reaction.consumes for step in self.steps))
        told = (kind for kind in taken if kind.intake or kind not in self.dues)
        return tuple(dict.fromkeys(map(self._named, told)))

    @cached_property
    def given(self) -> tuple[type[Command], ...]:
        """What participants are told from outside only: here sagas begin."""
        return tuple(c for c in self.commands if c not in self.choreography.commands)

    @cached_property
    def dues(self) -> Mapping[type[Command], type[State]]:
        """What the clock gives, each with the kind of state about which it is due."""
        return {
            command: kind
            for participant in self.choreography.participants
            for kind, commands in participant.dues.items()
            for command in commands
        }

    @cached_property
    def intents(self) -> tuple[type[Intent], ...]:
        """What participants ask the outside."""
        return _of_kind(Intent, (kind for step in self.steps for kind in step.reaction.intends))

    @property
    def nodes(self) -> tuple[Node, ...]:
        given = dict.fromkeys((*self.commands, *self.dues))
        return (*given, *self.choreography.events, *self.intents, *self.steps)

    @cached_property
    def edges(self) -> tuple[tuple[Node, Node], ...]:
        """From each node to each that it leads to."""
        into = [
            (message, step)
            for step in self.steps
            for message in self._leading_to(step.reaction.consumes)
        ]
        out = [
            (step, self._named(result)) for step in self.steps for result in step.reaction.returns
        ]
        return (*into, *dict.fromkeys(out))

    @cached_property
    def following(self) -> Mapping[Node, Sequence[Node]]:
        """What each node leads to at once."""
        return _adjacent(self.edges)

    @cached_property
    def preceding(self) -> Mapping[Node, Sequence[Node]]:
        """What leads to each node at once."""
        return _adjacent((head, tail) for tail, head in self.edges)

    @cached_property
    def in_order(self) -> tuple[Node, ...]:
        """All nodes as the saga comes to them, beginning with what leads furthest."""
        entries = [node for node in self.nodes if not self.preceding.get(node)]
        entries.sort(key=lambda entry: -len(self.reachable([entry])))
        ordered: dict[Node, None] = {}
        for entry in [*entries, *self.nodes]:  # Nothing enters a cycle that stands alone.
            waiting = [entry]
            for node in waiting:  # grows
                if node not in ordered:
                    ordered[node] = None
                    waiting += sorted(
                        self.following.get(node, ()), key=lambda after: _rank(self.path(after))
                    )
        return tuple(ordered)

    @cached_property
    def participants(self) -> tuple[str, ...]:
        """The participants' names, as the saga comes to them."""
        return tuple(
            dict.fromkeys(node.participant.name for node in self.in_order if isinstance(node, Step))
        )

    def home(self, node: Node) -> str:
        """The participant a node is drawn with: an event's is its first publisher, a command's its
        receiver."""
        if isinstance(node, Step):
            return node.participant.name
        beside = [*self.preceding.get(node, ()), *self.following.get(node, ())]
        if issubclass(node, Command):
            beside.reverse()
        return next(step.participant.name for step in beside if isinstance(step, Step))

    def told(self, node: Node) -> str:
        """What a node is, in a line or a few."""
        if isinstance(node, Step):
            return f"{node.reaction.function.__module__}.{node.reaction.name}"
        if (kind := self.due_about(node)) is not None:
            return f"{label(node)}: {inspect.getdoc(node) or ''} {kind.__name__}.due says when."
        return f"{label(node)}: {inspect.getdoc(node) or ''}"

    def due_about(self, node: Node) -> type[State] | None:
        """The kind of state about which a command is due; None for what the clock does not give."""
        if isinstance(node, Step) or not issubclass(node, Command):
            return None
        return self.dues.get(node)

    def publishers(self, message: type[Event] | type[Command]) -> tuple[Step, ...]:
        """The reactions that may publish events of this type, or send such commands."""
        return tuple(
            step
            for step in self.steps
            if any(kind.type == message.type for kind in step.reaction.emits)
        )

    def sent_with(self, event: type[Event]) -> tuple[type[Command], ...]:
        """The commands that some reaction sends together with an event: a coordinator has effects
        undone by them, where others react to the cancellation."""
        together = {
            kind.type
            for step in self.publishers(event)
            for kinds in (*step.reaction.shapes, step.reaction.repeats)
            if any(issubclass(kind, Event) and kind.type == event.type for kind in kinds)
            for kind in kinds
            if issubclass(kind, Command)
        }
        return tuple(c for c in self.choreography.commands if c.type in together)

    def takers(self, message: type[Event] | type[Command]) -> tuple[Step, ...]:
        """The reactions to this message, whatever version of it they name."""
        return tuple(node for node in self.following.get(message, ()) if isinstance(node, Step))

    def reachable(self, starts: Iterable[Node]) -> set[Node]:
        """Everything these lead to, themselves included."""
        reached: set[Node] = set()
        waiting = list(starts)
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting += self.following.get(node, ())
        return reached

    def reachable_in_time(self, starts: Iterable[Node]) -> set[Node]:
        """The same, and everything that comes of what may be due about the states that change."""
        reached = self.reachable(starts)
        while True:
            changed = {
                step.reaction.own
                for step in self.steps
                if step in reached and step.reaction.returns
            }
            due = [command for command, kind in self.dues.items() if kind in changed]
            more = self.reachable([*reached, *due])
            if more == reached:
                return reached
            reached = more

    def path(self, node: Node) -> Path:
        """What a message or a reaction belongs to.

        A reaction goes with what it takes. One to a cancellation is a compensation if it comes to
        undo something; one to a command from outside is a failure if that is all that it can lead
        to; one to answers goes with the happiest of the questions. A command that participants send
        goes with the happiest of its senders, or is a compensation if that is all that comes of it.
        """
        return self._paths[node]

    def edge_path(self, tail: Node, head: Node) -> Path:
        """What the way from one node to the next belongs to."""
        if isinstance(head, Step) and not _is_cancellation(tail):
            return self.path(tail)
        return self.path(head)

    @cached_property
    def _paths(self) -> dict[Node, Path]:
        paths: dict[Node, Path] = {event: _PATHS[event.role] for event in self.choreography.events}
        for step in self.steps:
            taken = step.reaction.consumes
            if issubclass(taken, Event):
                event = self._named(taken)
                undoes = _is_cancellation(event) and self._compensates(step)
                paths[step] = Path.COMPENSATION if undoes else paths[event]
            elif issubclass(taken, Command):
                results = {
                    paths.get(self._named(result))
                    for result in step.reaction.returns
                    if not issubclass(result, Command)
                }
                if self._named(taken) not in self.choreography.commands:
                    paths[step] = Path.FAILURE if results == {Path.FAILURE} else Path.HAPPY
                    paths[self._named(taken)] = paths[step]
                elif results - {None} == {Path.COMPENSATION}:  # Questions go with their step.
                    paths[step] = paths[self._named(taken)] = Path.COMPENSATION
        # Questions lead to answers, and answers to further questions; so do commands.
        passed_on: list[Node] = [*self.intents, *self.choreography.commands]
        for _ in passed_on:
            for message in passed_on:
                by = [paths[step] for step in self.preceding[message] if step in paths]
                if by:
                    paths.setdefault(message, min(by, key=_rank))
            for step in self.steps:
                asked = [paths[i] for i in self.preceding.get(step, ()) if i in paths]
                if step not in paths and asked:
                    paths[step] = min(asked, key=_rank)
        return {node: paths.get(node, Path.HAPPY) for node in self.nodes}

    def _compensates(self, step: Step) -> bool:
        """Whether the step's participant comes to publish a compensation by it, or another one that
        it commands."""
        waiting: list[Node] = [step]
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            for after in self.following.get(node, ()):
                if isinstance(after, Step) or not issubclass(after, Event):
                    waiting.append(after)
                elif after.role is Role.COMPENSATION:
                    return True
        return False

    def _named(self, kind: type[Decided]) -> Any:
        """What goes over the broker by its newest version."""
        return kind if issubclass(kind, Intent) else self._newest.get(kind.type, kind)

    def _leading_to(self, taken: type[Event | Command | Answer]) -> Iterable[Node]:
        if issubclass(taken, Answer):
            return [intent for intent in self.intents if intent.answer is taken]
        return [self._named(taken)]


def _rank(path: Path) -> int:
    return list(Path).index(path)


def label(node: Node) -> str:
    """What a node is called."""
    if isinstance(node, Step):
        return node.name
    return node.__name__ if issubclass(node, Intent) else node.type


def is_private(node: Node) -> bool:
    """Whether a node is a participant's own event."""
    return not isinstance(node, Step) and issubclass(node, Event) and node.private


def _is_cancellation(node: Node) -> bool:
    return not isinstance(node, Step) and issubclass(node, Event) and node.role is Role.CANCELLATION


def _of_kind(kind: Any, among: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(message for message in among if issubclass(message, kind)))


def _adjacent(edges: Iterable[tuple[Node, Node]]) -> dict[Node, list[Node]]:
    adjacent: defaultdict[Node, list[Node]] = defaultdict(list)
    for tail, head in edges:
        adjacent[tail].append(head)
    return dict(adjacent)


def retry_said(retry: Retry) -> str:
    """A policy in a few words: how many calls, and the shortest and longest wait between two."""
    waits = retry.waits_ms
    if not waits:
        return "1 call"
    (first, unit), (last, last_unit) = _duration(waits[0]), _duration(waits[-1])
    if waits[0] == waits[-1]:
        said = f"{last} {last_unit}"
    elif unit == last_unit:
        said = f"{first}–{last} {unit}"
    else:
        said = f"{first} {unit} – {last} {last_unit}"
    return f"{counted(retry.max_calls, 'call')}, {said}"


def _duration(milliseconds: int) -> tuple[str, str]:
    units = ((3_600_000, "h"), (60_000, "min"), (1_000, "s"))
    size, unit = next((u for u in units if milliseconds >= u[0]), units[-1])
    return f"{milliseconds / size:g}", unit
