"""The documentation's site: built whole, its links lead somewhere, and it needs no network."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handbook.__main__ import build
from handbook.check import broken_links
from handbook.reference import REFERENCE
from handbook.source import BrokenLinkError, assemble, pages, relinked
from saga.cli import command_line
from saga.discovery import choreography
from saga.schemas.export import travelling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("handbook"))


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > len(pages(ROOT))
    assert broken_links(site) == []


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    for page in pages(ROOT):
        name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        assert (site / page.parent / name).exists(), page


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<a href="gone.html">x</a> <a href="#part">y</a>')
    told = broken_links(tmp_path)
    assert told == [
        "page.html leads to gone.html, which is not there",
        "page.html leads to #part, and there is no such heading",
    ]


def test_what_is_loaded_from_another_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<script src="https://cdn.example/x.js"></script>')
    assert broken_links(tmp_path) == [
        "page.html loads https://cdn.example/x.js from another machine"
    ]


def test_a_page_that_leads_to_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("[there](gone.py)")
    with pytest.raises(BrokenLinkError, match=r"README\.md leads to gone\.py"):
        assemble(tmp_path, tmp_path / "built")


def test_what_is_shown_as_code_is_left_alone() -> None:
    page = "[a](b.md)\n```text\n[a](b.md)\n```\n"
    assert relinked(page, lambda _: "c.md") == "[a](c.md)\n```text\n[a](b.md)\n```\n"


def named(entry: Any) -> Iterator[str]:
    """The pages below an entry of the navigation."""
    if isinstance(entry, str):
        yield entry
    for each in entry.values() if isinstance(entry, dict) else entry:
        if not isinstance(entry, str):
            yield from named(each)


def test_the_navigation_names_every_page_of_docs() -> None:
    navigation = set(named(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    documents = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    written = {f"docs/reference/{name}" for name in REFERENCE}
    assert documents | written <= navigation


def test_the_reference_has_every_command_and_every_message() -> None:
    commands, messages = REFERENCE["commands-in-full.md"](), REFERENCE["messages.md"]()
    for name in command_line().commands:
        assert f"\n## saga {name}" in commands, name
    for message in travelling(choreography()):
        assert f"\n## {message.type}\n" in messages, message.type


def test_the_glossary_is_in_order_and_says_each_word_once() -> None:
    rows = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    words = [row.split("|")[1].strip() for row in rows if row.startswith("| ")][1:]
    assert words == sorted(set(words))
