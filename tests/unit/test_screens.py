"""The pictures of the console in the documents are of the pages as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.screens import FOLDER, PICTURES, SCHEMES, STATE, state

ROOT = Path(__file__).parents[2]


def test_the_pictures_were_taken_of_these_pages() -> None:
    assert STATE.read_text().strip() == state(), "run: .venv/bin/python -m monitoring.screens"


@pytest.mark.parametrize("name", PICTURES)
def test_each_is_there_light_and_dark_and_shown(name: str) -> None:
    text = (ROOT / "docs" / "console.md").read_text()
    for scheme in SCHEMES:
        file = FOLDER / f"{name}-{scheme}.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        assert f"console/{file.name}" in text
