"""The map as a Mermaid flowchart, which GitHub and others draw where it stands in a document."""

from __future__ import annotations

from typing import Final

from saga.graph.flow import CLOCK, Flow, Node, Path, Step, is_private, label, retry_said
from saga.graph.joins import JOINED, completed_by
from saga.message import Command, Event, Intent

_COLOURS: Final = {Path.HAPPY: "#2da44e", Path.FAILURE: "#e5534b", Path.COMPENSATION: "#986ee2"}
_LINES: Final = {
    Path.HAPPY: "stroke-width:3px",
    Path.FAILURE: "stroke-width:2px,stroke-dasharray:7 4",
    Path.COMPENSATION: "stroke-width:2px,stroke-dasharray:2 3",
}


def mermaid(flow: Flow) -> str:
    """The flowchart's text."""
    ids = {node: f"n{number}" for number, node in enumerate(flow.in_order)}
    lines = ["flowchart TB"]
    joined = completed_by(flow)
    lines += [f"  {ids[node]}{_shape(flow, node, joined=node in joined)}" for node in ids]
    edges = sorted(flow.edges, key=lambda edge: [list(ids).index(node) for node in edge])
    lines += [f"  {ids[tail]} --> {ids[head]}" for tail, head in edges]
    for path, colour in _COLOURS.items():
        numbers = [n for n, edge in enumerate(edges) if flow.edge_path(*edge) is path]
        members = [
            ids[node] for node in ids if not isinstance(node, Step) and flow.path(node) is path
        ]
        if members:
            lines.append(f"  classDef {path} stroke:{colour},fill:{colour}22,stroke-width:1.5px")
            lines.append(f"  class {','.join(members)} {path}")
        if numbers:
            lines.append(
                f"  linkStyle {','.join(map(str, numbers))} stroke:{colour},{_LINES[path]}"
            )
    ends = [ids[node] for node in ids if _ends(node)]
    if ends:
        lines.append("  classDef ends stroke-width:4px")
        lines.append(f"  class {','.join(ends)} ends")
    private = [ids[node] for node in ids if is_private(node)]
    if private:
        lines.append("  classDef private stroke-dasharray:3 3")
        lines.append(f"  class {','.join(private)} private")
    return "\n".join(lines) + "\n"


def _ends(node: Node) -> bool:
    return not isinstance(node, Step) and issubclass(node, Event) and node.role.terminal


def _shape(flow: Flow, node: Node, *, joined: bool) -> str:
    if isinstance(node, Step):
        retry = f"<br><small>{retry_said(node.retry)}</small>" if node.retry else ""
        return f'["<b>{node.name}</b>{retry}"]'
    said = f"{JOINED} {label(node)}" if joined else label(node)
    if issubclass(node, Command):
        clock = f"{CLOCK} " if flow.due_about(node) else ""
        return f'[/"{clock}{said}"/]'
    if issubclass(node, Intent):
        return f'{{{{"{said}?"}}}}'
    return f'(["■ {said}"])' if node.role.terminal else f'(["{said}"])'
