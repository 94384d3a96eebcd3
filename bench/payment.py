"""Our payment service with a provider that only takes its time, as the opponent's does.

BENCH_GATEWAY_MS=50 ... python -m bench.payment
"""

from __future__ import annotations

import asyncio
import os
from typing import Final
from uuid import uuid4

from payment_service.app import PaymentSettings, build_with
from payment_service.ledger import Decline, Receipt
from saga.runtime.service import main

GATEWAY_SECONDS: Final = float(os.environ.get("BENCH_GATEWAY_MS", "0")) / 1_000


class Timed:
    """Charges everybody, after a while, and forgets it."""

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        if GATEWAY_SECONDS:
            await asyncio.sleep(GATEWAY_SECONDS)
        return Receipt(uuid4().hex)

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        raise AssertionError("nothing is cancelled here")

    async def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    main(lambda _: build_with(Timed()), PaymentSettings)
