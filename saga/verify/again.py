"""All calls of some models made again, in a process that hashes strings otherwise.

The order of a set of strings differs from process to process: what a reaction takes from it differs
between replicas, and after a restart. Within one process that never shows. Nor does what a module
has read when it was loaded.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

from saga.choreography import Participant
from saga.declaration import Saga
from saga.purity import SHOWN_MAX, Call, CallOutcome, Calls, names_in
from saga.verify.model import Model
from saga.view import Violation

SEEDS: Final = range(1, 41)
"""Of hashes, among which those are looked for that turn sets around."""
PROCESSES_MAX: Final = 8
"""Processes that make all calls again; few are needed, unless many strings meet in one call."""
TIMEOUT_SECONDS: Final = 600
"""For one of them; all calls of a large saga take seconds."""
PAIRS_MAX: Final = 20_000
"""Sets of two strings that are to be turned around."""
_PROBE: Final = """\
import json, sys
print("".join(str([*{a, b}].index(a)) for a, b in json.load(sys.stdin)))
"""
REASON: Final = "the order of a set (sort it), nor anything else that another process has otherwise"

_Made = Mapping[str, Sequence[tuple[Call, CallOutcome]]]
"""Keyed by participant: its calls, and what came of them here."""


def differences(
    source: str, made: Mapping[str, Sequence[Calls]]
) -> tuple[list[tuple[str, Violation]], list[str]]:
    """What comes out otherwise in another process, by model; and what was not looked at, as lines
    for people. Blocks, for as long as it takes to load the saga.

    `source` is an expression for the saga, or a model, as `module:expression`; keyed by model,
    `made` are the calls.
    """
    try:
        asked = pickle.dumps(
            {
                model: {each.participant.name: each.made for each in calls}
                for model, calls in made.items()
            }
        )
    except Exception as error:  # Whatever a domain's classes make of that.
        return [], _nowhere(f"what its reactions were called with cannot be sent there: {error}")
    found: dict[tuple[str, Violation], None] = {}
    pairs = [*_pairs(made)]
    try:
        seeds, unturned = _seeds(pairs[:PAIRS_MAX])
    except (OSError, subprocess.SubprocessError) as error:
        return [], _nowhere(f"which order it has sets in cannot be told: {error}")
    for seed in seeds:
        try:
            run = subprocess.run(
                # As the command finds the project's modules: see `discovery.named`.
                [sys.executable, "-P", "-c", f"from {__name__} import main; main()", source],
                env=_hashing(seed),
                input=asked,
                capture_output=True,
                check=False,
                timeout=TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return [], _nowhere(f"it cannot be run: {type(error).__name__}: {error}")
        if run.returncode:
            said = run.stderr.decode(errors="replace").strip().splitlines()
            last = said[-1] if said else "no word"
            return [], _nowhere(f"it ended with status {run.returncode}: {last}")
        for model, subject, detail in json.loads(run.stdout):
            found[model, Violation("impure", subject, detail)] = None
        if found:
            break
    return [*found], [*_not_turned([*unturned, *pairs[PAIRS_MAX:]], len(pairs))]


def _nowhere(why: str) -> list[str]:
    return [f"no reaction was called in another process as well: {why}"]


def _not_turned(left: Sequence[tuple[str, str]], count: int) -> Iterator[str]:
    """A line for people about sets whose order was the same in all processes."""
    if left:
        one, other = (
            each if len(each) <= SHOWN_MAX else f"{each[:SHOWN_MAX]}..." for each in left[0]
        )
        yield (
            f"what reactions take from sets was not looked at in either order for {len(left):,} of "
            f"{count:,} pairs of strings that meet in a call, such as {one!r} and {other!r}: up to "
            f"{PAIRS_MAX:,} are looked at in up to {PROCESSES_MAX} processes; let scenarios send "
            f"fewer different strings in one message"
        )


def _hashing(seed: int) -> Mapping[str, str]:
    """The environment of a process that hashes like that."""
    return {**os.environ, "PYTHONHASHSEED": str(seed)}


def _pairs(made: Mapping[str, Sequence[Calls]]) -> Iterator[tuple[str, str]]:
    """Strings that may come to be in one set, each pair once: two that are in the same field of one
    call's arguments. A reaction sees nothing of what another call was given."""
    found: dict[tuple[str, str], None] = {}
    for calls in made.values():
        for each in calls:
            for call, _ in each.made:
                words: defaultdict[tuple[type, str], set[str]] = defaultdict(set)
                for value in (call.message, *call.states.values()):
                    for place, word in _strings(value):
                        words[place].add(word)
                for met in words.values():
                    found.update(dict.fromkeys(itertools.combinations(sorted(met), 2)))
    return iter(found)


def _strings(value: Any) -> Iterator[tuple[tuple[type, str], str]]:
    """The strings in a value, each with the field that it is in."""
    for name in names_in(value):
        inner = getattr(value, name)
        for each in inner if isinstance(inner, tuple | list | frozenset | set) else (inner,):
            if isinstance(each, str):
                if each and not isinstance(each, Enum):
                    yield (type(value), name), each
            else:
                yield from _strings(each)


def _seeds(pairs: Sequence[tuple[str, str]]) -> tuple[list[int], list[tuple[str, str]]]:
    """Seeds under which these sets of two are gone through the other way round, each at least once,
    if `PROCESSES_MAX` are enough for that; and the sets for which they are not."""
    ours = [[*{a, b}].index(a) for a, b in pairs]
    asked = json.dumps(pairs)
    turned: dict[int, set[int]] = {}
    for seed in SEEDS if pairs else SEEDS[:1]:
        run = subprocess.run(
            [sys.executable, "-S", "-c", _PROBE],
            env=_hashing(seed),
            input=asked,
            capture_output=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
            encoding="ascii",
        )
        theirs = map(int, run.stdout.strip())
        turned[seed] = {n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b}
    left = {*range(len(pairs))}
    seeds: list[int] = []
    while len(seeds) < PROCESSES_MAX and (left or not seeds):
        seeds.append(max(turned, key=lambda seed: len(turned[seed] & left)))
        left -= turned.pop(seeds[-1])
    return seeds, [pairs[number] for number in sorted(left)]


def _participants(source: str) -> Mapping[str, Participant]:
    module, _, expression = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    found = eval(expression or "SAGA", vars(importlib.import_module(module)))  # noqa: S307 - the project's
    if isinstance(found, Model):
        return {each.name: each for each in found.choreography.participants}
    assert isinstance(found, Saga)  # noqa: S101 - what models are made of
    return {each.name: each for each in found.participants}


def _differing(
    participants: Mapping[str, Participant], asked: Mapping[str, _Made]
) -> Iterator[tuple[str, str, str]]:
    for model, made in asked.items():
        for name, before in made.items():
            calls = Calls(participants[name])
            calls.made = [*before]
            for subject, detail in calls.again("in another process", REASON):
                yield model, subject, detail


def main() -> None:
    """Answer the process that has begun this one: the calls come in, the differences go out."""
    answer = os.dup(1)
    os.dup2(2, 1)  # What a module prints when it is loaded is no answer.
    source = sys.argv[1]
    participants = _participants(source)
    asked = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own
    with os.fdopen(answer, "w") as out:
        json.dump([*_differing(participants, asked)], out)
