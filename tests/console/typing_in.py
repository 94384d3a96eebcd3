"""Commands as they are typed in, beside a console that runs in the test's own process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

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
    process = await begun(folder, *arguments, **environment)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
