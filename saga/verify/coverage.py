"""What scenarios and simulated runs have come to, and what they have not: `saga verify` does not
say fine about that."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from saga.branches import Branch, branches_in, branches_of, name_of
from saga.declaration import Saga
from saga.graph.flow import Flow, Node, Step
from saga.graph.overlay import Line, LinePart, Overlay
from saga.purity import Calls
from saga.verify.model import unapplied


def uncovered(
    saga: Saga,
    reacted: Collection[tuple[str, str]],
    published: Collection[str],
    asked: Collection[tuple[str, str]],
) -> Iterator[str]:
    """What was not looked at when just these reactions were run, these events published, and these
    intents committed by their participants: lines for people."""
    if not saga.scenarios:
        yield f"{saga.name} has no scenario: nothing was tried"
    yield from saga.unwatched()
    if saga.scenarios:
        for invariant in unapplied(saga):
            yield f"{invariant.name} is judged in no scenario: none has all that it reads"
        for participant in saga.participants:
            for reaction in participant.reactions:
                if (participant.name, reaction.name) not in reacted:
                    yield f"no scenario comes to {participant.name}.{reaction.name}"
            for intent in dict.fromkeys(i for r in participant.reactions for i in r.intends):
                if (participant.name, intent.__name__) not in asked:
                    yield f"no scenario has {participant.name} ask {intent.__name__}"
        for message in saga.choreography.recorded:
            if message.type not in published:
                yield f"{message.type} is published in no scenario"


def branches_taken(calls: Iterable[Calls]) -> Counter[Branch]:
    """How many different calls took each branch."""
    taken: Counter[Branch] = Counter()
    for each in calls:
        for call, outcome in each.made:
            if not outcome.error:
                reaction = each.participant.by_message[type(call.message)]
                kinds = tuple(map(type, outcome.results))
                taken.update(branches_in(each.participant.name, reaction, kinds))
    return taken


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """A branch, the type of what its reaction takes, and how often it was taken: by different calls
    in the models, and in how many simulated runs. None where that was not looked at."""

    branch: Branch
    takes: str
    calls: int | None
    runs: int | None

    @property
    def tried(self) -> bool:
        return bool(self.calls or self.runs)


def coverage(
    saga: Saga,
    modelled: Sequence[tuple[Branch, int]] | None,
    simulated: Sequence[tuple[Branch, int]] | None,
) -> list[CoverageRow]:
    """What the models and the simulation took of every branch that there is, and of those that are
    no longer there nothing."""
    takes = {
        (participant.name, reaction.name): name_of(reaction.consumes)
        for participant in saga.participants
        for reaction in participant.reactions
    }
    calls, runs = (None if took is None else Counter(dict(took)) for took in (modelled, simulated))
    return [
        CoverageRow(
            branch,
            takes[branch.participant, branch.reaction],
            None if calls is None else calls[branch],
            None if runs is None else runs[branch],
        )
        for branch in branches_of(saga.participants)
    ]


def untried(rows: Iterable[CoverageRow]) -> list[Branch]:
    """The branches that nothing has taken."""
    return [row.branch for row in rows if not row.tried]


def tried_on(flow: Flow, rows: Sequence[CoverageRow]) -> Overlay:
    """What to write over the map: at each reaction how many of its branches were tried, and where
    it leads to a message by none that was, a mark at the arrow."""
    nodes: dict[Node, Line] = {}
    edges: dict[tuple[Node, Node], Line] = {}
    marked: dict[Node, str] = {}
    by_reaction: defaultdict[tuple[str, str], list[CoverageRow]] = defaultdict(list)
    for row in rows:
        by_reaction[row.branch.participant, row.branch.reaction].append(row)
    for step in flow.steps:
        of_step = by_reaction[step.participant.name, step.reaction.name]
        if not of_step:
            nodes[step] = [LinePart("not looked at", about=f"{step.name}: not looked at")]
            continue
        missing = untried(of_step)
        said = f"{len(of_step) - len(missing)} of {len(of_step)} tried"
        about = "; ".join(map(str, missing)) or "each was taken"
        nodes[step] = [
            LinePart(said, about=f"{step.name}: {said}: {about}", kind="warn" if missing else "")
        ]
        if missing:
            marked[step] = f"not tried: {about}"
        reached = {name for row in of_step if row.tried for name in row.branch.decides}
        for after in flow.following.get(step, ()):
            if not isinstance(after, Step) and name_of(after) not in reached:
                about = f"{step.name} to {name_of(after)}: not tried"
                edges[step, after] = [LinePart("never", about=about, kind="warn")]
    return Overlay(nodes=nodes, edges=edges, marked=marked)
