"""What commands print: texts, never markup, and whole, in a pipe and on a narrow terminal."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from saga.commands import console
from saga.commands.console import Line, Table, lines_of, out, stacked, styled

ID = "9b695b7c-423b-5f77-b29e-1b10bc1cc6cc"
ODD = ("[/b]", "[red]ada[/red]", ":smile:", "ad\u202ea", "a\x1b[2Jb", "\\[red]")


@pytest.fixture
def printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What arrives in a pipe, or on a terminal of some width."""

    def show(*what: str | Table | Line, width: int | None = None) -> str:
        if width is not None:
            for name, value in (("TTY_COMPATIBLE", "1"), ("TERM", "xterm"), ("COLUMNS", width)):
                monkeypatch.setenv(name, f"{value}")
        for each in what:
            out().print(each)
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    return show


def table(*rows: tuple[str, ...], **options: object) -> Table:
    made = Table("order", "what", "why", **options)  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*row)
    return made


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_shown_as_it_is_in_a_table_a_line_and_a_title(
    text: str, printed: Callable[..., str]
) -> None:
    shown = printed(text, styled((text, "red"), text), table((ID, text, ""), title=text))

    as_shown = text.encode("unicode_escape").decode() if not text.isprintable() else text
    assert shown.count(as_shown) == 5
    assert all(line.isprintable() for line in shown.splitlines())


def test_no_value_is_cut_in_a_pipe(printed: Callable[..., str]) -> None:
    error = "a long error, " * 40

    assert f"│ {error}" in printed(table((ID, "order.placed", error.strip())))


@pytest.mark.parametrize("width", [30, 60, 80, 120, 400])
def test_every_word_is_whole_on_a_terminal_of_any_width(
    width: int, printed: Callable[..., str]
) -> None:
    shown = printed(table((ID, "order.placed", "it was sold out"), (ID, "", "no")), width=width)

    assert shown.count(ID) == 2 or width < 42
    assert all(word in shown for word in ("order.placed", "sold", "out"))
    assert all(cell_len(line.rstrip()) <= width for line in shown.splitlines())


def test_a_table_that_does_not_fit_comes_line_by_line(printed: Callable[..., str]) -> None:
    shown = printed(table((ID, "order.placed", "sold out"), (ID, "order.lost", "")), width=60)

    assert [line.rstrip() for line in shown.splitlines()] == [
        f"order  {ID}",
        "what   order.placed",
        "why    sold out",
        "",
        f"order  {ID}",
        "what   order.lost",
    ]


def test_lines_of_one_cell_stay_lines(printed: Callable[..., str]) -> None:
    made = Table("takes", frame=False, lines=["takes"])
    made.add_row(stacked("order.placed", styled(("order", "bold"), ".lost")))

    *_, first, second = map(str.strip, printed(made).splitlines())
    assert (first, second) == ("order.placed", "order.lost")


def test_a_document_keeps_its_lines_and_nothing_else(
    capsys: pytest.CaptureFixture[str], printed: Callable[..., str]
) -> None:
    console.write("<svg>\n[red]\x1b</svg>\n")

    assert capsys.readouterr().out == "<svg>\n[red]\\x1b</svg>\n"
    assert printed(lines_of("a\n\x1b[b]")) == "a\n\\x1b[b]\n"
