"""The pages that follow from code: commands, metrics, messages."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from typer.core import TyperGroup

from saga.cli import command_line
from saga.discovery import choreography, services
from saga.graph.flow import Flow
from saga.graph.listing import listing
from saga.message import Event
from saga.schemas.export import Travelling, travelling

_ROOT: Final = Path(__file__).parents[1]
_METRIC_KINDS: Final = frozenset({"counter", "gauge", "histogram", "info", "figure"})


def commands() -> str:
    """Every `saga` command with its arguments and options, as `--help` has them."""
    return "\n".join(["# Every command and option", "", *_command(command_line(), "saga")])


def _command(command: Any, name: str) -> Iterator[str]:
    """`command` is typer's, whose copy of click has no types of its own."""
    context = command.make_context(name, [], resilient_parsing=True)
    if isinstance(command, TyperGroup):
        if name != "saga":
            yield from (f"## {name}", "", _unwrapped(command.help), "")
        for each in sorted(command.commands):
            yield from _command(command.commands[each], f"{name} {each}")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f"## {name}", "", "```text", f"{name} {usage}", "```", "")
    yield from (_unwrapped(command.help), "")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(f"`{names}`", " ".join(meaning.split())) for names, meaning in filter(None, records)]
    yield from _table(("argument or option", "meaning"), rows)
    if command.epilog:
        yield from (_unwrapped(command.epilog), "")


def metrics() -> str:
    """Every metric of services, history and exporter, where the code declares it."""
    declared = sorted({row for file in _sources() for row in _declared_metrics(file)})
    return "\n".join(
        [
            "# Metrics",
            "",
            "What [dashboards and alerts](../observability.md) are made of.",
            "",
            *_table(("metric", "kind", "labels", "meaning"), declared),
        ]
    )


def _sources() -> list[Path]:
    packages = ("saga", *services())
    return sorted(file for package in packages for file in (_ROOT / package).rglob("*.py"))


def _declared_metrics(file: Path) -> Iterator[tuple[str, str, str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = node.func.id.removesuffix("MetricFamily").lower()
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        if kind not in _METRIC_KINDS or len(texts) < 2 or not isinstance(texts[0], str):
            continue
        labels = [
            each.value
            for given in (*node.args[2:], *(keyword.value for keyword in node.keywords))
            if isinstance(given, ast.Tuple)
            for each in given.elts
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        shown = "gauge" if kind == "figure" else kind
        name = f"{texts[0].removesuffix('_total')}_total" if kind == "counter" else texts[0]
        yield f"`{name}`", shown, ", ".join(f"`{label}`" for label in labels), str(texts[1])


def messages() -> str:
    """Every event and command of the project's saga: who sends and takes it, fields, an example."""
    flow = Flow(choreography())
    lines = ["# Events and commands", ""]
    listed = listing(flow)
    about = {entry["type"]: entry for entry in (*listed["events"], *listed["commands"])}
    for message in travelling(flow.choreography):
        lines += _message(flow, message, about[message.type])
    return "\n".join(lines)


def _message(flow: Flow, message: Travelling, about: dict[str, Any]) -> Iterator[str]:
    takers = [step.name for step in flow.takers(message)]
    senders = sorted({step.participant.name for step in flow.publishers(message)})
    yield from (f"## {message.type}", "", inspect.getdoc(message) or "", "")
    kind = "event" if issubclass(message, Event) else "command"
    yield f"- kind: {kind}, version {message.version}"
    yield f"- sent by: {', '.join(senders) or 'people, and other systems'}"
    yield f"- taken by: {', '.join(takers) or 'only the history'}"
    yield ""
    schema = message.model_json_schema()
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{name}`",
            _type_of(schema, field),
            "" if name in required else f"`{json.dumps(field.get('default'))}`",
            " ".join(str(field.get("description", "")).split()),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    yield from _table(("field", "type", "default", "meaning"), rows)
    for example in _examples(message.type):
        yield from ("```json", example.rstrip(), "```", "")


def _examples(message_type: str) -> Iterable[str]:
    files = sorted((_ROOT / "contracts" / "examples" / message_type).glob("*.json"))
    return [json.dumps(json.loads(file.read_text()), indent=2) for file in files[-1:]]


def _type_of(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """A field's type in words, with its limits."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        found = schema.get("$defs", {}).get(name, {})
        values = found.get("enum")
        return ", ".join(f"`{value}`" for value in values) if values else f"`{name}`"
    if "anyOf" in field:
        return " or ".join(_type_of(schema, each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    limits = [
        f"{key} {field[key]}"
        for key in ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
        if key in field
    ]
    kind = str(field.get("format") or field.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type_of(schema, field.get('items', {}))}"
    return ", ".join([kind, *limits])


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _unwrapped(text: str | None) -> str:
    """A help text as Markdown: its lines joined, its paragraphs kept."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or "").replace("\b", ""))
    return "\n\n".join(paragraphs)


REFERENCE: Final = {
    "commands-in-full.md": commands,
    "metrics.md": metrics,
    "messages.md": messages,
}
"""What is written when the site is built, in `docs/reference`."""
