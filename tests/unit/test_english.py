"""The word list catches what it lists, where readers meet it, and nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests import english
from tests.english import Exemption, Finding, Text, Word, WordList

WORDS = WordList()
HERE = "docs/page.md"


def found(text: str, path: str = HERE, *, page: bool = False) -> list[str]:
    return [one.found for one in WORDS.findings(Text(path, 1, text, page))]


@pytest.mark.parametrize("word", WORDS.words, ids=lambda word: word.sample)
def test_each_pattern_catches_its_sample(word: Word) -> None:
    assert word.say
    assert word.why
    assert [one for one in WORDS.findings(Text(HERE, 1, word.sample)) if one.say == word.say]


@pytest.mark.parametrize(
    "text",
    [
        "It is unknown whether the broker took it.",
        "Keyed by order id: time of the last event.",
        "By default, off.",
        "A person is forgotten by destroying their key.",
        "Has no rows.",
        "There is no one-to-one mapping.",
        "The history of this theme, here.",
    ],
)
def test_plain_sentences_pass(text: str) -> None:
    assert found(text, page=True) == []


def test_a_word_is_found_where_it_stands_across_lines() -> None:
    (finding,) = WORDS.findings(Text("saga/x.py", 7, "One.\n\nIt is left for a\nperson."))
    assert (finding.line, finding.found) == (9, "a person")
    assert str(finding).startswith("saga/x.py:9: a person: say the role")


def test_a_page_is_read_without_code_and_links_targets() -> None:
    page = (
        "Run `nobody` in ``so`` [many](nobody.md) ways.\n\n"
        "```text\nNobody knows.\n```\n\n<!-- nobody -->\nAnd nobody sees."
    )
    (text,) = english.page_texts(HERE, page)
    assert [(one.line, one.found) for one in WORDS.findings(text)] == [(8, "nobody")]


def test_docstrings_comments_and_messages_of_code_are_read_and_names_are_not() -> None:
    code = (
        '"""Nobody knows."""\n'
        "nobody = 1  # anew\n"
        "# for a\n# person\n"
        "def f(nobody):\n"
        '    raise ValueError(f"{nobody} is seen by nobody")\n'
        'key = "nobody"\n'
    )
    read = [one for text in english.python_texts("saga/x.py", code) for one in WORDS.findings(text)]
    assert sorted((one.line, one.found) for one in read) == [
        (1, "Nobody"),
        (2, "anew"),
        (3, "a person"),
        (6, "nobody"),
    ]


def test_a_number_before_a_plural_is_found_unless_it_agrees_or_is_a_limit() -> None:
    code = (
        'a = f"{count} dead letters"\n'
        "b = f\"{counted(count, 'dead letter')}, {LETTERS_MAX} letters, {rate} letters a second\"\n"
        'c = f"{one.rate} letters/s, {where} has letters"\n'
    )
    read = [one for text in english.python_texts("saga/x.py", code) for one in WORDS.findings(text)]
    assert [(one.line, one.found) for one in read] == [(1, "{count} dead letters")]


def test_a_number_before_a_plural_is_found_in_a_template() -> None:
    template = (
        "<p>{{ count }} letters</p>\n<p>{{ count|counted('letter') }}</p>\n"
        "<th>{{ name }}</th> <th>letters</th>"
    )
    (text,) = english.template_texts("saga/console/templates/x.html", template)
    assert [(one.line, one.found) for one in WORDS.findings(text)] == [(1, "}} letters")]


def test_strings_of_tests_are_data() -> None:
    code = '"""Nobody knows."""\nname = "nobody at all"\n'
    for path, count in (("tests/x.py", 1), ("examples/y/tests/x.py", 1), ("saga/x.py", 2)):
        read = [one for text in english.python_texts(path, code) for one in WORDS.findings(text)]
        assert len(read) == count


def test_a_template_is_read_without_tags_and_scripts() -> None:
    template = '<p class="nobody" title="by whoever">nobody</p>\n<script>nobody</script>'
    (text,) = english.template_texts("saga/x.html", template)
    assert sorted(one.found for one in WORDS.findings(text)) == ["nobody", "whoever"]


def test_a_sentence_of_too_many_words_is_found_and_an_item_ends_one() -> None:
    short = " ".join(["word"] * english.SENTENCE_WORDS_MAX)
    assert found(f"{short}.\n- {short}\n- {short}\n\n| {short} | {short} |", page=True) == []
    assert found(f"A {short}.", page=True) == ["A word word word word word ..."]


def test_an_exemption_covers_its_place_only_and_one_that_covers_nothing_is_named() -> None:
    words = WordList()
    words.exemptions = (
        Exemption("saga/x/*.py", "nobody at all", "a quotation"),
        Exemption("saga/y.py", "nobody", "unused"),
    )
    covered = Finding("saga/x/y.py", 1, "nobody", "it", "nobody at all")
    elsewhere = Finding("saga/x/y.py", 2, "nobody", "it", "nobody")
    left, unused = words.judged([covered, elsewhere])
    assert (left, unused) == ([elsewhere], [words.exemptions[1]])


def test_every_exemption_says_why() -> None:
    assert all(one.why and one.text for one in WORDS.exemptions)


def test_the_pages_the_code_and_the_templates_are_read() -> None:
    read = set(english.files())
    assert {
        "README.md",
        "docs/scale.md",
        "saga/cli.py",
        "saga/console/templates/books.html",
    } <= read
    assert not {path for path in read if path.startswith("tests/data/")}


def test_what_is_wrong_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "ROOT", tmp_path)
    monkeypatch.setattr(english, "files", lambda: iter(["page.md"]))
    page, out = tmp_path / "page.md", io.StringIO()
    page.write_text("Nobody knows.")
    assert english.main(["page.md"], out) == 1
    assert out.getvalue().startswith("page.md:1: Nobody: say ")
    page.write_text("It is unknown.")
    assert english.main(["page.md"], out) == 0
