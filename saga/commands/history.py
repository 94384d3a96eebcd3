"""`saga trace`, `saga stuck`, `saga show` and `saga history`: what the kept events tell."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    out,
    print_json,
    remark,
    run,
    stoppable,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    from history_service.domain import OrderView
    from saga.history.trace import Past, Stuck, Trace
    from saga.history.whereabouts import Whereabouts

    T = TypeVar("T")

Order = Annotated[UUID, typer.Argument(help="The order's id.", show_default=False)]


class Format(StrEnum):
    """What a trace is drawn as."""

    TEXT = "text"
    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def trace(
    order: Order,
    format: Annotated[Format, typer.Option(help="What to draw it as.")] = Format.TEXT,
    data_dir: DataDir = DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Show what happened to an order, across all services, and who owes the next event.

    Each event with its cause, who published it, how long its way took and how long the work;
    retries, dead letters, replays and compensations. Exit status 1 if something is overdue, or an
    event is missing from the history.

    Examples:

    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc`
    * `saga trace 9b695b7c-423b-5f77-b29e-1b10bc1cc6cc --format mermaid`
    """
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.drawing import as_mermaid, as_svg
    from saga.history.trace import trace as find

    found = _asked(find(Deployment.load(data_dir), choreography(), str(order)))
    match Format.JSON if as_json else format:
        case Format.MERMAID:
            sys.stdout.write(as_mermaid(found.diagram))
        case Format.SVG:
            sys.stdout.write(as_svg(found.diagram, _headline(found.story.view)))
        case Format.JSON:
            print_json(found.to_json())
        case Format.TEXT:
            _print_trace(found)
    if found.late or not found.complete:
        raise typer.Exit(PROBLEM_FOUND)


def stuck(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """List every order that waits for an event which is overdue, with whoever owes it.

    An answer is overdue once its participant cannot be trying any more, and an end some seconds
    after the order's deadline. Exit status 1 if there is any.

    Examples:

    * `saga stuck`
    * `saga stuck --json | jq -r '.orders[].order_id'`
    """
    from common.kernel.tables import utc_now
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.history.trace import debt_as_json
    from saga.history.trace import stuck as find

    now = utc_now()
    found, whereabouts = _asked(find(Deployment.load(data_dir), choreography(), now=now))
    if as_json:
        print_json(
            {
                "ok": not found,
                "orders": [
                    {
                        "order_id": one.story.order_id,
                        "status": one.story.view.status,
                        "owed": [debt_as_json(debt, whereabouts, now) for debt in one.debts],
                    }
                    for one in found
                ],
            }
        )
    else:
        _print_stuck(found, whereabouts, now)
    if found:
        raise typer.Exit(PROBLEM_FOUND)


def show(
    order: Order,
    at: Annotated[
        str | None, typer.Option(help="The time: 2030-01-31T12:00:00Z, or with another offset.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="The id of one of its events.", show_default=False)
    ] = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show an order, and what each participant held about it, as they were at some time.

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

    moment = _moment(at)
    found = _asked(
        past(Deployment.load(data_dir), choreography(), str(order), at=moment, before=before)
    )
    if as_json:
        print_json(
            {
                "order_id": found.order_id,
                "events": found.events,
                "order": state_as_json(found.view),
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
    from saga.history import InputError

    with stoppable():
        try:
            return run(question)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
    raise AssertionError  # `stoppable` lets nothing pass


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise typer.BadParameter(
            f"{text!r} is no time with an offset; write it like 2030-01-31T12:00:00Z",
            param_hint="--at",
        )
    return moment


def _headline(view: OrderView) -> str:
    from datetime import timedelta

    from saga.history.sequence import duration

    said = [f"order {view.key}", view.status]
    if view.reason:
        said.append(f"({view.reason})")
    if view.duration_ms is not None:
        said.append(f"after {duration(timedelta(milliseconds=view.duration_ms))}")
    if view.total_cents:
        said.append(f"over {view.total_cents / 100:.2f} {view.currency}")
    if view.customer:
        said.append(f"for {view.customer}")
    return " ".join(said) + f", priority {view.priority}"


_STYLES: Final = {"happy": "green", "failure": "red", "compensation": "magenta"}


def _print_trace(found: Trace) -> None:
    from rich.text import Text

    from saga.history.drawing import as_text
    from saga.history.sequence import Kind

    console = out()
    console.print(_headline(found.story.view), style="bold", markup=False)
    header, lines = as_text(found.diagram)
    first = max([len(line.after) for line in lines], default=0)
    second = max([len(line.lanes) for line in lines], default=0)
    console.print(" " * (first + 2) + header, style="bold", markup=False)
    for line in lines:
        owed = line.row.kind is Kind.OWED
        style = "yellow" if owed and line.row.path == "happy" else _STYLES[line.row.path]
        console.print(
            Text.assemble(
                (f"{line.after:>{first}}  ", "dim"),
                (f"{line.lanes:<{second}}", style),
                (f"  {line.note}" if line.note else "", "dim"),
            )
        )
    if not found.debts:
        settled = found.story.view.settled
        console.print("nobody owes anything" if settled else "nobody owes an event by now")
    for hole in found.story.holes:
        remark(f"{hole}")
    for first_offset, last_offset in found.gaps:
        remark(
            f"the history lacks offsets {first_offset} to {last_offset}, removed from the stream "
            f"before they were read"
        )


def _print_stuck(found: list[Stuck], whereabouts: Whereabouts, now: datetime) -> None:
    from rich.table import Table

    from saga.history.sequence import duration, either

    if not found:
        out().print("nothing is overdue")
        return
    table = Table("order", "status", "who", "owes", "since", "late by", "where the event is")
    for one in found:
        for debt in one.debts:
            event = debt.event
            where = whereabouts.of(debt.participant, event.id).detail if event else "its deadline"
            table.add_row(
                one.story.order_id,
                one.story.view.status,
                debt.participant,
                either(debt.answers),
                f"{debt.since:%Y-%m-%d %H:%M:%S}",
                duration(now - debt.by),
                f"{event.type}: {where}" if event else where,
            )
    out().print(table)
    remark(f"{len(found)} orders; `saga trace ORDER` tells all about one")


def _print_past(found: Past) -> None:
    from rich.table import Table

    from saga.history.trace import as_json as state_as_json

    table = Table("of", "what", "value")
    rows = [
        ("as told", found.view),
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
