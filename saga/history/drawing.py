"""A sequence drawn: on the terminal, as a Mermaid sequence diagram, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from saga.graph.flow import CLOCK, Path
from saga.history.sequence import Diagram, Kind, Row, duration
from saga.text import harmless, in_xml

_PITCH_MIN: Final = 16
SIGNS: Final = {
    Kind.EVENT: "●",
    Kind.PRIVATE: "○",
    Kind.COMMAND: "▸",
    Kind.END: "■",
    Kind.DEAD: "✗",
    Kind.REPLAY: "↻",
    Kind.SETTLED: "⊘",
    Kind.NOTE: "!",
    Kind.OWED: "?",
    Kind.DUE: CLOCK,
}


def _harmless(diagram: Diagram) -> Diagram:
    """The diagram with texts that are as long as what is shown of them."""
    return Diagram(
        tuple(map(harmless, diagram.participants)),
        tuple(
            replace(
                row,
                participant=harmless(row.participant),
                label=harmless(row.label),
                to=tuple(map(harmless, row.to)),
                note=harmless(row.note),
            )
            for row in diagram.rows
        ),
    )


# --- on the terminal --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """One row as text: when, the lanes with what happens between them, and what else to say."""

    after: str
    lanes: str
    note: str
    row: Row


def as_text(diagram: Diagram) -> tuple[str, list[DrawnLine]]:
    """The header with the participants' names, and a line for each row."""
    diagram = _harmless(diagram)
    arrows = [len(row.label) for row in diagram.rows if row.to]
    pitch = max([_PITCH_MIN, *(length + 7 for length in arrows), *map(_room, diagram.participants)])
    lanes = {name: number * pitch + 1 for number, name in enumerate(diagram.participants)}
    header = "".join(f"{name:<{pitch}}" for name in diagram.participants).rstrip()
    lines = [
        DrawnLine(f"+{duration(row.after)}", _drawn(row, lanes).rstrip(), row.note, row)
        for row in diagram.rows
    ]
    return header, lines


def _room(name: str) -> int:
    return len(name) + 2


def _drawn(row: Row, lanes: dict[str, int]) -> str:
    width = max(lanes.values()) + 1
    cells = [" "] * width
    for column in lanes.values():
        cells[column] = "│"
    start = lanes[row.participant]
    targets = [lanes[name] for name in row.to if name != row.participant]
    right = max((column for column in targets if column > start), default=start)
    left = min((column for column in targets if column < start), default=start)
    for column in range(left, right + 1):
        cells[column] = "─" if cells[column] == " " else "┼"
    for column in targets:
        cells[column] = "▶" if column > start else "◀"
    cells[start] = SIGNS[row.kind]
    label = f" {row.label} "
    if left < start and right == start:  # beside the sign, on the arrow
        first = start - 1 - len(label)
        return _written(cells, label, first)
    if right > start:
        return _written(cells, label, start + 2)
    return _written(cells, label, start + 1)


def _written(cells: list[str], text: str, first: int) -> str:
    cells += [" "] * (first + len(text) - len(cells))
    cells[first : first + len(text)] = text
    return "".join(cells)


# --- Mermaid ----------------------------------------------------------------------------------


def as_mermaid(diagram: Diagram) -> str:
    """The text of a sequence diagram. https://mermaid.js.org/syntax/sequenceDiagram.html"""
    ids = {name: f"p{number}" for number, name in enumerate(diagram.participants)}
    lines = ["sequenceDiagram"]
    lines += [f"  participant {id} as {_plain(name)}" for name, id in ids.items()]
    for row in diagram.rows:
        source = ids[row.participant]
        note = f"<br/>{_plain(row.note)}" if row.note else ""
        said = f"+{duration(row.after)}"
        if row.to:
            arrow = "->>" if row.path is Path.HAPPY else "-->>"
            label = f"{_plain(row.label)} {said}"
            for number, name in enumerate(row.to):
                text = label if number == 0 else _plain(row.label)
                lines.append(f"  {source}{arrow}{ids[name]}: {text}")
            if row.note:
                lines.append(f"  Note over {source}: {_plain(row.note)}")
        else:
            sign = SIGNS[row.kind]
            lines.append(f"  Note over {source}: {sign} {_plain(row.label)} {said}{note}")
    return "\n".join(lines) + "\n"


_TO_MERMAID: Final = str.maketrans({char: f"#{ord(char)};" for char in '#;<>&%"\\'})


def _plain(text: str) -> str:
    """On one line, with what means something to Mermaid or to HTML by its number, as Mermaid reads
    it."""
    return " ".join(harmless(text).translate(_TO_MERMAID).split())


# --- a picture --------------------------------------------------------------------------------

_CHARACTER: Final = 7.3
_ROW: Final = 38.0
_HEADER: Final = 56.0
_MARGIN: Final = 16.0
_TIMES: Final = 80.0
STYLE: Final = """
svg { --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --happy: #1a7f37; --failure: #cf222e; --compensation: #6639ba; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #f0f6fc; --faint: #9198a1;
  --line: #3d444d; --happy: #3fb950; --failure: #f85149; --compensation: #ab7df8; } }
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  fill: var(--ink); }
.small { font-size: 10px; fill: var(--faint); }
.lane { font-weight: bold; font-size: 14px; text-anchor: middle; }
.life { stroke: var(--line); }
.arrow { fill: none; stroke-width: 1.6; }
.failure { stroke: var(--failure); stroke-dasharray: 7 4; }
.compensation { stroke: var(--compensation); stroke-dasharray: 1.5 4.5; stroke-linecap: round; }
.happy { stroke: var(--happy); }
.sign { text-anchor: middle; }
.tip.happy, .sign.happy { fill: var(--happy); stroke: none; }
.tip.failure, .sign.failure { fill: var(--failure); stroke: none; }
.tip.compensation, .sign.compensation { fill: var(--compensation); stroke: none; }
"""


def as_svg(diagram: Diagram, title: str) -> str:
    """The picture, as the text of a file that needs no program, font or script; light or dark."""
    diagram = _harmless(diagram)
    pitch = _CHARACTER * max(
        [
            20,
            *(len(row.label) + 6 for row in diagram.rows if row.to),
            *map(len, diagram.participants),
        ]
    )
    lanes = {
        name: _TIMES + _MARGIN + pitch * (number + 0.5)
        for number, name in enumerate(diagram.participants)
    }
    ends = [
        lanes[row.participant] + _CHARACTER * (max(len(row.label), len(row.note)) + 4)
        for row in diagram.rows
        if not row.to
    ]
    notes = [
        lanes[row.participant] + _CHARACTER * (len(row.note) + 2) for row in diagram.rows if row.to
    ]
    width = max([_TIMES + pitch * len(lanes), *ends, *notes]) + _MARGIN
    height = _HEADER + _ROW * (len(diagram.rows) + 1)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">',
        f"<title>{in_xml(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width:g}" height="{height:g}" fill="var(--paper)"/>',
    ]
    for name, x in lanes.items():
        parts.append(f'<text class="lane" x="{x:g}" y="28">{in_xml(name)}</text>')
        parts.append(f'<path class="life" d="M{x:g} 40V{height - 12:g}"/>')
    for number, row in enumerate(diagram.rows):
        parts += _row(row, lanes, _HEADER + _ROW * (number + 0.5))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _row(row: Row, lanes: dict[str, float], y: float) -> Sequence[str]:
    x, path = lanes[row.participant], row.path
    parts = [f'<text class="small" x="{_MARGIN:g}" y="{y + 4:g}">+{duration(row.after)}</text>']
    ends = [lanes[name] for name in row.to]
    for side in (1.0, -1.0):
        beyond = [end for end in ends if (end - x) * side > 0]
        if beyond:
            furthest = max(beyond, key=lambda end: end * side) - 9 * side
            parts.append(f'<path class="arrow {path}" d="M{x:g} {y:g}H{furthest:g}"/>')
        parts += (
            f'<path class="tip {path}" d="M{end:g} {y:g}l{-9 * side:g} -4.5v9z"/>' for end in beyond
        )
    parts.append(f'<text class="sign {path}" x="{x:g}" y="{y + 4:g}">{SIGNS[row.kind]}</text>')
    leftwards = bool(row.to) and all(lanes[name] < x for name in row.to)
    at, anchor = (x - 12, "end") if leftwards else (x + 12, "start")
    label_y, note_y = (y - 5, y + 13) if row.to else (y + 4, y + 16)
    parts.append(
        f'<text x="{at:g}" y="{label_y:g}" text-anchor="{anchor}">{in_xml(row.label)}</text>'
    )
    if row.note:
        parts.append(
            f'<text class="small" x="{at:g}" y="{note_y:g}" text-anchor="{anchor}">'
            f"{in_xml(row.note)}</text>"
        )
    return parts
