"""Commands as they are typed in, beside a console that runs in the test's own process."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

from tests import forked

ROOT: Final = Path(__file__).parents[2]


async def begun(folder: Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """A command that has begun."""
    without = {name: value for name, value in os.environ.items() if name != "AMQP_URL"}
    return await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "saga.cli", *arguments, "--data-dir", str(folder)],
        env={**without, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def typed(folder: Path, *arguments: str, **environment: str) -> str:
    """What a command prints that has to succeed."""
    command = (forked.SAGA, *arguments, "--data-dir", str(folder))
    without = {name: value for name, value in os.environ.items() if name != "AMQP_URL"}
    run = partial(forked.run, *command, environment={**without, **environment})
    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    return done.stdout
