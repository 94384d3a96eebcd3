"""`saga map`, `saga check` and `saga generate`: what the participants' signatures tell."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    print_json,
    remark,
)
from saga.commands.topology import AmqpUrl, ManagementUrl, compare
from saga.wording import counted

if TYPE_CHECKING:
    from saga.commands.console import Line
    from saga.graph.flow import Flow, Node


DEFINITIONS: Final = Path("rabbitmq/definitions.json")


class MapFormat(StrEnum):
    """What the map is drawn as."""

    TEXT = "text"
    MERMAID = "mermaid"
    SVG = "svg"
    JSON = "json"


def show_map(
    format: Annotated[MapFormat, typer.Option(help="What to draw it as.")] = MapFormat.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Show who reacts to what, and with what result: the happy path, failures and compensations.

    It is read from the participants' signatures, so it is what runs. No broker is needed.

    Examples:

    * `saga map`
    * `saga map --format svg > map.svg`
    """
    from saga.commands.console import write
    from saga.discovery import choreography
    from saga.graph.flow import Flow
    from saga.graph.listing import listing
    from saga.graph.mermaid import mermaid
    from saga.graph.svg import svg

    flow = Flow(choreography())
    match MapFormat.JSON if as_json else format:
        case MapFormat.MERMAID:
            write(mermaid(flow))
        case MapFormat.SVG:
            write(svg(flow))
        case MapFormat.JSON:
            print_json(listing(flow))
        case MapFormat.TEXT:
            _print_map(flow)


def check(
    broker: Annotated[
        bool, typer.Option("--broker", help="Compare with a live broker, too.")
    ] = False,
    definitions: Annotated[
        Path,
        typer.Option(help="What the broker is to hold, as `saga topology export` writes it."),
    ] = DEFINITIONS,
    amqp_url: AmqpUrl = None,
    management_url: ManagementUrl = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with the choreography, from the code alone. Changes nothing.

    An event that no participant publishes or reacts to, a command that its receiver would refuse, a
    reaction that nothing reaches, a failure that cancels nothing, an effect that is not undone, a
    cycle without a guard, a join that forgets one of its legs, a version without an upcaster, an
    event that the broker's user may not publish, a table or a column that no migration adds. With
    `--broker` also what a live broker holds differently, as `saga topology diff` tells it. Exit
    status 1 if anything is found. What a participant in another language has to keep is named,
    since no signature tells it.

    Examples:

    * `saga check`
    * `saga check --broker --management-url http://admin:secret@broker:15672`
    """
    from saga.commands.console import out
    from saga.discovery import choreography
    from saga.foreign import PAGE, duties_of
    from saga.graph.check import DRIFT, RULES, drifted
    from saga.graph.check import check as find
    from saga.graph.migrations import MIGRATION, missing_migrations

    graph = choreography()
    findings = [*find(graph, _definitions(definitions)), *missing_migrations(graph)]
    found = compare(graph, amqp_url, management_url, data_dir) if broker else None
    findings += drifted(graph, found.differences) if found else []
    rules = [*RULES, MIGRATION, *([DRIFT] if found else [])]
    foreign = {participant.name: duties_of(participant) for participant in graph.foreign}
    if as_json:
        print_json(
            {
                "ok": not findings,
                "rules": rules,
                "broker": found and found.broker,
                "not_compared": list(found.not_compared) if found else [],
                "findings": [finding.to_json() for finding in findings],
                "foreign": {name: list(duties) for name, duties in foreign.items()},
            }
        )
    else:
        for finding in findings:
            out().print(str(finding))
        reactions = sum(len(participant.reactions) for participant in graph.participants)
        remark(
            f"{counted(len(rules), 'rule')}, {counted(len(graph.participants), 'participant')}, "
            f"{counted(reactions, 'reaction')}, "
            f"{counted(len(graph.events), 'event')}: {len(findings) or 'nothing'} found"
        )
        if foreign:
            names = ", ".join(foreign)
            remark(f"in another language: {names}; to be kept there (the engine's {PAGE}):")
            for duty in dict.fromkeys(duty for duties in foreign.values() for duty in duties):
                remark(f"  {duty}")
        if found and found.not_compared:
            remark(f"not compared: {', '.join(found.not_compared)}; name the management API")
    if findings:
        raise typer.Exit(PROBLEM_FOUND)


def _definitions(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"{file} cannot be read: {error}; write it by `saga generate`, name the file, or run "
            f"this in the project's folder",
            param_hint="--definitions",
        ) from error
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{file} is JSON, but no object", param_hint="--definitions")
    return document


def generate(
    root: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit status 1 if something is stale.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write every file that follows from the participants' signatures, where it is stale.

    The broker's definitions, the AsyncAPI document, a JSON Schema per event version, a page per
    service, the map as a picture, and manifests for Kubernetes. In the compose files and for
    Prometheus, what a service is missing there. What is not asked for any more is removed. Tables
    and columns that no migration adds are named, with the command that writes one.

    Examples:

    * `saga generate`
    * `saga generate --check`
    """
    from saga.commands.console import out
    from saga.discovery import choreography
    from saga.generate.files import refresh, stale
    from saga.generate.marks import GenerateError
    from saga.graph.migrations import missing_migrations

    root = root.resolve()
    try:
        files = (stale if check else refresh)(root, choreography())
    except GenerateError as error:
        raise typer.BadParameter(str(error), param_hint="--root") from error
    names = [
        (file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in files
    ]
    lacking = missing_migrations(choreography())
    if as_json:
        print_json(
            {
                "ok": not (check and (names or lacking)),
                "stale": names,
                "migrations": [{"store": each.name, "message": each.message} for each in lacking],
            }
        )
    else:
        for name in names:
            out().print(f"stale: {name}" if check else name)
        if not names:
            remark("every generated file is as it should be")
        for each in lacking:
            remark(f"{each.name}: {each.message}")
    if check and (names or lacking):
        raise typer.Exit(PROBLEM_FOUND)


_TOLD: Final = "▸"
_PRIVATE: Final = "○"
_SIGNS: Final = {
    "happy": ("→ ", "green", "happy path"),
    "failure": ("✗ ", "red", "failure"),
    "compensation": ("↩ ", "magenta", "compensation"),
}


def _print_map(flow: Flow) -> None:
    from saga.commands.console import Table, out, stacked, styled
    from saga.graph.flow import Path, Step, is_private, retry_said
    from saga.graph.joins import JOINED, completed_by

    joined = completed_by(flow)
    headers = ("reaction", "takes", "leads to", "if it fails")
    table = Table(*headers, frame=False, lines=headers[:3])
    for path in Path:
        for step in flow.in_order:
            if isinstance(step, Step) and flow.path(step) is path:
                table.add_row(
                    styled((step.name, "bold")),
                    stacked(*map(_taken, flow.preceding.get(step, ()))),
                    stacked(
                        *(
                            _given(flow, node, joined=node in joined)
                            for node in flow.following.get(step, ())
                        )
                    ),
                    retry_said(step.retry) if step.retry else "",
                )
        table.add_section()
    out().print(table)
    legend = [styled((sign, colour), f"{said}   ") for sign, colour, said in _SIGNS.values()]
    out().print(*legend, "■ ends the saga   ? asks the outside, ! is answered", sep="")
    marks = {
        f"{_TOLD} tells a participant": bool(flow.choreography.commands),
        f"{_PRIVATE} its participant's own": any(map(is_private, flow.nodes)),
        f"{JOINED} completes a join": bool(joined),
    }
    if any(marks.values()):
        out().print("   ".join(said for said, used in marks.items() if used))
    if foreign := [participant.name for participant in flow.choreography.foreign]:
        out().print(f"in another language: {', '.join(foreign)}")


def _taken(node: Node) -> str:
    from saga.graph.flow import Step, label
    from saga.message import Intent

    return (
        f"{label(node)} !"
        if not isinstance(node, Step) and issubclass(node, Intent)
        else label(node)
    )


def _given(flow: Flow, node: Node, *, joined: bool) -> Line:
    from saga.commands.console import styled
    from saga.graph.flow import Step, is_private, label
    from saga.graph.joins import JOINED
    from saga.message import Command, Intent

    sign, colour, _ = _SIGNS[flow.path(node)]
    marks = ""
    if isinstance(node, Step):
        pass
    elif issubclass(node, Intent):
        marks = " ?"
    elif issubclass(node, Command):
        marks = f" {_TOLD}"
    elif is_private(node):
        marks = f" {_PRIVATE}"
    elif node.role.terminal:
        marks = " ■"
    if joined:
        marks += f" {JOINED}"
    return styled((sign, colour), label(node) + marks)
