"""Plain English: what pages, docstrings, comments and messages must not say; run by `make lint`.

The word list is `tests/english.toml`: a pattern, what to say instead, why, and a sample that must
be caught. Code spans and code blocks are left out.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final, TextIO

ROOT: Final = Path(__file__).parents[1]
WORD_LIST: Final = Path(__file__).with_suffix(".toml")
NOT_READ: Final = (
    "tests/data/",
    "tests/english.toml",
    "tests/survivors.txt",
    "contracts/released/",
    "LICENSE",
)
"""Recorded data, the list itself, and what was released and must not change."""
NO_MESSAGES: Final = re.compile(r"(^|/)tests/")
"""In tests, strings that are no docstrings are data: no user reads them."""
NO_COUNTS: Final = re.compile(r"(^|/)(tests|bench|examples)/")
"""Where counts may stand beside a plural: benchmarks count in thousands, and examples show a
domain without helpers."""
SENTENCE_WORDS_MAX: Final = 45
"""A sentence of a page with more words than this is split. List items count by themselves."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a reader meets, and where it begins."""

    path: str
    line: int
    words: str
    page: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """An entry of the word list."""

    pattern: re.Pattern[str]
    say: str
    why: str
    sample: str


@dataclass(frozen=True, slots=True)
class Exemption:
    """A place where a word of the list is right, and why. `text` is a part of the line."""

    path: str
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    path: str
    line: int
    found: str
    say: str
    context: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found}: say {self.say}"


class WordList:
    """The patterns and the exemptions, as the file has them."""

    def __init__(self, path: Path = WORD_LIST) -> None:
        document = tomllib.loads(path.read_text())
        self.words = tuple(
            Word(
                re.compile(word["pattern"].replace(" ", r"\s+"), re.MULTILINE),
                word["say"],
                word["why"],
                word["sample"],
            )
            for word in document["word"]
        )
        self.exemptions = tuple(Exemption(**one) for one in document.get("exempt", ()))

    @cached_property
    def quick(self) -> re.Pattern[str]:
        """Matches whatever one of the words matches: most texts are read once only."""
        return re.compile("|".join(word.pattern.pattern for word in self.words), re.MULTILINE)

    def findings(self, text: Text) -> Iterator[Finding]:
        if self.quick.search(text.words):
            for word in self.words:
                for match in word.pattern.finditer(text.words):
                    yield _finding(text, match.start(), " ".join(match[0].split()), word.say)
        if text.page:
            for start, sentence in sentences(text.words):
                count = len(sentence.split())
                if count > SENTENCE_WORDS_MAX:
                    say = f"it in shorter sentences: of {count} words, {SENTENCE_WORDS_MAX} at most"
                    yield _finding(text, start, " ".join(sentence.split()[:6]) + " ...", say)

    def judged(self, findings: Iterable[Finding]) -> tuple[list[Finding], list[Exemption]]:
        """The findings that no exemption covers, and the exemptions that cover nothing."""
        left, used = list[Finding](), set[Exemption]()
        for finding in findings:
            covering = [
                one
                for one in self.exemptions
                if PurePosixPath(finding.path).match(one.path) and one.text in finding.context
            ]
            used.update(covering)
            if not covering:
                left.append(finding)
        return left, [one for one in self.exemptions if one not in used]


def _finding(text: Text, start: int, found: str, say: str) -> Finding:
    line = text.words.count("\n", 0, start)
    context = text.words.splitlines()[line]
    return Finding(text.path, text.line + line, found, say, context)


_BREAK: Final = r"\s*\n|\s*(?:[-*>#|]|\d+\.)\s"
"""What follows the end of a line where a paragraph, an item, a heading or a row begins."""
_BLOCK: Final = re.compile(rf"(?:[^\n|]|\n(?!{_BREAK}))+")

_SENTENCE: Final = re.compile(r"[^\s\-*>#].*?(?:[.:;!?](?=[\s)*\"]|$)|\Z)", re.DOTALL)


def sentences(page: str) -> Iterator[tuple[int, str]]:
    """The sentences of a page, each with where it begins. A list item, a table's cell or a
    heading ends one."""
    for block in _BLOCK.finditer(page):
        for sentence in _SENTENCE.finditer(block[0]):
            yield block.start() + sentence.start(), sentence[0]


def without_code(page: str) -> str:
    """A Markdown page with code and links' targets blanked: every line stays where it was."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    def blank_span(match: re.Match[str]) -> str:
        return "`" + re.sub(r"[^\n]", "x", match[0][1:-1]) + "`"

    page = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", blank, page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"<!--.*?-->", blank, page, flags=re.DOTALL)
    page = re.sub(r"`[^`\n]+(?:\n[^`\n]+)?`", blank_span, page)
    return re.sub(r"(?<=\])\([^()\s]*\)", blank, page)


def page_texts(path: str, source: str) -> Iterator[Text]:
    yield Text(path, 1, without_code(source), page=True)


def template_texts(path: str, source: str) -> Iterator[Text]:
    """What a template shows: neither its tags nor its expressions, but for quoted texts in them."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    def attributes(match: re.Match[str]) -> str:
        kept = re.compile(r'(?:title|alt|placeholder|aria-label)="([^"]*)"')
        spans = [found.span(1) for found in kept.finditer(match[0])]
        return "".join(
            character
            if character == "\n" or any(start <= at < end for start, end in spans)
            else " "
            for at, character in enumerate(match[0])
        )

    source = re.sub(r"<(script|style)\b.*?</\1>", blank, source, flags=re.DOTALL)
    source = re.sub(r"<[a-zA-Z/!][^>]*>", attributes, source)
    yield Text(path, 1, source)


def line_texts(path: str, source: str) -> Iterator[Text]:
    """Files of settings and scripts: comments and texts stand among them, so all is read."""
    yield Text(path, 1, re.sub(r"`[^`\n]+`", lambda found: "x" * len(found[0]), source))


def _spans_blanked(text: str) -> str:
    return re.sub(r"``?[^`]+``?", lambda found: re.sub(r"[^\n]", "x", found[0]), text)


def comment_texts(path: str, source: str) -> Iterator[Text]:
    """Comments; those on lines after each other are one text."""
    begun, lines, last = 0, list[str](), -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        own_line = not token.line[: token.start[1]].strip()
        if lines and own_line and token.start[0] == last + 1:
            lines.append(token.string.lstrip("#"))
        else:
            if lines:
                yield Text(path, begun, _spans_blanked("\n".join(lines)))
            begun, lines = token.start[0], [token.string.lstrip("#")]
        last = token.start[0]
    if lines:
        yield Text(path, begun, _spans_blanked("\n".join(lines)))


_SEVERAL: Final = re.compile(r" (?:[a-z-]+ )?[a-z]+s\b")
_LIMIT: Final = re.compile(r"(?:\w+\.)*(?:[A-Z_]+|\w+_max)|max\(.*|counted\(.*", re.DOTALL)
"""Values of which there are always several, or that agree with their words already."""


def count_texts(path: str, tree: ast.AST) -> Iterator[Text]:
    """What f-strings say after a value, which may be a number: with 1, `letters` is wrong."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr) or NO_COUNTS.search(path):
            continue
        for value, said in itertools.pairwise(node.values):
            if (
                isinstance(value, ast.FormattedValue)
                and isinstance(said, ast.Constant)
                and isinstance(said.value, str)
                and (several := _SEVERAL.match(said.value))
                and not _LIMIT.fullmatch(ast.unparse(value.value))
            ):
                said_of_it = said.value[: several.end() + len(" per ")].replace("\n", " ")
                yield Text(path, value.lineno, f"{{count}}{said_of_it}")


def string_texts(path: str, source: str) -> Iterator[Text]:
    """Docstrings, those of attributes too, and messages: other strings of several words."""
    tree = ast.parse(source)
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    lines = source.splitlines()
    yield from count_texts(path, tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in documents:
            yield Text(path, node.lineno, _spans_blanked(node.value))
        elif " " in node.value.strip() and not NO_MESSAGES.search(path):
            # Strings written one after the other are one: a part is looked for where it stands.
            words = node.value.replace("\n", " ")
            at = next(
                (
                    number
                    for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    if words.strip()[:20] in lines[number - 1]
                ),
                node.lineno,
            )
            yield Text(path, at, _spans_blanked(words))


def python_texts(path: str, source: str) -> Iterator[Text]:
    yield from comment_texts(path, source)
    yield from string_texts(path, source)


READERS: Final = {
    ".md": page_texts,
    ".sh": line_texts,
    ".mjs": line_texts,
    ".py": python_texts,
    ".html": template_texts,
    ".json": line_texts,
    ".yaml": line_texts,
    ".yml": line_texts,
    ".toml": line_texts,
    ".svg": line_texts,
    ".js": line_texts,
    ".css": line_texts,
    ".conf": line_texts,
    "": line_texts,
}
"""Keyed by a file's suffix: what reads it. Other files hold no English."""


def files() -> Iterator[str]:
    """The files of this repository, new ones too, but for what is not read."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for path in listed:
        if not path.startswith(NOT_READ) and (ROOT / path).is_file():
            yield path


def texts(path: str) -> Iterator[Text]:
    reader = READERS.get(PurePosixPath(path).suffix)
    if reader is not None:
        yield from reader(path, (ROOT / path).read_text())


def main(paths: list[str], out: TextIO = sys.stdout) -> int:
    words = WordList()
    read = [path for path in files() if not paths or path.startswith(tuple(paths))]
    found = [one for path in read for text in texts(path) for one in words.findings(text)]
    left, unused = words.judged(found)
    for finding in sorted(left, key=lambda one: (one.path, one.line)):
        out.write(f"{finding}\n")
    if not paths:
        for exemption in unused:
            where = f"{exemption.text!r} in {exemption.path}"
            out.write(f"{WORD_LIST.name}: the exemption of {where} matches nothing; delete it\n")
    wrong = len(left) + (0 if paths else len(unused))
    out.write(f"{wrong} found in {len(read)} files\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
