"""A payment provider with a ledger of its own, which no process of ours can touch but by asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from common.events import DeclineReason
from payment_service.gateway import Decline, GatewayRefused, GatewayUnavailable, Receipt
from saga.reconcile.facts import ProviderCharge
from saga.simulation.loop import Process, SimulatedLoop, current_process, settle
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather

SLOW_SECONDS = 20.0
"""What a slow answer may take."""

T = TypeVar("T")


@dataclass(slots=True)
class _Charge:
    customer: str
    currency: str
    amount_cents: int
    declined: DeclineReason | None
    refunded_cents: int = 0


class SimulatedProvider:
    """See `payment_service.gateway.PaymentGateway`. Declines the customers it is told to."""

    def __init__(
        self,
        loop: SimulatedLoop,
        weather: Weather,
        trace: Trace,
        world: Process,
        declines: Mapping[str, DeclineReason],
    ) -> None:
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._world = world
        self._declines = declines
        self._charges: dict[str, _Charge] = {}

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        return await self._ask(lambda: self._charge(key, customer, currency, amount_cents))

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        await self._ask(lambda: self._refund(key, currency, amount_cents))

    async def close(self) -> None:
        """Nothing to close: the provider goes on."""

    def ledger(self) -> list[ProviderCharge]:
        """Every charge there is."""
        return [
            ProviderCharge(
                order_id=key,
                currency=charge.currency,
                amount_cents=charge.amount_cents,
                declined=charge.declined is not None,
                refunded_cents=charge.refunded_cents,
            )
            for key, charge in self._charges.items()
        ]

    async def _ask(self, question: Callable[[], T]) -> T:
        """The question goes there and is answered, whether or not the asker still lives."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._loop.call_later(
            self._weather.latency(),
            self._take,
            question,
            answer,
            current_process(),
            context=self._world.context,
        )
        return await answer

    def _take(self, question: Callable[[], T], answer: asyncio.Future[T], asker: Process) -> None:
        weather, rates = self._weather, self._weather.rates
        result: T | Exception
        if weather.happens(rates.provider_away):
            result = GatewayUnavailable("simulated: away")
        else:
            try:
                result = question()
            except GatewayRefused as error:
                result = error
            if weather.happens(rates.lost_answer):
                result = GatewayUnavailable("simulated: the answer is lost")
        slow = weather.happens(rates.slow_provider)
        seconds = weather.seconds(SLOW_SECONDS) if slow else weather.latency()
        self._loop.call_later(seconds, settle, answer, result, context=asker.context)

    def _charge(
        self, key: str, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        charge = self._charges.get(key)
        if charge is None:
            declined = self._declines.get(customer)
            charge = _Charge(customer, currency, amount_cents, declined)
            self._charges[key] = charge
            self._trace.note("provider", f"{declined or 'charged'} {amount_cents} for {key[:8]}")
        elif (charge.customer, charge.currency, charge.amount_cents) != (
            customer,
            currency,
            amount_cents,
        ):
            raise GatewayRefused(f"{key} is the key of a different charge")
        return Receipt(key) if charge.declined is None else Decline(charge.declined)

    def _refund(self, key: str, currency: str, amount_cents: int) -> None:
        charge = self._charges.get(key)
        if charge is None or charge.declined is not None:
            raise GatewayRefused(f"nothing was charged under {key}")
        if (charge.currency, charge.amount_cents) != (currency, amount_cents):
            raise GatewayRefused(f"{key} is the key of a different charge")
        if not charge.refunded_cents:
            charge.refunded_cents = amount_cents
            self._trace.note("provider", f"refunded {amount_cents} for {key[:8]}")
