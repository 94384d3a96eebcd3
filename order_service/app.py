"""The order service: takes orders over HTTP and AMQP, and ends them when their time is up."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Self
from uuid import UUID, uuid4

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from common.events import (
    LINES_MAX,
    TIME_LIMIT_MAX_SECONDS,
    CancellationReason,
    Currency,
    NewCustomer,
    OrderLine,
    PlaceOrder,
    order_id_of,
)
from order_service.domain import PARTICIPANT, CancelOrder, Order, OrderStatus
from order_service.store import ORDERS, TABLES
from saga.auth.caller import Caller
from saga.auth.scopes import needs, theirs
from saga.choreography import State
from saga.envelope import derived_id
from saga.message import Priority
from saga.personal import Personal
from saga.runtime import tracing
from saga.runtime.kernel.work import Done
from saga.runtime.problem import Problem, problems
from saga.runtime.service import Running, Service, main
from saga.runtime.settings import Settings
from saga.runtime.web import CHANGING, WITH_BODY, IdempotencyKey, answer_from


class NewLine(OrderLine):
    """Units of one SKU, at the price the customer was shown."""

    model_config = ConfigDict(extra="forbid")


class NewOrder(BaseModel):
    """An order to place."""

    model_config = ConfigDict(extra="forbid")

    customer: NewCustomer
    currency: Currency
    lines: Annotated[list[NewLine], Field(min_length=1, max_length=LINES_MAX)]
    priority: Priority = Priority.NORMAL
    time_limit_seconds: Annotated[int, Field(strict=True, ge=1, le=TIME_LIMIT_MAX_SECONDS)] = 300

    def command(self, order_id: UUID) -> PlaceOrder:
        return PlaceOrder(
            order_id=order_id,
            customer=self.customer,
            currency=self.currency,
            lines=tuple(OrderLine(**dict(line)) for line in self.lines),
            priority=self.priority,
            time_limit_seconds=self.time_limit_seconds,
        )


class OrderView(BaseModel):
    """An order as it stands. Times are UTC."""

    model_config = ConfigDict(from_attributes=True)

    order_id: UUID = Field(validation_alias="key")
    status: OrderStatus
    reason: CancellationReason | None
    customer: Annotated[str, Personal]
    currency: str
    lines: tuple[OrderLine, ...]
    total_cents: int
    priority: Priority
    deadline: datetime
    placed_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, order: State) -> Self:
        return cls.model_validate(order)

    def was_placed_by(self, command: PlaceOrder) -> bool:
        """Whether that is the command which led to this order, and not another under its id."""
        return self.placed_at is not None and (
            self.customer,
            self.currency,
            self.lines,
            self.priority,
            self.deadline,
        ) == (
            command.customer,
            command.currency,
            command.lines,
            command.priority,
            self.placed_at + timedelta(seconds=command.time_limit_seconds),
        )


def routes(running: Running) -> APIRouter:
    """`/orders`."""
    router = APIRouter(tags=["orders"])

    async def known(order_id: UUID) -> Order | None:
        key = str(order_id)
        return await answer_from(running.database, lambda connection: ORDERS.find(connection, key))

    async def find(order_id: UUID, caller: Caller) -> Order:
        order, missing = await known(order_id), Problem(404, f"there is no order {order_id}")
        if order is None:
            raise missing
        theirs(caller, order.customer, missing)
        return order

    @router.post("/orders", status_code=202, responses=problems(*WITH_BODY))
    async def place(
        new: NewOrder,
        response: Response,
        caller: Annotated[Caller, needs("orders:write", own=True)],
        idempotency_key: IdempotencyKey = None,
        traceparent: Annotated[str | None, Header()] = None,
    ) -> OrderView:
        """Place an order. Sent again with the same `Idempotency-Key`, it is placed once. A customer
        places orders in their own name only."""
        theirs(caller, new.customer, Problem(403, "an order is placed in one's own name only"))
        key = idempotency_key or str(uuid4())
        # Sealed where it can be: the name of a forgotten customer cannot be guessed from an id.
        owner = caller.sealed_owner or caller.owner
        order_id = order_id_of(key, owner)
        command = new.command(order_id)
        if owner is None:
            id = derived_id(key, command.type)
        else:  # No operator's key leads to it: what it is made of ends otherwise.
            id = derived_id(str(order_id), f"{command.type} of its owner")
        used = Problem(
            422,
            f"the Idempotency-Key {key!r} was used before, for another order; "
            f"use a new key for a new order",
        )
        with tracing.request("POST /orders", str(order_id), traceparent, status=202):
            if (
                idempotency_key
                and owner != caller.owner
                and await known(order_id_of(key, caller.owner))
            ):
                raise used  # From before names were sealed: to place it again would charge twice.
            # One that was placed before is told so again: that adds nothing to what waits.
            if not (idempotency_key and running.backlogged and await known(order_id)):
                running.turn_away()
            outcome = await running.give(command, id=id, priority=new.priority)
            order = outcome.own if isinstance(outcome, Done) else await find(order_id, caller)
            view = OrderView.of(order)
            if not view.was_placed_by(command):
                raise used
        response.headers["Location"] = f"/orders/{order_id}"
        return view

    @router.get("/orders/{order_id}", responses=problems(404, 422))
    async def get(
        order_id: UUID,
        caller: Annotated[Caller, needs("orders:read", own=True, personal=True)],
    ) -> OrderView:
        """An order as it stands."""
        return OrderView.of(await find(order_id, caller))

    @router.post(
        "/orders/{order_id}/cancel", status_code=202, responses=problems(404, 409, 422, *CHANGING)
    )
    async def cancel(
        order_id: UUID,
        caller: Annotated[Caller, needs("orders:write", own=True, personal=True)],
        traceparent: Annotated[str | None, Header()] = None,
    ) -> OrderView:
        """Cancel a pending order; 409 if it has ended already."""
        route = "POST /orders/{order_id}/cancel"
        with tracing.request(route, str(order_id), traceparent, status=202):
            command, order = CancelOrder(order_id=order_id), await find(order_id, caller)
            outcome = await running.give(command, priority=order.priority)
            view = OrderView.of(await find(order_id, caller))
            if isinstance(outcome, Done) and not outcome.events:
                raise Problem(
                    409, f"order {order_id} is {view.status} already", order_status=view.status
                )
            return view

    return router


def build(_: Settings) -> Service:
    """The order service."""
    return Service(PARTICIPANT, TABLES, routes=routes)


def serve() -> None:
    """Run the service with its settings from the environment."""
    main(build, Settings)


if __name__ == "__main__":
    serve()
