"""`saga trace`, `saga stuck` and `saga show`: what the kept events tell of one subject, or of those
that wait."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from saga.commands.history import tell_gaps
from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    answer_to,
    moment_of,
    print_json,
    problem,
    remark,
)
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saga.commands.console import Table
    from saga.history.drawing import DrawnLine
    from saga.history.sequence import Diagram, Row
    from saga.history.trace import Overdue, Past, Trace


def _subject(text: str) -> str:
    """What an event may be about. Raises `BadParameter`."""
    from pydantic import TypeAdapter, ValidationError

    from saga.limits import TEXT_MAX_BYTES, Text

    try:
        return str(TypeAdapter(Text).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(
            f"{text!r} is nothing that an event may be about: write 1 to {TEXT_MAX_BYTES} bytes "
            f"without control characters"
        ) from None


Subject = Annotated[
    str,
    typer.Argument(
        help="What it is about, such as a trip's id.",
        metavar="SUBJECT",
        callback=_subject,
        show_default=False,
    ),
]


class TraceFormat(StrEnum):
    """What a trace is drawn as."""

    TEXT = "text"
    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def trace(
    subject: Subject,
    format: Annotated[TraceFormat, typer.Option(help="What to draw it as.")] = TraceFormat.TEXT,
    data_dir: DataDir = DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Show what happened to one subject, a trip for instance, across all services, who owes what,
    and what is due when.

    Each event with its cause, who published it, how long its way took and how long the work;
    retries, dead letters, replays and compensations. Exit status 1 if something is overdue, or an
    event is missing from the history.

    Examples:

    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc`
    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --format mermaid`
    """
    from saga.commands.console import write
    from saga.commands.discretion import Discretion
    from saga.commands.hiding import hidden
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.drawing import as_mermaid, as_svg
    from saga.history.sequence import headline
    from saga.history.trace import trace as find

    deployment = Deployment.load(data_dir)
    found = answer_to(find(deployment, choreography(), subject))
    Discretion(deployment, choreography()).hide(bodies_of(found))
    match TraceFormat.JSON if as_json else format:
        case TraceFormat.MERMAID:
            write(as_mermaid(_discreet(found.diagram)))
        case TraceFormat.SVG:
            write(as_svg(_discreet(found.diagram), hidden().text(headline(found.story))))
        case TraceFormat.JSON:
            print_json(found.to_json())
        case TraceFormat.TEXT:
            _print_trace(found)
    if found.late or not found.complete:
        raise typer.Exit(PROBLEM_FOUND)


def stuck(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List every subject of a saga that waits for an overdue event, and who
    owes it.

    An answer is overdue once its participant cannot be trying any more, and what is due some
    seconds after its time. Exit status 1 if there is any, or the history lacks messages of the
    stream, so that there may be.

    Examples:

    * `saga stuck`
    * `saga stuck --json | jq -r '.subjects[].subject'`
    """
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.trace import debt_as_json
    from saga.history.trace import stuck as find
    from saga.runtime.kernel.tables import utc_now

    now = utc_now()
    found = answer_to(find(Deployment.load(data_dir), choreography(), now=now))
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "history_behind": found.behind,
                "subjects": [
                    {
                        "subject": one.story.subject,
                        "kind": one.story.summary.kind or None,
                        "ended_by": one.story.summary.ended_by,
                        "owed": [debt_as_json(debt, found.whereabouts, now) for debt in one.debts],
                    }
                    for one in found.subjects
                ],
                "unexplained": [row.to_json() for row in found.unexplained],
            }
        )
    else:
        _print_stuck(found, now)
    if not found.ok:
        raise typer.Exit(PROBLEM_FOUND)


def show(
    subject: Subject,
    at: Annotated[
        str | None, typer.Option(help="The time: 2030-01-31T12:00:00Z, or with another offset.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="The id of one of its events.", show_default=False)
    ] = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show a subject of a saga, and what each participant held about it, as
    they were at some time.

    Folded from the events by the participants' own code. What a participant was asking the outside
    at that moment is not among them: questions are no events.

    Examples:

    * `saga show 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --at 2030-01-31T12:00:00Z`
    * `saga show 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --before 241bc73d-4713-5adf-bccc-69d99eb64adb`
    """
    from saga.commands.discretion import Discretion
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.trace import as_json as state_as_json
    from saga.history.trace import past

    moment = moment_of(at, "--at")
    deployment = Deployment.load(data_dir)
    found = answer_to(past(deployment, choreography(), subject, at=moment, before=before))
    Discretion(deployment, choreography()).hide(fact.body for fact in found.facts)
    if as_json:
        print_json(
            {
                "subject": found.subject,
                "events": found.events,
                "summary": state_as_json(found.summary),
                "view": None if found.view is None else state_as_json(found.view),
                "participants": {
                    name: [
                        {"kind": type(state).__name__, **state_as_json(state)} for state in states
                    ]
                    for name, states in found.states.items()
                },
            }
        )
    else:
        _print_past(found)


def bodies_of(found: Trace) -> list[bytes]:
    """The messages that a trace tells of."""
    return [fact.body for fact in found.facts] + [life.letter.body for life in found.lives]


def _discreet(diagram: Diagram) -> Diagram:
    """The diagram with its notes as they may be shown, before they are drawn: some drawings write
    texts in a way of their own."""
    from dataclasses import replace

    from saga.commands.hiding import hidden

    rows = tuple(replace(row, note=hidden().text(row.note)) for row in diagram.rows)
    return replace(diagram, rows=rows)


_STYLES: Final = {"happy": "green", "failure": "red", "compensation": "magenta"}


def _print_trace(found: Trace) -> None:
    from saga.commands.console import out, styled
    from saga.history.drawing import as_text
    from saga.history.sequence import headline

    console = out()
    console.print(styled((headline(found.story), "bold")))
    header, lines = as_text(found.diagram)
    first = max([len(line.after) for line in lines], default=0)
    second = max([len(line.lanes) for line in lines], default=0)
    drawn = [
        styled(
            (f"{line.after:>{first}}  ", "dim"),
            (f"{line.lanes:<{second}}", _style(line.row)),
            (f"  {line.note}" if line.note else "", "dim"),
        )
        for line in lines
    ]
    if all(line.cell_len <= console.width for line in drawn):
        console.print(styled((" " * (first + 2) + header, "bold")))
        for line in drawn:
            console.print(line)
    else:
        console.print(_listed(lines))
    if not found.debts:
        summary = found.story.summary
        over = summary.settled or not summary.open
        console.print(
            "no participant owes anything" if over else "no participant owes an event by now"
        )
    for hole in found.story.holes:
        remark(f"{hole}")
    tell_gaps(found.gaps)


def _style(row: Row) -> str:
    from saga.history.sequence import Kind

    owed = row.kind is Kind.OWED
    return "yellow" if owed and row.path == "happy" else _STYLES[row.path]


def _listed(lines: Sequence[DrawnLine]) -> Table:
    """The same where the drawing has no room."""
    from saga.commands.console import Table, styled
    from saga.history.drawing import SIGNS

    table = Table("after", "who", "what", "to", "note")
    for line in lines:
        row = line.row
        what = styled((f"{SIGNS[row.kind]} {row.label}", _style(row)))
        table.add_row(line.after, row.participant, what, ", ".join(row.to), row.note)
    return table


def _print_stuck(found: Overdue, now: datetime) -> None:
    from saga.commands.console import Table, out
    from saga.history.sequence import duration, either

    if found.ok:
        out().print("nothing is overdue")
        return
    table = Table("subject", "ended by", "who", "owes", "since", "late by", "where the event is")
    for one in found.subjects:
        for debt in one.debts:
            event = debt.event
            where = found.whereabouts.of(debt.participant, event.id).detail if event else ""
            if debt.firing is not None:
                where = f"{debt.firing.due.command.type} is due"
            table.add_row(
                one.story.subject,
                one.story.summary.ended_by or "",
                debt.participant,
                either(debt.answers),
                f"{debt.since:%Y-%m-%d %H:%M:%S}",
                duration(now - debt.by),
                f"{event.type}: {where}" if event else where,
            )
    if found.subjects:
        out().print(table)
        remark(
            f"{counted(len(found.subjects), 'subject')}; `saga trace SUBJECT` tells all about one"
        )
    for row in found.unexplained[:LISTED_MAX]:
        out().print(
            f"{row.subject}: the row of {row.participant} says that something about its "
            f"{row.kind} was due at {row.at:%Y-%m-%d %H:%M:%S}, and no event that can be read "
            f"tells so; see `saga due` and `saga history verify`"
        )
    if len(found.unexplained) > LISTED_MAX:
        out().print(f"and {counted(len(found.unexplained) - LISTED_MAX, 'more such row')}")
    if found.behind:
        problem(
            f"the history is {counted(found.behind, 'message')} behind the stream, and what they "
            f"are about "
            f"was not looked at; start its service, and wait"
        )


def _print_past(found: Past) -> None:
    from saga.commands.console import Table, out
    from saga.history.trace import as_json as state_as_json

    table = Table("of", "what", "value")
    rows = [
        ("as told", found.summary),
        *([("as its saga tells", found.view)] if found.view is not None else []),
        *((n, s) for n, states in found.states.items() for s in states),
    ]
    for name, state in rows:
        for number, (field, value) in enumerate(state_as_json(state).items()):
            table.add_row(name if number == 0 else "", field, "" if value is None else str(value))
        table.add_section()
    out().print(table)
    silent = [name for name, states in found.states.items() if not states]
    if silent:
        out().print(f"{', '.join(silent)}: nothing about it yet")
