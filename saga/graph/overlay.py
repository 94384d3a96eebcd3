"""What is written over the map: figures, links and marks, which change while the drawing stays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from saga.graph.flow import Node
from saga.text import in_xml

LINE: Final = 14.0
"""Pixels that a line of figures takes."""
LANE_LINES: Final = 3
"""Lines below a participant's name."""
LINE_CHARACTERS: Final = 16
"""A node has room for a line of so many, so that it stays in its place while figures change."""
EDGE_CHARACTERS: Final = 6
"""The same of an edge."""
EDGE_INTO_CHARACTERS: Final = 14
"""The same of an edge to who takes the message, at which something may wait."""
_BETWEEN: Final = " · "


@dataclass(frozen=True, slots=True)
class LinePart:
    """A piece of a line: its text, the page behind it, and what that is, said at length.

    `kind` is a class of the style sheet: `bad` or `warn`, or none.
    """

    text: str
    href: str | None = None
    about: str = ""
    kind: str = ""


Line = Sequence[LinePart]
"""Pieces, side by side."""


@dataclass(frozen=True)
class Overlay:
    """What to write over the map of a choreography."""

    nodes: Mapping[Node, Line] = field(default_factory=dict)
    edges: Mapping[tuple[Node, Node], Line] = field(default_factory=dict)
    """Those along which something went, or at which something waits."""
    lanes: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    """Keyed by participant, at most `LANE_LINES`."""
    down: Collection[str] = ()
    """The participants that do not do their work."""
    marked: Mapping[Node, str] = field(default_factory=dict)
    """The nodes that something is wrong with, and what."""


def length(line: Line) -> int:
    """Characters of a line."""
    return len(_BETWEEN.join(piece.text for piece in line))


def drawn_line(line: Line, x: float, y: float, kind: str = "small") -> str:
    """A line, its middle at `x`; empty where it has no piece. `kind` is its class."""
    if not line:
        return ""
    pieces = in_xml(_BETWEEN).join(map(_drawn, line))
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{pieces}</text>'


def drawn_lines(lines: Iterable[Line], x: float, y: float) -> Iterable[str]:
    """Lines, one below the other, the first one's middle at `y`."""
    for number, line in enumerate(lines):
        yield drawn_line(line, x, y + number * LINE)


def _drawn(piece: LinePart) -> str:
    said = in_xml(piece.text)
    if piece.href is None:
        kind = f' class="{piece.kind}"' if piece.kind else ""
        about = f"<title>{in_xml(piece.about)}</title>" if piece.about else ""
        return f"<tspan{kind}>{about}{said}</tspan>" if kind or about else said
    return (
        f'<a href="{in_xml(piece.href)}" aria-label="{in_xml(piece.about or piece.text)}">'
        f'<tspan class="figure {piece.kind}">{said}</tspan></a>'
    )
