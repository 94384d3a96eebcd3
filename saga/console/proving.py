"""Work that would keep the pages waiting, in a process of its own that gives way to all others:

    python -m saga.console.proving proof
    python -m saga.console.proving seed NUMBER

It writes documents to standard output, one a line: the proof, again and again as it grows, or the
run. It ends with the console, whose end of standard input it holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from saga.commands.output import print_json_line, problem
from saga.console.watched import Watched
from saga.discovery import VARIABLE, saga, spec
from saga.errors import Explained
from saga.verify.proof import Proof, prove

NICENESS: Final = 10
LINE_MAX_BYTES: Final = 32_000_000
"""Of a line that such a process writes. The last one is kept."""
TELL_SECONDS: Final = 0.5
"""How often it tells of a proof that grows."""
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


async def prove_apart(watched: Watched, tell: Callable[[Proof], None]) -> Proof:
    """Explore all scenarios; `tell` is called with what is known so far. Raises
    `ProvingError`."""
    line = await _run(watched, "proof", take=lambda line: tell(Proof.model_validate_json(line)))
    return Proof.model_validate_json(line)


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


async def _run(
    watched: Watched, *arguments: str, take: Callable[[bytes], None] = lambda _: None
) -> bytes:
    """The last line that it writes; `take` is called with each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "saga.console.proving",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, VARIABLE: watched.spec or spec()},
        limit=LINE_MAX_BYTES,
    )
    assert process.stdout is not None  # noqa: S101 - they are pipes
    assert process.stderr is not None  # noqa: S101
    try:
        line, said = await asyncio.gather(last_line(process.stdout, take), _end(process.stderr))
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if code:
        raise ProvingError(said or f"the process ended with status {code}")
    return line


async def last_line(stream: asyncio.StreamReader, take: Callable[[bytes], None]) -> bytes:
    """The last line of a stream; `take` is called with each. Raises `ProvingError` for one that is
    longer than the stream's limit."""
    last = b""
    while True:
        try:
            line = await stream.readline()
        except ValueError as error:
            raise ProvingError(f"it has found more than is read: {error}") from error
        if not line:
            return last
        last = line
        take(line)


async def _end(stream: asyncio.StreamReader) -> str:
    """The last characters of a stream."""
    last = b""
    while part := await stream.read(65_536):
        last = (last + part)[-4 * ERROR_MAX_CHARACTERS :]
    return last.decode(errors="replace").strip()[-ERROR_MAX_CHARACTERS:]


# --- in the process -----------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    os.nice(NICENESS)
    threading.Thread(target=_end_with_the_console, daemon=True).start()
    try:
        match arguments:
            case ["proof"]:
                _prove()
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
    os.read(sys.stdin.fileno(), 1)  # No process writes: this is its end.
    os._exit(1)


def _prove() -> None:
    told_at = 0.0

    def tell(proof: Proof) -> None:
        nonlocal told_at
        if proof.finished_at or time.monotonic() - told_at > TELL_SECONDS:
            print_json_line(proof.model_dump(mode="json"))
            told_at = time.monotonic()

    prove(saga(), tell, source=spec())


def _play(seed: int) -> None:
    from saga.simulation import Simulation

    simulation = Simulation()
    try:
        run = simulation.run(seed)
    finally:
        simulation.close()
    print_json_line(
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
