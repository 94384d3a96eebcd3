"""The files of the site before it is built: the repository's pages where they are, and what they
lead to.

A link that works in the repository works in the site: pages keep their paths, a file that is no
page is shown on one, and a folder has a list of what is in it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PAGES: Final = (
    "*.md",
    "bench/README.md",
    "docs/**/*.md",
    "examples/*/README.md",
)
AS_THEY_ARE: Final = frozenset({".svg", ".png"})
"""What a browser shows by itself."""
LANGUAGES: Final = {".py": "python", ".json": "json", ".yaml": "yaml", ".toml": "toml"}
SHOWN_MAX_BYTES: Final = 300_000
"""A file that is longer is named, and not shown."""

_FENCED: Final = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")
_ATTRIBUTE: Final = re.compile(r'((?:src|href|srcset)=")([^"]+)(")')


class BrokenLinkError(Exception):
    """A page leads to a file that is not there."""


def pages(root: Path) -> list[Path]:
    """Every page of the repository, relative to it."""
    found = {path.relative_to(root) for pattern in PAGES for path in root.glob(pattern)}
    return sorted(found)


def assemble(root: Path, target: Path) -> None:
    """Copy the pages of `root` to `target`, with all they lead to. Raises `BrokenLinkError`."""
    wanted = pages(root)
    known = set(wanted)
    while wanted:
        page = wanted.pop()
        led_to: set[Path] = set()
        text = relinked((root / page).read_text(encoding="utf-8"), follower(root, page, led_to))
        write(target / page, text)
        for path in led_to - known:
            known.add(path)
            _show(root, path, target)


def follower(root: Path, page: Path, led_to: set[Path]) -> Callable[[str], str]:
    """What a link of `page` is in the site; adds what it leads to, unless that is a page."""
    known = set(pages(root))

    def follow(link: str) -> str:
        if re.match(r"[a-z]+:|#|//", link):
            return link
        name, mark, heading = link.partition("#")
        there = (root / page.parent / name).resolve()
        if not there.exists() or not there.is_relative_to(root.resolve()):
            raise BrokenLinkError(f"{page} leads to {link}, which is not there")
        path = there.relative_to(root.resolve())
        if path in known:
            return link
        if there.is_dir():
            if path / "README.md" in known:
                return f"{name.rstrip('/')}/README.md{mark}{heading}"
            led_to.add(path)
            return f"{name.rstrip('/')}/index.md"
        led_to.add(path)
        return link if path.suffix in AS_THEY_ARE else f"{name}.md{mark}{heading}"

    return follow


def relinked(text: str, follow: Callable[[str], str]) -> str:
    """The page with each of its links followed, except in what is shown as code."""

    def outside_of_code(part: str) -> str:
        for pattern in (_LINK, _ATTRIBUTE):
            part = pattern.sub(lambda found: found[1] + follow(found[2]) + found[3], part)
        return part

    return "".join(part if is_code else outside_of_code(part) for part, is_code in _by_fences(text))


def _by_fences(text: str) -> Iterator[tuple[str, bool]]:
    end = 0
    for fenced in _FENCED.finditer(text):
        yield text[end : fenced.start()], False
        yield fenced[0], True
        end = fenced.end()
    yield text[end:], False


def _show(root: Path, path: Path, target: Path) -> None:
    """Make the page of a file or a folder that is none itself."""
    there = root / path
    if there.is_dir():
        write(target / path / "index.md", _folder(root, path))
    elif path.suffix in AS_THEY_ARE:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there, target / path)
    else:
        write(target / f"{path}.md", _file(there, path))


def _folder(root: Path, path: Path) -> str:
    lines = [f"# {path}", ""]
    for entry in sorted((root / path).iterdir()):
        if entry.suffix == ".md":
            lines.append(f"- [{title(entry)}]({entry.name})")
        elif not entry.name.startswith((".", "__")):
            lines.append(f"- `{entry.name}{'/' if entry.is_dir() else ''}`")
    return "\n".join([*lines, ""])


def _file(there: Path, path: Path) -> str:
    if there.stat().st_size > SHOWN_MAX_BYTES:
        return f"# {path}\n\n{there.stat().st_size:,} bytes, in the repository.\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {path}\n\n````{language}\n{there.read_text(encoding='utf-8').rstrip()}\n````\n"


def title(page: Path) -> str:
    """A page's first heading."""
    found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else page.stem


def write(path: Path, text: str) -> None:
    """Write a file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
