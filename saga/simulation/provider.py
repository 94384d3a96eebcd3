"""A payment provider with a ledger of its own, which no process of ours can touch but by asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from common.events import DeclineReason
from payment_service.gateway import Decline, GatewayRefused, GatewayUnavailable, Receipt
from saga.reconcile.facts import ProviderCharge
from saga.simulation.loop import Process, SimulatedLoop
from saga.simulation.outside import Outside
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather

T = TypeVar("T")


@dataclass(slots=True)
class _Charge:
    customer: str
    currency: str
    amount_cents: int
    declined: DeclineReason | None
    refunded_cents: int = 0


class SimulatedProvider(Outside):
    """See `payment_service.gateway.PaymentGateway`. Declines the customers it is told to."""

    def __init__(
        self,
        loop: SimulatedLoop,
        weather: Weather,
        trace: Trace,
        world: Process,
        declines: Mapping[str, DeclineReason],
    ) -> None:
        super().__init__(loop, weather, trace, world)
        self._declines = declines
        self._charges: dict[str, _Charge] = {}

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        return await self._answered(lambda: self._charge(key, customer, currency, amount_cents))

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        await self._answered(lambda: self._refund(key, currency, amount_cents))

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

    async def _answered(self, question: Callable[[], T]) -> T:
        """The answer, if neither the question nor the answer is lost."""
        rates = self._weather.rates

        def answer() -> T:
            if self._weather.happens(rates.provider_away):
                raise GatewayUnavailable("simulated: away")
            result = question()
            if self._weather.happens(rates.lost_answer):
                raise GatewayUnavailable("simulated: the answer is lost")
            return result

        return await self._ask(answer, rates.slow_provider)

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
