"""`saga trace`, `saga stuck`, `saga show` and `saga history`: what the kept events tell."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    print_json,
    problem,
    remark,
    run,
    stoppable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import Any, TypeVar

    from saga.archive.store import Gap
    from saga.commands.console import Table
    from saga.history.drawing import Line as DrawnLine
    from saga.history.rebuild import Rebuilt
    from saga.history.sequence import Row
    from saga.history.story import Story
    from saga.history.trace import Overdue, Past, Trace
    from saga.history.verify import Verified

    T = TypeVar("T")


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
        help="What it is about, such as an order's id.",
        metavar="SUBJECT",
        callback=_subject,
        show_default=False,
    ),
]


class Format(StrEnum):
    """What a trace is drawn as."""

    TEXT = "text"
    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def trace(
    subject: Subject,
    format: Annotated[Format, typer.Option(help="What to draw it as.")] = Format.TEXT,
    data_dir: DataDir = DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Show what happened to one subject, an order for instance, across all services, who owes what,
    and what is due when.

    Each event with its cause, who published it, how long its way took and how long the work;
    retries, dead letters, replays and compensations. Exit status 1 if something is overdue, or an
    event is missing from the history.

    Examples:

    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc`
    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --format mermaid`
    """
    from saga.commands.console import write
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.drawing import as_mermaid, as_svg
    from saga.history.trace import trace as find

    found = _asked(find(Deployment.load(data_dir), choreography(), subject))
    match Format.JSON if as_json else format:
        case Format.MERMAID:
            write(as_mermaid(found.diagram))
        case Format.SVG:
            write(as_svg(found.diagram, _headline(found.story)))
        case Format.JSON:
            print_json(found.to_json())
        case Format.TEXT:
            _print_trace(found)
    if found.late or not found.complete:
        raise typer.Exit(PROBLEM_FOUND)


def stuck(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List every order, or whatever else a saga is about, that waits for an overdue event, and who
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
    found = _asked(find(Deployment.load(data_dir), choreography(), now=now))
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
    """Show an order, or whatever else a saga is about, and what each participant held about it, as
    they were at some time.

    Folded from the events by the participants' own code. What a participant was asking the outside
    at that moment is not among them: questions are no events.

    Examples:

    * `saga show 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --at 2030-01-31T12:00:00Z`
    * `saga show 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --before 241bc73d-4713-5adf-bccc-69d99eb64adb`
    """
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.trace import as_json as state_as_json
    from saga.history.trace import past

    moment = moment_of(at, "--at")
    found = _asked(
        past(Deployment.load(data_dir), choreography(), subject, at=moment, before=before)
    )
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


def _asked(question: Coroutine[Any, Any, T]) -> T:
    """The answer to a question; one that makes no sense is wrong usage."""
    from saga.errors import InputError

    with stoppable():
        try:
            return run(question)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
    raise AssertionError  # `stoppable` lets nothing pass


def moment_of(text: str | None, option: str) -> datetime | None:
    """The time that is given with an option; None if none is."""
    if text is None:
        return None
    from saga import limits
    from saga.limits import TIME_END, TIME_MIN

    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is None or given.tzinfo is None or (moment := limits.moment_of(text)) is None:
        raise typer.BadParameter(
            f"{text!r} is no time with an offset from {TIME_MIN.year} to {TIME_END.year - 1}; "
            f"write it like 2030-01-31T12:00:00Z",
            param_hint=option,
        )
    return moment


def _headline(story: Story) -> str:
    from saga.history.sequence import duration

    summary = story.summary
    took = "" if summary.duration is None else duration(summary.duration)
    if story.declared is not None:
        return f"{story.declared.name} {story.subject} {story.declared.headline(story.view, took)}"
    said = f"{summary.kind or 'subject'} {story.subject}"
    return f"{said} ended by {summary.ended_by} after {took}" if took else f"{said} has not ended"


_STYLES: Final = {"happy": "green", "failure": "red", "compensation": "magenta"}


def _print_trace(found: Trace) -> None:
    from saga.commands.console import out, styled
    from saga.history.drawing import as_text

    console = out()
    console.print(styled((_headline(found.story), "bold")))
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
        settled = found.story.summary.settled
        console.print("nobody owes anything" if settled else "nobody owes an event by now")
    for hole in found.story.holes:
        remark(f"{hole}")
    _tell_gaps(found.gaps)


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
        remark(f"{len(found.subjects)} subjects; `saga trace SUBJECT` tells all about one")
    for row in found.unexplained[:LISTED_MAX]:
        out().print(
            f"{row.subject}: the row of {row.participant} says that something about its "
            f"{row.kind} was due at {row.at:%Y-%m-%d %H:%M:%S}, and no event that can be read "
            f"tells so; see `saga due` and `saga history verify`"
        )
    if len(found.unexplained) > LISTED_MAX:
        out().print(f"and {len(found.unexplained) - LISTED_MAX} more such rows")
    if found.behind:
        problem(
            f"the history is {found.behind} messages behind the stream, and what they are about "
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


# --- saga history -----------------------------------------------------------------------------

app = typer.Typer(
    help="The kept events as a whole: rebuild from them, verify by them, carry them elsewhere.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Holes = Annotated[
    bool,
    typer.Option("--despite-holes", help="Go on although events are missing from the history."),
]


@app.command()
def rebuild(
    service: Annotated[
        str, typer.Argument(help="The service, or `history` for what it tells of each subject.")
    ],
    into: Annotated[
        str | None,
        typer.Option(
            metavar="DATABASE_URL",
            help="An empty database: sqlite:///file.db or postgresql://host/database.",
            show_default=False,
        ),
    ] = None,
    despite_holes: Holes = False,
    redeliver: Annotated[
        bool,
        typer.Option(
            "--redeliver", help="Put events back into its queues that nothing says it answered."
        ),
    ] = False,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make a service's database again from what it published. Stop the service first.

    States are folded by its own code; the inbox is what led to its events, so that what waits or is
    dead is still done. Charges that the provider knows and no event tells of are settled once the
    service starts. Nothing is charged, mailed or published. Exit status 1 if events are left that
    were answered in the lost database only.

    Examples:

    * `saga history rebuild payment --into sqlite:///data/payment.db`
    * `saga history rebuild inventory --into postgresql://saga:secret@db/inventory --redeliver`
    * `saga history rebuild history` (folds anew what it tells of each subject, in place)
    """
    from saga.archive import OBSERVER
    from saga.commands.console import progress_bars
    from saga.discovery import choreography
    from saga.history import pages
    from saga.history import rebuild as work
    from saga.history.sources import Sources

    sources = Sources.of(data_dir)
    total = pages.count(sources.history_url)
    if service == OBSERVER.name:
        with progress_bars(events=total) as bars:
            subjects = _asked(
                work.rebuild_views(into or sources.history_url, choreography(), bars["events"])
            )
        if as_json:
            print_json({"ok": True, "subjects": subjects})
        else:
            remark(f"{subjects} subjects folded anew from {total} events")
        return
    if into is None:
        raise typer.BadParameter("name the new database", param_hint="--into")
    if redeliver and sources.deployment is None:
        raise typer.BadParameter("the system does not run", param_hint="--redeliver")

    async def make(progress: Callable[[int], None]) -> tuple[work.Rebuilt, int]:
        graph = choreography()
        waiting = await work.on_their_way(sources, graph)
        rebuilt = await work.rebuild(
            sources,
            graph,
            service,
            into,
            waiting=waiting,
            despite_holes=despite_holes,
            progress=progress,
        )
        sent = 0
        if redeliver and sources.deployment is not None:
            sent = await work.redeliver(sources.deployment, graph, rebuilt, sources.history_url)
        return rebuilt, sent

    with progress_bars(events=total) as bars:
        rebuilt, sent = _asked(make(bars["events"]))
    left = [] if sent else rebuilt.lost
    if as_json:
        print_json(_rebuilt_as_json(rebuilt, sent, ok=not (left or rebuilt.contradictions)))
    else:
        _print_rebuilt(rebuilt, sent)
    if left or rebuilt.contradictions:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def verify(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Compare every service's database with what its events tell, row by row. Changes nothing.

    The system may be at work, or be stopped. Exit status 1 if anything differs, or an event is
    missing from the history.

    Examples:

    * `saga history verify`
    * `saga history verify --json | jq '.differences[]'`
    """
    from saga.commands.console import progress_bars
    from saga.discovery import choreography
    from saga.history.sources import Sources
    from saga.history.verify import verify as compare

    with progress_bars(rows=None) as bars:
        compared = compare(Sources.of(data_dir), choreography(), progress=bars["rows"])
        found = _asked(compared)
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "rows": found.rows,
                "open_questions": found.open_questions,
                "trimmed_offsets": [[gap.first, gap.last] for gap in found.gaps],
                "differences": [asdict(difference) for difference in found.differences],
            }
        )
    else:
        _print_verified(found)
    if not found.ok:
        raise typer.Exit(PROBLEM_FOUND)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to: NAME.jsonl.gz, .jsonl.zst or .jsonl.")],
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Write the whole history to a file, a JSON document a line, compressed as its name says.

    Examples:

    * `saga history export 2030-01.jsonl.gz`
    """
    from saga.commands.console import progress_bars
    from saga.history import pages
    from saga.history.sources import Sources
    from saga.history.transfer import export as write

    sources = Sources.of(data_dir)
    with progress_bars(events=pages.count(sources.history_url)) as bars, _input():
        written = write(sources.history_url, file, bars["events"])
    if as_json:
        print_json(
            {
                "ok": True,
                "file": str(file),
                "events": written.events,
                "strays": written.strays,
                "trimmed_offsets": [[gap.first, gap.last] for gap in written.gaps],
            }
        )
        return
    remark(f"{file}: {written.events} events, {written.strays} messages that are none")
    _tell_gaps(written.gaps)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `saga history export` wrote.")],
    into: Annotated[
        str | None,
        typer.Option(
            metavar="DATABASE_URL",
            help="Another history's database; by default the one of the data folder.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Take a file's events into a history: all of them, or none if a line is wrong. What is known
    already is not kept twice. On SQLite stop the history service first; on PostgreSQL it waits.

    Examples:

    * `saga history import 2030-01.jsonl.gz`
    * `saga history import 2030-01.jsonl.gz --into sqlite:///archive.db`
    """
    from saga.commands.console import progress_bars
    from saga.discovery import choreography
    from saga.history.sources import Sources
    from saga.history.transfer import take_in

    url = into or Sources.of(data_dir).history_url
    with progress_bars(events=None) as bars:
        taken = _asked(take_in(url, file, choreography(), bars["events"]))
    if as_json:
        closed = [[gap.first, gap.last] for gap in taken.closed]
        print_json({"ok": True, **asdict(taken), "closed": closed})
        return
    remark(
        f"{taken.new} new events, {taken.known} known already, "
        f"{taken.strays} messages that are none"
    )
    for gap in taken.closed:
        remark(f"the gap from offset {gap} is closed")


@contextlib.contextmanager
def _input() -> Iterator[None]:
    """What makes no sense is wrong usage."""
    from saga.errors import InputError

    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def _rebuilt_as_json(rebuilt: Rebuilt, sent: int, *, ok: bool) -> dict[str, Any]:
    return {
        "ok": ok,
        "participant": rebuilt.participant,
        "events": rebuilt.events,
        "rows": rebuilt.states,
        "inbox": rebuilt.inbox,
        "asked_outside": rebuilt.asked,
        "looked_at_broker": rebuilt.looked_at_broker,
        "unanswered": [asdict(event) for event in rebuilt.unanswered],
        "redelivered": sent,
        "holes": [str(hole) for hole in rebuilt.holes],
        "contradictions": rebuilt.contradictions,
    }


def _print_rebuilt(rebuilt: Rebuilt, sent: int) -> None:
    from saga.commands.console import out

    rows = ", ".join(f"{count} {table}" for table, count in rebuilt.states.items()) or "no rows"
    out().print(
        f"{rebuilt.participant}: {rows} from {rebuilt.events} events; {rebuilt.inbox} messages done"
    )
    if rebuilt.asked:
        out().print(f"{rebuilt.asked} questions to the outside are open, and will be settled")
    if not rebuilt.looked_at_broker:
        remark("the system does not run, so nobody could say what waits on its broker")
    waiting = len(rebuilt.unanswered) - len(rebuilt.lost)
    if waiting:
        out().print(f"{waiting} events are on their way to it")
    for hole in rebuilt.holes[:LISTED_MAX]:
        remark(str(hole))
    for line in rebuilt.contradictions[:LISTED_MAX]:
        remark(line)
    if sent:
        out().print(f"{sent} events were put back into its queues")
        return
    for event in rebuilt.lost[:LISTED_MAX]:
        remark(f"{event.type} {event.event_id} about {event.subject} was not answered")
    if rebuilt.lost:
        count = len(rebuilt.lost)
        remark(
            f"{count} events are neither answered nor on their way; a rebuild with --redeliver "
            f"puts them back into its queues"
            if rebuilt.looked_at_broker
            else f"{count} events are not answered; whether they are on their way is known while "
            f"the system runs, without this service"
        )


def _print_verified(found: Verified) -> None:
    from saga.commands.console import Table, out, styled

    if found.differences:
        table = Table("service", "table", "key", "column", "in the database", "by the events")
        for one in found.differences:
            table.add_row(one.participant, one.table, one.key, one.column, one.live, one.history)
        out().print(table)
    rows = ", ".join(f"{count} of {name}" for name, count in found.rows.items())
    out().print(f"compared rows: {rows}")
    if found.open_questions:
        out().print(f"{found.open_questions} are in the middle of a question to the outside")
    _tell_gaps(found.gaps)
    if found.ok:
        out().print(styled(("the databases are what the events tell", "green")))
    else:
        out().print(styled((f"{len(found.differences)} differences", "red")))


def _tell_gaps(gaps: Sequence[Gap]) -> None:
    for gap in gaps:
        remark(f"the history lacks offsets {gap}, removed from the stream before they were read")
