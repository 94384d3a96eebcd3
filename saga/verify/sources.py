"""Which code a proof was made with: a digest of each module that it may depend on, so that what has
changed since can be told later."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Final

from saga.declaration import Saga

DIGEST_CHARACTERS: Final = 16
_BESIDE: Final = ("saga.commands", "saga.console")
"""Of the engine, what a proof does not depend on: it asks for proofs, and shows them."""
MISSING: Final = ""
"""Stands for the digest of a module that there is not."""


def sources(saga: Saga) -> dict[str, str]:
    """Keyed by module: the digest of its file; of the engine's modules and of the saga's own that
    are loaded by now, whatever else is installed. Take it once the proof is made; blocks."""
    own = {name.partition(".")[0] for name in _declared(saga)}
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        file = _file_of(module)
        if file is None or name == "__main__" or f"{name}.".startswith(_PREFIXES):
            continue
        top = name.partition(".")[0]
        if top == "saga" or top in own or not any(map(file.is_relative_to, installed)):
            found[name] = _digest(file)
    return found


def changed(known: Mapping[str, str]) -> list[str]:
    """Those of the modules whose files are not as they were, by name; blocks. What a changed module
    has come to import besides follows from that it is changed."""
    return [name for name, digest in known.items() if _digest_now(name) != digest]


def _declared(saga: Saga) -> Iterable[str]:
    """Modules of what the saga declares. What these import is loaded with them."""
    graph = saga.choreography
    yield from (participant.package for participant in graph.participants)
    yield from (
        reaction.function.__module__ for p in graph.participants for reaction in p.reactions
    )
    yield from (kind.__module__ for kind in graph.recorded)
    yield from (invariant.function.__module__ for invariant in saga.invariants)


def _digest_now(name: str) -> str:
    module = sys.modules.get(name)
    file = None if module is None else _file_of(module)
    if file is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return MISSING
        if spec is None or spec.origin is None:
            return MISSING
        file = Path(spec.origin)
    return _digest(file)


def _file_of(module: ModuleType) -> Path | None:
    """Its source; None for what has none, such as a folder of packages."""
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None


def _digest(file: Path) -> str:
    try:
        there = file.stat()
    except OSError:
        return MISSING
    return _digest_of(file, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=4_096)
def _digest_of(file: Path, _changed_at: int, _size: int) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:DIGEST_CHARACTERS]
    except OSError:
        return MISSING


_PREFIXES: Final = tuple(f"{name}." for name in _BESIDE)
