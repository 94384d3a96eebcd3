"""`saga verify --from-history`: recorded sagas against the reactions of this working tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga.commands.output import LISTED_MAX, answer_to, print_json, remark, wrong_usage
from saga.wording import counted

if TYPE_CHECKING:
    from saga.past.against import Against
    from saga.past.findings import FoundDifference, NotCompared
    from saga.past.onward import OpenSagaExplorer


def verify_past(
    folder: Path,
    export: Path | None,
    sample: int | None,
    seed: int,
    states_max: int | None,
    jobs: int,
    *,
    as_json: bool,
) -> bool:
    """Compare and print the result; whether nothing differs, nothing can go wrong, and all of
    it was looked at."""
    from saga.commands.console import err, progress_bars
    from saga.discovery import saga
    from saga.past.against import compare, totals

    here = saga()
    with _archive(folder, export) as (url, way):
        console = err()
        with progress_bars(**totals(here, url, sample)) as bars:

            def scenario(name: str) -> None:
                if console.is_terminal:
                    remark(f"exploring the scenario {name}")

            run = compare(
                here,
                url,
                sample=sample,
                seed=seed,
                way=way,
                states_max=states_max,
                jobs=jobs,
                progress=bars,
                scenario=scenario,
            )
    if as_json:
        print_json(past_as_json(run))
    else:
        show_past(run, drawn_by=seed)
    return run.ok


@contextmanager
def _archive(folder: Path, export: Path | None) -> Iterator[tuple[str, Any]]:
    """Where the events are, and what is known to be on its way."""
    from saga.commands.console import progress_bars
    from saga.discovery import choreography
    from saga.history.sources import Sources
    from saga.past.against import on_their_way
    from saga.past.exported import archive_of

    if export is None:
        sources = Sources.of(folder)
        yield sources.history_url, answer_to(on_their_way(sources, choreography(), folder))
        return
    with ExitStack() as files:
        with progress_bars(read=None) as bars, wrong_usage():
            url = files.enter_context(archive_of(export, bars["read"]))
        yield url, None


def past_as_json(run: Against) -> dict[str, Any]:
    """What came of it as a JSON document."""
    found, onward = run.findings, run.onward
    document: dict[str, Any] = {
        "ok": run.ok,
        "whole": run.whole,
        "subjects": run.subjects,
        "of": run.total,
        "events": run.events,
        "compared": {
            name: {
                "published": found.published[name],
                "nothing": found.silent[name],
                "on_their_way": found.pending[name],
            }
            for name in (p.name for p in run.saga.choreography.in_python)
        },
        "differences": [_difference_as_json(one) for one in found.differences()],
        "came_late": [_difference_as_json(one) for one in found.late()],
        "not_looked_at": _counts_as_json(found.not_looked_at),
        "not_recorded": _counts_as_json(found.not_told),
        "asked_outside": run.asked(),
        "untouched_reactions": list(run.untouched()),
    }
    if onward is not None:
        document |= _onward_as_json(onward)
    return document


def _difference_as_json(one: FoundDifference) -> dict[str, Any]:
    group = one.group
    return {
        "participant": group.participant,
        "reaction": group.reaction,
        "kind": group.kind.name.lower(),
        "what": group.what,
        "count": one.count,
        "subject": one.subject,
        "recorded": one.recorded,
        "decided": one.decided,
        "trace": _trace(one.subject),
    }


def _counts_as_json(counts: Mapping[str, NotCompared]) -> list[dict[str, Any]]:
    return [{"what": what, **asdict(seen)} for what, seen in counts.items()]


def _onward_as_json(onward: OpenSagaExplorer) -> dict[str, Any]:
    return {
        "pending": onward.pending,
        "states_seen": onward.budget - onward.left,
        "states_max": onward.budget,
        "states": [asdict(state) for state in onward.states],
        "can_go_wrong": [
            {
                "rule": one.rule,
                "detail": one.detail,
                "subjects": one.count,
                "states": len(one.from_states),
                "subject": one.subject,
                "steps": [step.text for step in one.way],
                "trace": _trace(one.subject),
            }
            for one in onward.breaks.values()
        ],
        "not_explored": _counts_as_json(onward.left_out),
        "scenarios_not_explored": onward.scenarios_left_out,
        "unreached": [
            {**asdict(one), "shape": list(one.shape), "trace": _trace(one.subject)}
            for one in onward.unreached
        ],
        "remarks": list(onward.remarks),
    }


def _trace(subject: str) -> str:
    return f"saga trace {subject}"


def show_past(run: Against, *, drawn_by: int) -> None:
    """Print the result: the differences by reaction, what can go wrong, and all that was not
    compared, with why."""
    from saga.commands.console import Table, out, styled

    console, found = out(), run.findings
    table = Table("participant", "published", "nothing", "on their way")
    for participant in run.saga.choreography.in_python:
        name = participant.name
        counts = found.published[name], found.silent[name], found.pending[name]
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)
    of = f" of {run.total:,}, drawn by seed {drawn_by}," if run.subjects < run.total else ""
    console.print(
        f"compared: {counted(run.events, 'event')} about {counted(run.subjects, 'subject')}{of} "
        f"above"
    )
    differences = found.differences()
    for one in differences[:LISTED_MAX]:
        for line in _lines_of(one):
            console.print(line)
    if len(differences) > LISTED_MAX:
        console.print(
            f"and {counted(len(differences) - LISTED_MAX, 'more difference')}; --json has them all"
        )
    _show_onward(run)
    for one in found.late():
        taken = found.taken[one.group.participant, one.group.reaction]
        said = (
            f"may have come late: {one.count:,} of the {counted(taken, 'message')} that "
            f"{_reaction(one)} took, or it publishes {one.group.what}, where it published nothing: "
            f"{_trace(one.subject)}"
        )
        console.print(styled((said, "yellow")))
    for what, seen in found.not_told.items():
        console.print(f"not compared: {what}: {counted(seen.count, 'time')}")
    if asked := run.asked():
        console.print(f"not compared: what is asked outside ({', '.join(asked)}): no event tells")
    if untouched := list(run.untouched()):
        console.print(f"not compared: nothing recorded came to {', '.join(untouched)}")
    for why, seen in found.not_looked_at.items():
        where = f": {_trace(seen.subject)}" if seen.subject else ""
        console.print(f"not looked at: {why}: {counted(seen.count, 'time')}{where}")
    if differences:
        count = sum(one.count for one in differences)
        others = counted(count, "decision would be another", "decisions would be others")
        said = f"{others}, of {counted(len(differences), 'kind')}"
        console.print(styled((said, "red")))
    elif run.onward is not None and run.onward.breaks:
        console.print(styled(("no decision would be another, but something can go wrong", "red")))
    elif not found.compared:
        console.print(styled(("nothing was compared", "yellow")))
    elif not run.ok or not run.whole:
        console.print(styled(("nothing differs of what was looked at", "yellow")))
    else:
        said = "nothing differs, and nothing can go wrong from here"
        console.print(styled((said, "green")))


def _reaction(one: FoundDifference) -> str:
    reaction = one.group.reaction
    joint = " " if reaction.startswith("(") else "."
    return f"{one.group.participant}{joint}{reaction}"


def _lines_of(one: FoundDifference) -> Iterator[str]:
    yield (
        f"differs: {_reaction(one)} {one.group.kind}: {one.group.what}: "
        f"{counted(one.count, 'time')}"
    )
    yield f"  for example: {one.decided or 'nothing'}: {_trace(one.subject)}"


def _show_onward(run: Against) -> None:
    from saga.commands.console import lines_of, out
    from saga.verify.drawing import drawn

    console, onward = out(), run.onward
    if onward is None:
        return
    states = onward.states
    seen = sum(state.states for state in states)
    if onward.pending:
        console.print(
            f"explored: {counted(onward.pending, 'subject')} under way, in "
            f"{counted(len(states), 'state')} told apart by more than names; from there "
            f"{counted(seen, 'state')} can be reached, of at most {onward.budget:,} that are "
            f"looked "
            f"at"
        )
    else:
        console.print("explored: nothing, as no subject is under way")
    for one in onward.breaks.values():
        console.print(
            f"\nbroken: {one.rule}: {one.detail}: with {counted(one.count, 'subject')} there, for "
            f"example: {_trace(one.subject)}"
        )
        console.print(lines_of("\n".join(drawn(one.way))))
    for state in states:
        if state.refused:
            console.print(
                f"not looked at: what can become of {counted(state.count, 'subject')}: "
                f"{state.refused}: "
                f"{_trace(state.subject)}"
            )
        elif not state.whole:
            console.print(
                f"not looked at: all that can become of {counted(state.count, 'subject')}, but "
                f"the first "
                f"{counted(state.states, 'state')}; allow more with --max-states: "
                f"{_trace(state.subject)}"
            )
    for why, left in onward.left_out.items():
        console.print(
            f"not looked at: what can become of {counted(left.count, 'subject')} {why}: "
            f"{_trace(left.subject)}"
        )
    for line in onward.remarks:
        console.print(f"remark: {line}")
    for line in onward.scenarios_left_out:
        console.print(f"remark: for states that are in no scenario, this was not looked at: {line}")
    for unreached in onward.unreached[:LISTED_MAX]:
        console.print(
            f"in no scenario: {unreached.kind} of {unreached.participant} with "
            f"{', '.join(unreached.shape)}, recorded {counted(unreached.count, 'time')}: "
            f"{_trace(unreached.subject)}"
        )
    if len(onward.unreached) > LISTED_MAX:
        more = len(onward.unreached) - LISTED_MAX
        console.print(f"and {counted(more, 'more recorded state')} in no scenario")
