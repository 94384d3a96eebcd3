"""Where results go, and how: the one place that knows Rich and standard output.

Whatever is printed here is text, never markup: nothing in it is taken for a style, an emoji's name
or a terminal's escape sequence. So no view has to think of what others wrote. Sealed values are
masked, but for documents: those are for programs, and for `jq`. So is what a command hides
(`saga.commands.hiding`), in documents, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import rich.console
import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.text import Text

from saga.commands.hiding import hidden
from saga.text import harmless

_WIDTH_IN_A_PIPE: Final = 100_000
"""A program that reads a table wants whole values, not a screen's width."""

Line = Text
"""What is printed as it is: a text with styles, or of several lines."""
Styled = str | tuple[str, str]
"""A text, or one with its style, `red` say."""


class Console(rich.console.Console):
    """Prints texts as they are, and harmlessly."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = _WIDTH_IN_A_PIPE

    def render_str(self, text: str, *, style: str | Style = "", **_: Any) -> Text:
        """What Rich makes of every text it is given: one line, whatever is in it."""
        return Text(harmless(hidden().text(text)), style=style)


def out() -> Console:
    """Where results go: standard output."""
    return Console()


def err() -> Console:
    """Where progress goes: standard error."""
    return Console(stderr=True)


def styled(*parts: Styled) -> Line:
    """A line of these parts."""
    return Text.assemble(
        *(
            harmless(hidden().text(part))
            if isinstance(part, str)
            else (harmless(hidden().text(part[0])), part[1])
            for part in parts
        )
    )


def lines_of(text: str) -> Line:
    """A text of several lines, a diff say."""
    return Text(harmless(hidden().text(text), lines=True))


def stacked(*lines: Line | str) -> Line:
    """Several lines, in one cell of a table."""
    return Text("\n").join(line if isinstance(line, Text) else styled(line) for line in lines)


def write(document: str) -> None:
    """Write a whole document, as a diagram or JSON Lines, to standard output."""
    sys.stdout.write(harmless(hidden().document(document), lines=True))
    sys.stdout.flush()


class Table(rich.table.Table):
    """Rows under headers. On a terminal that is too narrow to show each word whole, they come one
    after the other, a line for each value."""

    def __init__(
        self,
        *headers: str,
        title: str | None = None,
        right: Sequence[str] = (),
        lines: Sequence[str] = (),
        frame: bool = True,
        show_header: bool = True,
    ) -> None:
        """`right` names the columns of numbers, `lines` those whose lines may not be broken."""
        super().__init__(title=title, show_header=show_header)
        if not frame:
            self.box, self.show_edge, self.pad_edge = SIMPLE_HEAD, False, False
        for header in headers:
            self.add_column(
                header,
                justify="right" if header in right else "left",
                no_wrap=header in lines,
                overflow="fold",
            )

    def __rich_console__(
        self, console: rich.console.Console, options: ConsoleOptions
    ) -> RenderResult:
        if self.show_header and not self._fits(console, options):
            return self._one_by_one(console, options)
        return super().__rich_console__(console, options)

    def _fits(self, console: rich.console.Console, options: ConsoleOptions) -> bool:
        """Whether every word does; then each column gets the room for its longest, and a share of
        what is left over."""
        room = options.max_width - 3 * len(self.columns) - 1
        spans = [
            [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
            for column in self.columns
        ]
        most = [max(span.maximum for span in each) for each in spans]
        if sum(most) <= room:
            return True
        least = [
            max(span.maximum if column.no_wrap else span.minimum for span in each)
            for column, each in zip(self.columns, spans, strict=True)
        ]
        if sum(least) > room:
            return False
        spare, wished = room - sum(least), sum(most) - sum(least)
        for column, low, high in zip(self.columns, least, most, strict=True):
            column.width = low + spare * (high - low) // wished
        return True

    def _one_by_one(
        self, console: rich.console.Console, options: ConsoleOptions
    ) -> Iterator[rich.console.RenderableType]:
        if self.title:
            yield console.render_str(str(self.title), style="bold")
        width = max(cell_len(str(column.header)) for column in self.columns)
        for number, cells in enumerate(
            zip(*(column.cells for column in self.columns), strict=True)
        ):
            if number:
                yield Text()
            record = rich.table.Table.grid(padding=(0, 2, 0, 0))
            record.add_column(no_wrap=True, style="dim", width=width)
            record.add_column(overflow="fold")
            for column, cell in zip(self.columns, cells, strict=True):
                if str(cell):
                    record.add_row(column.header, cell)
            yield record


@contextlib.contextmanager
def progress_bars(**totals: int | None) -> Iterator[dict[str, Callable[[int], None]]]:
    """A bar on standard error for each total, which may be unknown; what advances it is by the same
    name."""
    console = err()
    with Progress(
        TextColumn("{task.description:>8}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield {
            name: partial(progress.advance, progress.add_task(name, total=total))
            for name, total in totals.items()
        }
