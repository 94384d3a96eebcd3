"""The payment service: asks the provider, between two commits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from payment_service.domain import (
    PARTICIPANT,
    Charge,
    ChargeAnswered,
    Payment,
    PaymentStatus,
    Refund,
    RefundAnswered,
    SettleCharge,
)
from payment_service.gateway import (
    GatewayConfigurationError,
    GatewayUnavailable,
    NameOf,
    PaymentGateway,
    SandboxGateway,
    ledger_file,
)
from payment_service.ledger import Decline
from payment_service.store import PAYMENTS, TABLES
from saga.auth.scopes import needs
from saga.personal.persons import Persons, SealingAway
from saga.personal.seal import Forgotten
from saga.runtime.problem import Problem, problems
from saga.runtime.service import Running, Service, main
from saga.runtime.settings import Settings, SettingsError
from saga.runtime.urls import sqlite_url
from saga.runtime.web import answer_from


class PaymentSettings(Settings):
    """The payment service's settings."""

    sandbox_url: str | None = None
    """Where the sandbox provider keeps its ledger; by default a SQLite file in `data_dir`."""


class PaymentView(BaseModel):
    """The payment for one order."""

    model_config = ConfigDict(from_attributes=True)

    order_id: UUID = Field(validation_alias="key")
    status: PaymentStatus
    currency: str
    amount_cents: int

    @classmethod
    def of(cls, payment: Payment) -> Self:
        return cls.model_validate(payment)


def routes(running: Running) -> APIRouter:
    """`/payments`."""
    router = APIRouter(tags=["payments"])

    @router.get(
        "/payments/{order_id}",
        responses=problems(404, 422),
        dependencies=[needs("payments:read")],
    )
    async def get(order_id: UUID) -> PaymentView:
        """The payment for one order."""
        key = str(order_id)
        payment = await answer_from(
            running.database, lambda connection: PAYMENTS.find(connection, key)
        )
        if payment is None:
            raise Problem(404, f"there is no payment for order {order_id}")
        return PaymentView.of(payment)

    return router


def build_with(
    gateway: PaymentGateway,
    folders: Mapping[str, Path] | None = None,
    persons: Persons | None = None,
) -> Service:
    """The payment service, with this provider, which writes into these `folders`."""

    async def charge(intent: Charge) -> ChargeAnswered:
        answer = await gateway.charge(
            str(intent.order_id),
            customer=intent.customer,
            currency=intent.currency,
            amount_cents=intent.amount_cents,
        )
        if isinstance(answer, Decline):
            return ChargeAnswered(order_id=intent.order_id, declined=answer.reason, reference="")
        return ChargeAnswered(order_id=intent.order_id, declined=None, reference=answer.reference)

    async def refund(intent: Refund) -> RefundAnswered:
        await gateway.refund(
            str(intent.order_id), currency=intent.currency, amount_cents=intent.amount_cents
        )
        return RefundAnswered(order_id=intent.order_id)

    return Service(
        PARTICIPANT,
        TABLES,
        ask={Charge: charge, SettleCharge: charge, Refund: refund},
        routes=routes,
        close=gateway.close,
        folders=folders or {},
        persons=persons,
    )


def names_by(persons: Persons) -> NameOf:
    """How a provider is told a sealed customer's name; waits for a key store that is away."""

    async def name_of(customer: str) -> str | None:
        try:
            return await persons.open(customer)
        except Forgotten:
            return None
        except SealingAway as error:
            raise GatewayUnavailable(f"whom to ask for the money: {error}") from error

    return name_of


def build(settings: PaymentSettings) -> Service:
    """The payment service, with the sandbox as its provider. Raises `SettingsError`."""
    url = settings.sandbox_url or sqlite_url(settings.data_dir / "provider.db")
    persons = Persons(settings)
    try:
        gateway = SandboxGateway(url, name_of=names_by(persons))
    except GatewayConfigurationError as error:
        setting = "SANDBOX_URL" if settings.sandbox_url else "DATA_DIR"
        raise SettingsError(f"{setting}: {error}") from error
    return build_with(gateway, {"ledger": ledger_file(url).absolute().parent}, persons)


def serve() -> None:
    """Run the service with its settings from the environment."""
    main(build, PaymentSettings)


if __name__ == "__main__":
    serve()
