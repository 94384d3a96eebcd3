"""`saga history`: the kept events as a whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    answer_to,
    print_json,
    remark,
    wrong_usage,
)
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from saga.archive.store import Gap
    from saga.history.rebuild import Rebuilt
    from saga.history.verify import Verified

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
    """Rebuild a service's database from what it published. Stop the service first.

    States are folded by its own code; the inbox is what led to its events, so that what waits or is
    dead is still done. What an outside knows and no event tells of is settled once the service
    starts. No outside is asked, nothing is published. Exit status 1 if events are left that
    were answered in the lost database only.

    Examples:

    * `saga history rebuild room --into sqlite:///data/room.db`
    * `saga history rebuild seat --into postgresql://saga:secret@db/seat --redeliver`
    * `saga history rebuild history` (folds again what it tells of each subject, in place)
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
            subjects = answer_to(
                work.rebuild_views(into or sources.history_url, choreography(), bars["events"])
            )
        if as_json:
            print_json({"ok": True, "subjects": subjects})
        else:
            remark(f"{counted(subjects, 'subject')} folded again from {counted(total, 'event')}")
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
        rebuilt, sent = answer_to(make(bars["events"]))
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
    from saga.commands.discretion import Discretion
    from saga.discovery import choreography, saga
    from saga.history.sources import Sources
    from saga.history.verify import verify as compare

    sources = Sources.of(data_dir)
    with progress_bars(rows=None) as bars:
        compared = compare(sources, choreography(), progress=bars["rows"])
        found = answer_to(compared)
    discretion = Discretion(sources.deployment, choreography())
    found.differences = [
        one if discretion.names_nobody(one.column) else one.masked() for one in found.differences
    ]
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "rows": found.rows,
                "open_questions": found.open_questions,
                "trimmed_offsets": [[gap.first, gap.last] for gap in found.gaps],
                "differences": [asdict(difference) for difference in found.differences],
                "unread": list(saga().elsewhere()),
            }
        )
    else:
        _print_verified(found)
        for line in saga().elsewhere():
            remark(line)
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
    with progress_bars(events=pages.count(sources.history_url)) as bars, wrong_usage():
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
    strays = counted(written.strays, "message that is none", "messages that are none")
    remark(f"{file}: {counted(written.events, 'event')}, {strays}")
    tell_gaps(written.gaps)


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
        taken = answer_to(take_in(url, file, choreography(), bars["events"]))
    if as_json:
        closed = [[gap.first, gap.last] for gap in taken.closed]
        print_json({"ok": True, **asdict(taken), "closed": closed})
        return
    strays = counted(taken.strays, "message that is none", "messages that are none")
    remark(f"{counted(taken.new, 'new event')}, {taken.known} known already, {strays}")
    for gap in taken.closed:
        remark(f"the gap from offset {gap} is closed")


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
        f"{rebuilt.participant}: {rows} from {counted(rebuilt.events, 'event')}; "
        f"{counted(rebuilt.inbox, 'message')} done"
    )
    if rebuilt.asked:
        out().print(f"open, and to be settled: {counted(rebuilt.asked, 'question')} to the outside")
    if not rebuilt.looked_at_broker:
        remark("the system does not run, so what waits on its broker is unknown")
    waiting = len(rebuilt.unanswered) - len(rebuilt.lost)
    if waiting:
        out().print(f"on their way to it: {counted(waiting, 'event')}")
    for hole in rebuilt.holes[:LISTED_MAX]:
        remark(str(hole))
    for line in rebuilt.contradictions[:LISTED_MAX]:
        remark(line)
    if sent:
        out().print(f"put back into its queues: {counted(sent, 'event')}")
        return
    for event in rebuilt.lost[:LISTED_MAX]:
        remark(f"{event.type} {event.event_id} about {event.subject} was not answered")
    if rebuilt.lost:
        count = len(rebuilt.lost)
        remark(
            f"neither answered nor on their way: {counted(count, 'event')}; a rebuild with "
            f"--redeliver puts them back into its queues"
            if rebuilt.looked_at_broker
            else f"not answered: {counted(count, 'event')}; whether they are on their way is known "
            f"while the system runs, without this service"
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
    tell_gaps(found.gaps)
    if found.ok:
        out().print(styled(("the databases are what the events tell", "green")))
    else:
        out().print(styled((f"{counted(len(found.differences), 'difference')}", "red")))


def tell_gaps(gaps: Sequence[Gap]) -> None:
    """Remark on what the history lacks."""
    for gap in gaps:
        remark(f"the history lacks offsets {gap}, removed from the stream before they were read")
