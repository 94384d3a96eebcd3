"""What can be told to be wrong with a choreography from its signatures alone.

That each saga ends right over every interleaving is another matter: `saga verify` explores that.
This finds at once what no interleaving could fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from saga.broker.drift import Deviation
from saga.choreography import Choreography, State
from saga.graph.flow import Flow, Node, SourceLine, Step, label
from saga.graph.joins import joins_of, steps_beside
from saga.graph.sagas import extents_of
from saga.message import Command, Event, Priority, Role, versions_of
from saga.runtime.messaging.definitions import Definitions
from saga.runtime.messaging.topology import EVENTS_EXCHANGE

RULES: Final = {
    "unpublished": "Every event that is reacted to is published by a participant.",
    "publisher": "Every published event names the participant that publishes it, the only one.",
    "sender": "Every command that participants send names them as its `senders`, and no others.",
    "unconsumed": "Every published event is reacted to by a participant, or `final`, or `private`.",
    "unreached": "Every reaction can be reached from a command, or from what is due after one.",
    "pending": "What a command begins, and ends well, is ended by what is due at the latest.",
    "failure": "Every failure leads to a cancellation.",
    "effect": "After every cancellation, each participant that had an effect comes to undo it.",
    "undoes": "What is undone is an effect, and what undoes is a compensation.",
    "cycle": (
        "Every cycle has a guard: a reaction that may decide on nothing, and whose state evolves, "
        "so that it can tell the second time from the first."
    ),
    "join": (
        "Every leg of a join can complete it, and can wait for the others by keeping a private "
        "fact, so that whichever comes last finds them all."
    ),
    "version": (
        "Every older version of an event, and of a command between participants, has a class with "
        "an upcaster, and every reaction takes the newest."
    ),
    "permission": "Every participant's user on the broker may publish what its reactions may.",
}
"""What is asked of every choreography, by the rule's name."""
DRIFT: Final = "drift"
"""The rule that takes a live broker: it holds what the signatures ask for, and nothing else."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What breaks a rule, and where: `name` is the function's or the class's."""

    rule: str
    source: SourceLine | None
    name: str
    message: str

    def __str__(self) -> str:
        where = f"{self.source} {self.name}" if self.source else self.name
        return f"{where}: {self.message} [{self.rule}]"

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "file": self.source.file if self.source else None,
            "line": self.source.line if self.source else None,
            "function": self.name,
            "message": self.message,
        }


def check(choreography: Choreography, broker: Definitions) -> list[Finding]:
    """Everything that breaks one of the `RULES`, by place in the code.

    `broker` is what a broker is to hold; the permissions in it are what `permission` looks at.
    """
    flow = Flow(choreography)
    findings = [
        *_unpublished(flow),
        *_publishers(flow),
        *_senders(flow),
        *_unconsumed(flow),
        *_unreached(flow),
        *_pending(flow),
        *_failures(flow),
        *_effects(flow),
        *_undoes(flow),
        *_cycles(flow),
        *_joins(flow),
        *_versions(flow),
        *_permissions(flow, broker),
    ]
    return sorted(findings, key=_place)


def drifted(choreography: Choreography, differences: Iterable[Deviation]) -> list[Finding]:
    """A live broker's differences, each at the reaction it concerns first, where there is one."""
    flow = Flow(choreography)
    return [
        Finding(
            DRIFT,
            step.source if step else None,
            step.reaction.name if step else "broker",
            f"{difference.kind} {difference.name}: expected {difference.expected}, "
            f"found {difference.found}; see `saga topology diff`",
        )
        for difference in differences
        for step in [concerned(flow, difference.name)]
    ]


def _place(finding: Finding) -> tuple[str, int, str]:
    source = finding.source
    return (source.file, source.line, finding.rule) if source else ("", 0, finding.rule)


def _at(rule: str, step: Step, message: str) -> Finding:
    return Finding(rule, step.source, step.reaction.name, message)


def _unpublished(flow: Flow) -> Iterator[Finding]:
    for event in flow.choreography.events:
        if not flow.publishers(event):
            for step in flow.takers(event):
                yield _at(
                    "unpublished", step, f"reacts to {event.type}, which no participant publishes"
                )


def _publishers(flow: Flow) -> Iterator[Finding]:
    for event in flow.choreography.events:
        for step in flow.publishers(event):
            if event.publisher is None and not event.private:
                yield _at(
                    "publisher",
                    step,
                    f"publishes {event.type}, which names no `publisher`: its readers would "
                    f"believe every source; let it be {step.participant.name!r}",
                )
            elif event.publisher not in (None, step.participant.name):
                yield _at(
                    "publisher",
                    step,
                    f"publishes {event.type}, whose `publisher` is {event.publisher!r}: its "
                    f"readers would refuse it",
                )


def _senders(flow: Flow) -> Iterator[Finding]:
    for command in flow.choreography.commands:
        senders = flow.publishers(command)
        for step in senders:
            if step.participant.name not in command.senders:
                yield _at(
                    "sender",
                    step,
                    f"sends {command.type}, whose `senders` are {_names(command.senders)}: "
                    f"{_receiver(flow, command)} would refuse it; name {step.participant.name!r}",
                )
        names = {step.participant.name for step in senders}
        if strangers := [name for name in command.senders if name not in names]:
            yield Finding(
                "sender",
                SourceLine.of(command),
                command.__name__,
                f"names {_names(strangers)} among its `senders`, whose reactions do not send it",
            )
    for command in flow.given:
        if command.senders:
            yield Finding(
                "sender",
                SourceLine.of(command),
                command.__name__,
                f"names {_names(command.senders)} as its `senders`, but no reaction sends it",
            )


def _receiver(flow: Flow, command: type[Command]) -> str:
    return flow.takers(command)[0].participant.name


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _unconsumed(flow: Flow) -> Iterator[Finding]:
    for event in flow.choreography.events:
        if not (event.final or event.private or flow.takers(event)):
            for step in flow.publishers(event):
                yield _at(
                    "unconsumed",
                    step,
                    f"publishes {event.type}, which no participant reacts to; "
                    f"mark it `final` if none needs to",
                )


def _unreached(flow: Flow) -> Iterator[Finding]:
    reached = flow.reachable_in_time(flow.given)
    for participant in flow.choreography.participants:
        steps = [step for step in flow.steps if step.participant is participant]
        if not any(step in reached for step in steps):
            for step in steps[:1]:
                yield _at(
                    "unreached", step, f"nothing that {participant.name} reacts to ever happens"
                )
            continue
        for step in steps:
            if step not in reached:
                yield _at(
                    "unreached",
                    step,
                    f"{step.reaction.consumes.__name__} never comes: no command from outside leads "
                    f"to it",
                )


def _pending(flow: Flow) -> Iterator[Finding]:
    for command in flow.given:
        saga = flow.reachable_in_time([command])
        ends = _ends(saga)
        due = [kind for kind in flow.dues if kind in saga]
        if not any(end.role is Role.COMPLETION for end in ends):
            continue  # All is well unless it is cancelled: it may rest as it is.
        if any(_ends(flow.reachable([kind])) for kind in due):
            continue
        for step in flow.takers(command):
            if not all(_ends([kind]) for kind in flow.following.get(step, ())):  # else: at once
                yield _at(
                    "pending",
                    step,
                    f"begins what ends with {' or '.join(sorted(end.type for end in ends))}, and "
                    f"nothing that is due leads there: where an event never comes, it is pending "
                    f"for ever; let the {step.reaction.own.__name__} say by `due` what ends it, "
                    f"and when",
                )


def _failures(flow: Flow) -> Iterator[Finding]:
    for event in flow.choreography.events:
        if event.role is Role.FAILURE and not _cancellations(flow.reachable([event])):
            for step in flow.publishers(event):
                yield _at(
                    "failure",
                    step,
                    f"{event.type} is a failure, but leads to no cancellation: what was done "
                    f"before it stays done",
                )


def _effects(flow: Flow) -> Iterator[Finding]:
    sagas = [extent.nodes for extent in extents_of(flow)]
    for effect in flow.choreography.events:
        if effect.role is not Role.EFFECT:
            continue
        for cancellation in _cancellations(flow.choreography.events):
            if not any(effect in saga and cancellation in saga for saga in sagas):
                continue
            after = flow.reachable([cancellation, *flow.sent_with(cancellation)])
            undone_by = {
                step.participant
                for step in flow.steps
                if step in after
                and any(_is_among(effect, kind.undoes) for kind in step.reaction.publishes)
            }
            for step in flow.publishers(effect):
                if step.participant not in undone_by:
                    yield _at(
                        "effect",
                        step,
                        f"{effect.type} is an effect, but {cancellation.type} does not lead "
                        f"{step.participant.name} to publish anything that undoes it",
                    )


def _undoes(flow: Flow) -> Iterator[Finding]:
    for event in flow.choreography.events:
        source = SourceLine.of(event)
        for undone in event.undoes:
            if undone.role is not Role.EFFECT:
                message = f"undoes {undone.type}, whose role is {undone.role}, not effect"
                yield Finding("undoes", source, event.__name__, message)
        if event.undoes and event.role is not Role.COMPENSATION:
            message = f"undoes something, but its role is {event.role}, not compensation"
            yield Finding("undoes", source, event.__name__, message)


def is_guard(step: Step) -> bool:
    """Whether a reaction can bring a cycle to a stop: it may decide on nothing, and has a state
    that evolves to tell it when. Of one in another language that is unknown here."""
    if step.participant.foreign:
        return False
    return step.reaction.may_do_nothing and step.reaction.own.evolve is not State.evolve


def _cycles(flow: Flow) -> Iterator[Finding]:
    following = {
        node: [after for after in heads if not (isinstance(after, Step) and is_guard(after))]
        for node, heads in flow.following.items()
        if not (isinstance(node, Step) and is_guard(node))
    }
    told: set[Node] = set()
    for step in flow.steps:
        cycle = _way_back(step, following)
        if cycle and told.isdisjoint(cycle):
            told.update(cycle)
            yield _at(
                "cycle",
                step,
                f"goes round for ever: {' → '.join(map(label, cycle))} → {label(step)}; let one of "
                f"these reactions decide on nothing where its state says that it is done",
            )


def _way_back(start: Node, following: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """The shortest way from a node to itself; empty if there is none."""
    before: dict[Node, Node] = {}
    waiting = [start]
    for node in waiting:  # grows
        for after in following.get(node, ()):
            if after == start:
                way = [node]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if after not in before:
                before[after] = node
                waiting.append(after)
    return []


def _joins(flow: Flow) -> Iterator[Finding]:
    for join in joins_of(flow):
        completed = join.completes.type
        if len(join.legs) == 1:
            (leg,) = join.legs
            kept = _either(kind.type for kind in leg.keeps)
            yield _at(
                "join",
                leg.step,
                f"keeps {kept} until {completed}, but no other reaction of "
                f"{join.participant.name} returns that: what it waits for would complete nothing; "
                f"let that return {completed}, too, or, if messages are counted here, return "
                f"{kept} beside it",
            )
        else:
            yield from (_cannot_wait(leg.step, completed) for leg in join.legs if not leg.keeps)
        for step in steps_beside(flow, join.participant, join.state):
            kept_too = {kind.type for kind in step.reaction.publishes} & join.keeps
            if kept_too and all(leg.step is not step for leg in join.legs):
                yield _at(
                    "join",
                    step,
                    f"keeps {_either(sorted(kept_too))}, but cannot complete {completed}: coming "
                    f"last, it would leave the others waiting; let it return {completed}, too",
                )


def _cannot_wait(step: Step, completed: str) -> Finding:
    if step.reaction.may_do_nothing:
        said = (
            f"is a leg of {completed}, but keeps nothing: coming first, it would be forgotten; let "
            f"it return a private fact where it has to wait"
        )
    else:
        said = (
            f"is a leg of {completed}, but cannot wait for the others; let it return a private "
            f"fact where one is missing"
        )
    return _at("join", step, said)


def _either(types: Iterable[str]) -> str:
    return " or ".join(types)


def _versions(flow: Flow) -> Iterator[Finding]:
    for message in flow.choreography.recorded:
        versions = versions_of(message)
        newest = max(versions)
        for number in range(1, newest):
            old = versions.get(number)
            if old is None:
                yield Finding(
                    "version",
                    SourceLine.of(versions[newest]),
                    versions[newest].__name__,
                    f"version {number} of {message.type} has no class, so what was published of it "
                    f"cannot be read any more",
                )
            elif old.upcast in (Event.upcast, Command.upcast):
                said = f"version {number} of {message.type} has no upcaster; {newest} is the newest"
                yield Finding("version", SourceLine.of(old), old.__name__, said)
        for step in flow.takers(message):
            taken = step.reaction.consumes
            if issubclass(taken, Event | Command) and taken.version != newest:
                yield _at(
                    "version",
                    step,
                    f"takes version {taken.version} of {message.type}, but is never given it: "
                    f"messages are upcast to version {newest} when they are read",
                )


def _permissions(flow: Flow, broker: Definitions) -> Iterator[Finding]:
    for step in flow.steps:
        user = step.participant.name
        for kind in step.reaction.emits:
            keys = [f"{kind.type}.{priority}" for priority in Priority]
            if not all(_permitted(broker, user, key) for key in keys):
                yield _at(
                    "permission",
                    step,
                    f"may publish {kind.type}, but the broker does not let the user {user}: "
                    f"run `make generate`, then `saga topology apply`",
                )


def _permitted(broker: Definitions, user: str, key: str) -> bool:
    """Whether a user may publish to the events' exchange under a routing key, as RabbitMQ decides:
    a permission is a regular expression that may match anywhere, and a topic permission that is not
    there forbids nothing."""
    writes = [p["write"] for p in broker.get("permissions", ()) if p["user"] == user]
    topics = [
        p["write"]
        for p in broker.get("topic_permissions", ())
        if p["user"] == user and p["exchange"] == EVENTS_EXCHANGE
    ]
    return any(re.search(write, EVENTS_EXCHANGE) for write in writes) and (
        not topics or any(re.search(topic, key) for topic in topics)
    )


def concerned(flow: Flow, name: str) -> Step | None:
    """The reaction that something on the broker is there for: to the event that a binding names, or
    the first of the participant whose queue or user it is."""
    words = re.split(r"[ .]", name)
    for step in flow.steps:
        taken = step.reaction.consumes
        queue_of = step.participant.name in words
        if queue_of and issubclass(taken, Event | Command) and taken.type in name:
            return step
    return next((step for step in flow.steps if step.participant.name in words), None)


def _ends(nodes: Iterable[Node]) -> list[type[Event]]:
    return [
        node
        for node in nodes
        if not isinstance(node, Step) and issubclass(node, Event) and node.role.terminal
    ]


def _cancellations(nodes: Iterable[Node]) -> list[type[Event]]:
    return [
        node
        for node in nodes
        if not isinstance(node, Step) and issubclass(node, Event) and node.role is Role.CANCELLATION
    ]


def _is_among(event: type[Event], kinds: Iterable[type[Event]]) -> bool:
    return any(kind.type == event.type for kind in kinds)
