"""The order flow in two styles: what follows from their signatures, and from a step added to each.

Nothing here is timed: who knows whom, how many states the checker visits, how many lines a step
takes. `bench.styles` has the rest.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from bench.rig import Variant
from bench.styles import CHOREOGRAPHY, EXAMPLE, ROOT, STYLES
from saga.choreography import Choreography, Participant
from saga.message import Command, Event

SCENARIOS: Final = ("one order", "two orders")
WITH_A_STEP: Final = ("one order", "a dear order")
STEPS: Final = Path(__file__).with_name("steps")
"""A credit check between stock and payment, as a diff for each style."""
STEP: Final = "credit"
COPIED: Final = (
    *("saga", "common", "order_saga", "examples/orchestrated", "pyproject.toml"),
    *("order_service", "inventory_service", "payment_service", "notification_service"),
)
KIB: Final = 1_024

_FOLDER: Final = {CHOREOGRAPHY.name: ROOT}
_PACKAGE: Final = {CHOREOGRAPHY.name: "order_saga"}
_LANGUAGE: Final = {CHOREOGRAPHY.name: "common.events"}


def folder_of(style: Variant) -> Path:
    """Where its project is."""
    return _FOLDER.get(style.name, EXAMPLE)


def choreography_of(style: Variant) -> Choreography:
    """Its signatures."""
    graph: Choreography = import_module(_PACKAGE.get(style.name, "orchestrated")).SAGA.choreography
    return graph


# --- who knows whom -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What a participant knows of others."""

    style: str
    participant: str
    others: Sequence[str]
    """Whose events it takes, whose commands it takes, and to whom it sends commands."""
    takes: int
    """Types of others' messages, but for what comes from outside."""
    says: int
    """Types that it publishes for others, or sends."""
    names: int
    """What it imports of the published language, values included."""


def known(style: Variant) -> list[Known]:
    """What each of the style's participants knows."""
    graph = choreography_of(style)
    running = [p for p in graph.participants if p.name in style.services]
    says = {p.name: _said(p) for p in running}
    takes = {p.name: {r.consumes for r in p.reactions} for p in running}
    found = []
    for participant in running:
        name = participant.name
        heard = {other: takes[name] & says[other] for other in says if other != name}
        told = {
            other: {kind for kind in takes[other] & says[name] if issubclass(kind, Command)}
            for other in says
            if other != name
        }
        found.append(
            Known(
                style.name,
                name,
                [other for other in heard if heard[other] or told[other]],
                sum(map(len, heard.values())),
                len(says[name]),
                _imported(participant, _LANGUAGE.get(style.name, "orchestrated.language")),
            )
        )
    return found


def _said(participant: Participant) -> set[Any]:
    return {
        kind
        for reaction in participant.reactions
        for kind in reaction.emits
        if not (issubclass(kind, Event) and kind.private)
    }


def _imported(participant: Participant, language: str) -> int:
    """How many names a participant's package takes from the published language."""
    folder = Path(str(import_module(participant.package).__file__)).parent
    names = {
        alias.name
        for file in folder.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == language
        for alias in node.names
    }
    return len(names)


# --- what the checker visits --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Explored:
    """A model of a style, explored to its end."""

    style: str
    model: str
    states: int
    steps: int
    seconds: float
    peak_mb: float
    """Of the process that explored it; no less than this one had when it started that."""


def explored(style: Variant) -> Iterator[Explored]:
    """Both scenarios, which are the same in both styles: an order, and two for the last unit."""
    for scenario in SCENARIOS:
        document, peak_mb = _verify(folder_of(style), ROOT, scenario)
        (model,) = document["models"]
        yield Explored(
            style.name,
            scenario,
            model["states"],
            model["transitions"],
            model["seconds"],
            peak_mb,
        )


def _verify(folder: Path, root: Path, *scenarios: str) -> tuple[Any, float]:
    """What `saga verify` says in a folder, with the code of `root`, and its most memory in MB.
    Raises `RuntimeError` where it finds something."""
    chosen = [word for scenario in scenarios for word in ("--scenario", scenario)]
    command = [sys.executable, "-m", "saga.cli", "verify", "--json", *chosen]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=said) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        document = said.read()
    if process.returncode:
        raise RuntimeError(f"saga verify found something in {folder}: {document!r}")
    return json.loads(document), usage.ru_maxrss * KIB / 1e6


# --- a step more --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddedStep:
    """What it takes to add a credit check: lines added and removed, by where they are."""

    style: str
    lines: Mapping[str, int]
    """Keyed by existing participant, `language`, `saga as a whole` and `new participant`."""


def step(style: Variant) -> AddedStep:
    """Count the lines of the diff, and see that the flow with it is sound."""
    patch = STEPS / f"{style.name}.patch"
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        for each in COPIED:
            source = ROOT / each
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", ".venv", "data", "*.egg-info")
                shutil.copytree(source, copy / each, ignore=ignored)
            else:
                shutil.copy(source, copy / each)
        subprocess.run(["git", "apply", patch], cwd=copy, check=True)  # noqa: S607 - wherever it is
        _verify(copy / folder_of(style).relative_to(ROOT), copy, *WITH_A_STEP)
    return AddedStep(style.name, _lines(patch.read_text()))


def _lines(patch: str) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    place = ""
    for line in patch.splitlines():
        if line.startswith("diff "):
            place = _place(Path(line.split(" b/")[1]))
        elif re.match(r"[+-](?![+-]{2} )", line) and line[1:].strip():
            counts[place] += 1
    return dict(counts)


def _place(file: Path) -> str:
    """Whose file it is."""
    package = file.parent.name.removesuffix("_service")
    if package == STEP:
        return "new participant"
    if file.name in ("events.py", "language.py"):
        return "language"
    return "saga as a whole" if package in ("order_saga", "orchestrated") else package


def shapes() -> tuple[list[Known], list[Explored], list[AddedStep]]:
    """All of it, of both."""
    return (
        [one for style in STYLES for one in known(style)],
        [one for style in STYLES for one in explored(style)],
        [step(style) for style in STYLES],
    )
