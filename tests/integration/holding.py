"""A process that takes the toy's messages and never finishes the one about thing 1."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saga.envelope import Envelope
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.work import Outcome, Work
from tests.integration.test_messaging import running
from tests.integration.toy import cancelled


class Holding(Kernel):
    def take(
        self, envelope: Envelope[Any], then: Callable[[Outcome], None], **options: Any
    ) -> Work:
        if envelope.id == cancelled(1).id:
            return Work(envelope, envelope.data, then, self._lanes, self._clock(), 1)
        return super().take(envelope, then, **options)


async def main(url: str, folder: Path) -> None:
    async with running(url, folder, Holding):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
