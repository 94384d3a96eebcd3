"""The saga that a project names is found, or one line says what to correct."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from saga import discovery
from saga.declaration import SagaError
from saga.graph import canvas


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which modules are loaded for this test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(discovery.VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize("where", [":", ":SAGA", "..", "trips.:SAGA", "../trips:SAGA"])
def test_what_names_no_module_is_refused(where: str, folder: Path) -> None:
    with pytest.raises(SagaError, match="names no module; write module:NAME"):
        discovery.named(where)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 / 0\n", r"ZeroDivisionError: .*broken_saga\.py, line 1"),
        ("\ndef saga(:\n", r"SyntaxError: .*broken_saga\.py, line 2"),
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .*broken_saga\.py, line 3"),
        ("import not_installed\n", r"No module named 'not_installed' .*broken_saga\.py, line 1"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named_with_the_line(
    text: str, why: str, folder: Path
) -> None:
    (folder / "broken_saga.py").write_text(text)

    with pytest.raises(SagaError, match=f"'broken_saga' cannot be loaded: .*{why}"):
        discovery.named("broken_saga:SAGA")


def test_a_page_of_a_service_whose_module_cannot_be_loaded_names_the_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "broken_app.py").write_text("1 / 0\n")

    with pytest.raises(SagaError, match=r"'broken_app' cannot be loaded: .*broken_app\.py, line 1"):
        canvas._optional("broken_app")


def test_a_project_file_whose_tools_are_no_table_names_no_saga(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyproject.toml").write_text("tool = 3\n")
    monkeypatch.setattr(discovery, "_folders", lambda: iter([folder]))

    with pytest.raises(SagaError, match="no saga is named"):
        discovery.spec()
