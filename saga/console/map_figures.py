"""What is written over the map, and beside it as a table: figures, each with a link to what it
counts, and what is wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from saga.archive.traffic import Passing, Traffic
from saga.broker.drift import Deviation
from saga.console.lookout import Compared, SystemSnapshot, Untaken
from saga.console.moments import in_seconds
from saga.console.site import lasting
from saga.graph.check import concerned
from saga.graph.flow import Flow, Node, Step, label
from saga.graph.overlay import Line, LinePart, Overlay
from saga.message import Command, Event, Intent
from saga.runtime.messaging.topology import queues_of, undivided
from saga.status import READY, READY_BUT
from saga.wording import counted

LANE_CHARACTERS: Final = 34
"""Of what a service lacks, what fits below its name; the page of services has the whole."""
SLOWEST_SHOWN: Final = 0.05
"""A second; what comes more seldom is said to do so."""

LetterCounts = Mapping[tuple[str, str], int]
"""Keyed by participant and type of message: how many dead letters."""


@dataclass(frozen=True)
class MapRow:
    """A line of the table: a message or a reaction, and what went by it."""

    name: str
    kind: str
    participant: str
    figures: LinePart
    waited: timedelta | None
    worked: timedelta | None
    again: LinePart | None
    letters: LinePart | None


@dataclass(frozen=True)
class MapFigures:
    """The figures of one moment. `glance` and `compared` are of now, so of the past they are
    None."""

    flow: Flow
    url: Callable[..., str]
    traffic: Traffic
    letters: LetterCounts
    glance: SystemSnapshot | None = None
    compared: Compared | None = None
    untaken: Untaken | None = None
    """What was published and not taken, of now too."""

    @cached_property
    def overlay(self) -> Overlay:
        """What is written over the map."""
        return Overlay(
            nodes={node: self._line(node) for node in self.flow.in_order},
            edges={edge: line for edge in self.flow.edges if (line := self._at_edge(*edge))},
            lanes={name: self._lane(name) for name in self.flow.participants},
            down=self.glance.down if self.glance else (),
            marked=self._marked,
        )

    @cached_property
    def rows(self) -> list[MapRow]:
        """The same as a table: what went by most comes first."""
        rows = [
            (self._passing(node).count, number, self._row(node))
            for number, node in enumerate(self.flow.in_order)
            if isinstance(node, Step) or not issubclass(node, Intent)
        ]
        return [row for _, _, row in sorted(rows, key=lambda row: (-row[0], row[1]))]

    @property
    def per_second(self) -> str:
        """How many messages were recorded."""
        return rate_said(len(self.traffic.excerpt.rows) / self.traffic.excerpt.seconds)

    @property
    def letter_count(self) -> int:
        """All there are, or, where that is not known or of the past, those in `letters`."""
        if self.glance is not None and self.glance.whole:
            return sum(self.glance.status.dead_letters.values())
        return sum(self.letters.values())

    @cached_property
    def deviations(self) -> list[tuple[Deviation, str]]:
        """What the broker holds differently, each with the participant that it concerns, if any."""
        drift = self.compared.drift if self.compared else None
        return [
            (one, step.participant.name if step else "")
            for one in (drift.differences if drift else ())
            for step in [concerned(self.flow, one.name)]
        ]

    # --- one node ---------------------------------------------------------------------------

    def _line(self, node: Node) -> Line:
        """Figures below a name. Of what never goes over the broker, the time that it took."""
        pieces = [self._figures(node), self._again(node), self._dead(node)]
        return [piece for piece in pieces if piece is not None]

    def _row(self, node: Node) -> MapRow:
        passing = self._passing(node)
        kind = "reaction"
        if not isinstance(node, Step):
            kind = "command" if issubclass(node, Command) else "event"
        return MapRow(
            label(node),
            kind,
            self.flow.home(node),
            LinePart(self._rate(node), self._behind(node)),
            passing.waited,
            passing.worked,
            self._again(node),
            self._dead(node),
        )

    def _passing(self, node: Node) -> Passing:
        return self.traffic.nodes.get(node) or Passing()

    def _rate(self, node: Node) -> str:
        return rate_said(self.traffic.per_second(self.traffic.nodes.get(node)))

    def _figures(self, node: Node) -> LinePart:
        passing, rate = self._passing(node), self._rate(node)
        if not passing.count:
            return LinePart(rate, kind="idle")
        took = passing.worked if isinstance(node, Step) else passing.waited
        if not isinstance(node, Step) and issubclass(node, Intent):
            took = passing.worked
        what = "waited" if took is passing.waited else "worked"
        text = rate if took is None else f"{rate} · {briefly(took)}"
        about = f"{label(node)}: {rate}" + (f", {what} {lasting(took)} (median)" if took else "")
        return LinePart(text, self._behind(node), about)

    def _again(self, node: Node) -> LinePart | None:
        if not isinstance(node, Step) or not (again := self._passing(node).again):
            return None
        return LinePart(
            f"{again} again",
            self._behind(node, attempt=2),
            f"{label(node)}: {again} done at another than the first attempt",
            "warn",
        )

    def _dead(self, node: Node) -> LinePart | None:
        if not isinstance(node, Step) or (type_ := _type_of(node.reaction.consumes)) is None:
            return None
        participant = node.participant.name
        dead = self.letters.get((participant, type_))
        if not dead:
            return None
        return LinePart(
            f"{dead} dead",
            self.url("/letters", service=participant, type=type_),
            f"{label(node)}: {counted(dead, 'dead letter')}",
            "bad",
        )

    def _behind(self, node: Node, **more: Any) -> str | None:
        """The page with the messages that a node's figures count."""
        if not self._passing(node).count:
            return None
        if isinstance(node, Step):
            wanted = self._because_of(node)
        elif (type_ := _type_of(node)) in self._recorded:
            wanted = {"type": type_}
        else:  # It is in no archive: what came of it is.
            steps = [step for step in self.flow.following.get(node, ()) if isinstance(step, Step)]
            types = sorted({type_ for step in steps for type_ in self._led_to[step]})
            wanted = {"participant": steps[0].participant.name if steps else None, "type": types}
        return self._messages(**wanted, **more)

    def _because_of(self, step: Step) -> dict[str, Any]:
        """What came of a reaction."""
        wanted: dict[str, Any] = {"participant": step.participant.name, "type": self._led_to[step]}
        taken = _type_of(step.reaction.consumes)
        return {**wanted, "cause": taken} if taken in self._recorded else wanted

    def _messages(self, **wanted: Any) -> str:
        """The page of the messages of the time that the figures are of."""
        excerpt = self.traffic.excerpt
        return self.url(
            "/messages",
            **wanted,
            at=in_seconds(excerpt.until),
            seconds=f"{excerpt.seconds:.3f}".removesuffix(".000"),
        )

    @cached_property
    def _recorded(self) -> frozenset[str]:
        return frozenset(kind.type for kind in self.flow.choreography.recorded)

    @cached_property
    def _led_to(self) -> Mapping[Step, list[str]]:
        """The types of the messages that come of a reaction, through questions too."""
        return {step: sorted(_led_to(self.flow, step)) for step in self.flow.steps}

    # --- one edge ---------------------------------------------------------------------------

    def _at_edge(self, tail: Node, head: Node) -> Line:
        """What went along it, and what waits at its end."""
        pieces: list[LinePart] = []
        if (passing := self.traffic.edges.get((tail, head))) is not None:
            rate = rate_said(self.traffic.per_second(passing))
            about = self._said_of_edge(tail, head, passing)
            pieces.append(LinePart(rate, self._behind_edge(tail, head), about))
        if (waiting := self._waiting_at(tail, head)) is not None:
            pieces.append(waiting)
        return pieces

    def _behind_edge(self, tail: Node, head: Node) -> str:
        """The page with the messages that went along an edge; of what is in no archive, with those
        that came of it."""
        if isinstance(tail, Step):
            wanted = self._because_of(tail)
            if (type_ := _type_of(head)) is not None:
                return self._messages(**{**wanted, "type": type_})
            answered = [
                step for step in self.flow.following.get(head, ()) if isinstance(step, Step)
            ]
            types = sorted({type_ for step in answered for type_ in self._led_to[step]})
            return self._messages(**{**wanted, "type": types})
        if isinstance(head, Step) and (type_ := _type_of(tail)) in self._recorded:
            return self._messages(type=type_, taken_by=head.participant.name)
        return self._messages(**self._because_of(head)) if isinstance(head, Step) else ""

    def _waiting_at(self, tail: Node, head: Node) -> LinePart | None:
        if not isinstance(head, Step) or (type_ := _type_of(tail)) is None or not self.untaken:
            return None
        participant = head.participant.name
        if not (count := self._untaken[participant, type_]):
            return None
        return LinePart(
            f"{count} waiting",
            self.url("/waiting", participant=participant, type=type_),
            f"{participant} has not taken {counted(count, 'message')} of type {type_}",
        )

    @cached_property
    def _untaken(self) -> Mapping[tuple[str, str], int]:
        return self.untaken.messages.counts if self.untaken else Counter()

    def _said_of_edge(self, tail: Node, head: Node, passing: Passing) -> str:
        said = [f"{label(tail)} → {label(head)}: {rate_said(self.traffic.per_second(passing))}"]
        if passing.waited is not None:
            said.append(f"waited {lasting(passing.waited)} (median)")
        if passing.again:
            said.append(f"{passing.again} at another than the first attempt")
        return ", ".join(said)

    # --- one participant --------------------------------------------------------------------

    def _lane(self, participant: str) -> list[Line]:
        """Whether it works, and what waits for it."""
        if self.glance is None:
            return []
        health = self._health(participant, self.glance.status.services.get(participant))
        return [
            [health],
            self._waiting(participant, self.glance),
            self._uncollected(participant, self.glance),
        ]

    def _health(self, participant: str, said: str | None) -> LinePart:
        page = self.url("/services") + "#services"
        if said is None and self.glance is not None and self.glance.at is None:
            return LinePart("being asked", page, f"{participant} is being asked")
        if said is None:
            return LinePart("not asked", page, f"{participant} has no address to be asked at")
        if said == READY:
            return LinePart(READY, page, f"{participant} is ready", "good")
        works = said.startswith(READY_BUT)
        text = said if works else f"down: {said}"
        kind = "warn" if works else "bad"
        return LinePart(_shortened(text), page, f"{participant}: {text}", kind)

    def _waiting(self, participant: str, glance: SystemSnapshot) -> Line:
        if glance.no_broker or glance.at is None:
            about = glance.no_broker or "the broker is being asked"
            return [LinePart("backlog not known", about=about, kind="warn")]
        status = glance.status
        queues = [
            q for name, q in status.queues.items() if undivided(name) in self._queues[participant]
        ]
        waiting = sum(queue.messages for queue in queues)
        unread = any(not queue.consumers for queue in queues)
        wait = counted(waiting, "message waits", "messages wait")
        about = f"{participant}: {wait} in its queues"
        if unread:
            about += ", and at least one of them has no consumer"
        line = [
            LinePart(
                f"{waiting} waiting",
                self.url("/waiting", participant=participant),
                about,
                "bad" if unread else "",
            )
        ]
        if unpublished := status.outboxes.get(participant):
            about = f"{participant}: not known to be published: {counted(unpublished, 'event')}"
            page = self.url("/services") + "#services"
            line.append(LinePart(f"{unpublished} unpublished", page, about))
        if dead := status.dead_letters.get(participant):
            page = self.url("/letters", service=participant)
            line.append(
                LinePart(
                    f"{dead} dead", page, f"{participant}: {counted(dead, 'dead letter')}", "bad"
                )
            )
        return line

    def _uncollected(self, participant: str, glance: SystemSnapshot) -> Line:
        """The dead letters that no figure of a reaction counts."""
        if not (count := glance.status.uncollected.get(participant)):
            return []
        about = (
            f"{participant}: {count} of its dead letters are still in their queue, "
            f"so they are counted at no reaction"
        )
        page = self.url("/letters", service=participant)
        return [LinePart(f"{count} dead not collected yet", page, about, "warn")]

    @cached_property
    def _queues(self) -> Mapping[str, list[str]]:
        return {p.name: [*queues_of(p)] for p in self.flow.choreography.participants}

    @cached_property
    def _marked(self) -> Mapping[Node, str]:
        """The reactions that a deviation of the broker concerns, and the deviations."""
        found: defaultdict[Node, list[str]] = defaultdict(list)
        for deviation, _ in self.deviations:
            step = concerned(self.flow, deviation.name)
            if step is not None:
                found[step].append(
                    f"{deviation.kind} {deviation.name}: expected {deviation.expected}, "
                    f"found {deviation.found}"
                )
        return {node: "; ".join(lines) for node, lines in found.items()}


def rate_said(per_second: float) -> str:
    """A rate, short."""
    if per_second == 0:
        return "0/s"
    if per_second < SLOWEST_SHOWN:
        return f"<{SLOWEST_SHOWN:g}/s"
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"


def briefly(length: timedelta) -> str:
    """A length, in no more digits than can be taken in at a glance."""
    milliseconds = length / timedelta(milliseconds=1)
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 1_000:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1_000:.1f} s" if milliseconds < 100_000 else lasting(length)


def _shortened(text: str) -> str:
    return text if len(text) <= LANE_CHARACTERS else f"{text[: LANE_CHARACTERS - 1]}…"


def _type_of(kind: type | Node) -> str | None:
    """The type of an event or a command; None for anything else."""
    if isinstance(kind, type) and issubclass(kind, Event | Command):
        return kind.type
    return None


def _led_to(flow: Flow, step: Step) -> Iterator[str]:
    seen: set[Node] = set()
    waiting: list[Node] = [step]
    while waiting:
        for after in flow.following.get(waiting.pop(), ()):
            if after in seen:
                continue
            seen.add(after)
            if (type_ := _type_of(after)) is not None:
                yield type_
            else:  # A question, or the reaction to its answer.
                waiting.append(after)
