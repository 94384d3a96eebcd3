"""`saga map` and `saga generate`: what the participants' signatures tell."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from saga.commands.output import PROBLEM_FOUND, AsJson, out, print_json, remark

if TYPE_CHECKING:
    from saga.graph.flow import Flow, Node


class Format(StrEnum):
    """What the map is drawn as."""

    TEXT = "text"
    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def show_map(
    format: Annotated[Format, typer.Option(help="What to draw it as.")] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Show who reacts to what, and what comes of it: the happy path, failures and compensations.

    It is read from the participants' signatures, so it is what runs. No broker is needed.

    Examples:

    * `saga map`
    * `saga map --format svg > map.svg`
    """
    from saga.discovery import choreography
    from saga.graph.flow import Flow
    from saga.graph.listing import listing
    from saga.graph.mermaid import mermaid
    from saga.graph.svg import svg

    flow = Flow(choreography())
    match Format.JSON if as_json else format:
        case Format.MERMAID:
            sys.stdout.write(mermaid(flow))
        case Format.SVG:
            sys.stdout.write(svg(flow))
        case Format.JSON:
            print_json(listing(flow))
        case Format.TEXT:
            _print_map(flow)


def generate(
    root: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit status 1 if something is stale.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write every file that follows from the participants' signatures, where it is stale.

    The broker's definitions, the AsyncAPI document, a JSON Schema per event version, a page per
    service, and the map: in the README, and as a picture.

    Examples:

    * `saga generate`
    * `saga generate --check`
    """
    from saga.discovery import choreography
    from saga.generate import GenerateError, refresh, stale

    try:
        files = (stale if check else refresh)(root, choreography())
    except GenerateError as error:
        raise typer.BadParameter(str(error), param_hint="--root") from error
    names = [file.relative_to(root).as_posix() for file in files]
    if as_json:
        print_json({"ok": not (check and names), "stale": names})
    else:
        for name in names:
            out().print(f"stale: {name}" if check else name)
        if not names:
            remark("every generated file is as it should be")
    if check and names:
        raise typer.Exit(PROBLEM_FOUND)


_SIGNS: Final = {
    "happy": ("[green]→[/] ", "happy path"),
    "failure": ("[red]✗[/] ", "failure"),
    "compensation": ("[magenta]↩[/] ", "compensation"),
}


def _print_map(flow: Flow) -> None:
    from rich import box
    from rich.table import Table

    from saga.graph.flow import Path, Step, retry_said

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("reaction", "takes", "leads to"):
        table.add_column(column, no_wrap=True)
    table.add_column("if it fails")
    for path in Path:
        for step in flow.in_order:
            if isinstance(step, Step) and flow.path(step) is path:
                table.add_row(
                    f"[bold]{step.name}[/]",
                    "\n".join(map(_taken, flow.preceding.get(step, ()))),
                    "\n".join(_given(flow, node) for node in flow.following.get(step, ())),
                    retry_said(step.retry) if step.retry else "",
                )
        table.add_section()
    out().print(table)
    signs = "   ".join(f"{sign}{said}" for sign, said in _SIGNS.values())
    out().print(f"{signs}   ■ ends the saga   ? asks the outside, ! is answered")


def _taken(node: Node) -> str:
    from common.message import Intent
    from saga.graph.flow import Step, label

    return (
        f"{label(node)} !"
        if not isinstance(node, Step) and issubclass(node, Intent)
        else label(node)
    )


def _given(flow: Flow, node: Node) -> str:
    from common.message import Event, Intent
    from saga.graph.flow import Step, label

    said = f"{_SIGNS[flow.path(node)][0]}{label(node)}"
    if isinstance(node, Step):
        return said
    if issubclass(node, Intent):
        return f"{said} ?"
    return f"{said} ■" if issubclass(node, Event) and node.role.terminal else said
