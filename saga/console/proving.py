"""Work that would keep the pages waiting, in a process of its own that gives way to all others:

    python -m saga.console.proving proof FOLDER
    python -m saga.console.proving seed NUMBER

The first keeps in the folder what it finds; the second writes the run to standard output. It ends
with the console, whose end of standard input it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saga.commands.output import print_json, problem
from saga.console.watched import Watched
from saga.discovery import VARIABLE, saga, spec
from saga.errors import Explained

NICENESS: Final = 10
OUTPUT_MAX_BYTES: Final = 32_000_000
"""Of what such a process writes."""
ERROR_MAX_CHARACTERS: Final = 2_000
"""Of what it says of its failure."""


class ProvingError(Explained):
    """A process of its own has failed. Says what it said."""


@dataclass(frozen=True, slots=True)
class PlayedLine:
    """A line of a run's trace."""

    at: float
    """Simulated seconds."""
    who: str
    what: str


@dataclass(frozen=True, slots=True)
class PlayedRun:
    """A seed's run, line by line."""

    seed: int
    digest: str
    steps: int
    simulated_seconds: float
    lines: Sequence[PlayedLine]
    violations: Sequence[tuple[str, str, str]]
    """Rule, subject and detail."""


async def prove_apart(watched: Watched) -> None:
    """Have all scenarios explored; what comes of it is in the folder. Raises `ProvingError`."""
    await _run(watched, "proof", str(watched.folder.resolve()))


async def play_apart(watched: Watched, seed: int) -> PlayedRun:
    """Run one seed of the simulation. Raises `ProvingError`."""
    found = json.loads(await _run(watched, "seed", str(seed)))
    return PlayedRun(
        seed=seed,
        digest=found["digest"],
        steps=found["steps"],
        simulated_seconds=found["simulated_seconds"],
        lines=[_line(text) for text in found["trace"]],
        violations=[tuple(each) for each in found["violations"]],
    )


def _line(text: str) -> PlayedLine:
    """A line as `SimulationTrace` writes it; a name longer than its column moves the rest."""
    at, rest = text[:12], text[14:]
    end = rest.find(" ", 12)
    with contextlib.suppress(ValueError):
        return PlayedLine(float(at), rest[:end].strip(), rest[end + 1 :])
    return PlayedLine(0.0, "", text)


async def _run(watched: Watched, *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "saga.console.proving",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, VARIABLE: watched.spec or spec()},
        limit=OUTPUT_MAX_BYTES,
    )
    assert process.stdout is not None  # noqa: S101 - they are pipes
    assert process.stderr is not None  # noqa: S101
    try:
        output, said = await asyncio.gather(process.stdout.read(), process.stderr.read())
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if code:
        last = said.decode(errors="replace").strip()[-ERROR_MAX_CHARACTERS:]
        raise ProvingError(last or f"the process ended with status {code}")
    return output


# --- in the process -----------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    os.nice(NICENESS)
    threading.Thread(target=_end_with_the_console, daemon=True).start()
    try:
        match arguments:
            case ["proof", folder]:
                _prove(Path(folder))
            case ["seed", seed]:
                _play(int(seed))
            case _:
                problem(f"{' '.join(arguments)!r} is nothing that it does")
                return 2
    except Explained as error:
        problem(str(error))
        return 1
    return 0


def _end_with_the_console() -> None:
    os.read(sys.stdin.fileno(), 1)  # Nobody writes: this is its end.
    os._exit(1)


def _prove(folder: Path) -> None:
    from saga.verify.proof import prove

    prove(saga(), lambda proof: proof.save(folder), source=spec())


def _play(seed: int) -> None:
    from saga.simulation import Simulation

    simulation = Simulation()
    try:
        run = simulation.run(seed)
    finally:
        simulation.close()
    print_json(
        {
            "digest": run.digest,
            "steps": run.steps,
            "simulated_seconds": run.simulated_seconds,
            "trace": run.trace,
            "violations": [(v.rule, v.subject, v.detail) for v in run.violations],
        }
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
