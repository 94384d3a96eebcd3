"""The order saga as a whole: what no single participant may know."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from inventory_service.domain import PARTICIPANT as INVENTORY
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import DismissNotification, ResendNotification
from order_saga.archive.queries import ORDER_VIEW
from order_saga.invariants import ALWAYS, AT_REST, mails_unknown
from order_saga.load import plan
from order_saga.outsides import MAIL_SERVER, PROVIDER
from order_saga.scenarios import SCENARIOS
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import CancelOrder, Order
from payment_service.domain import PARTICIPANT as PAYMENT
from saga.archive import OBSERVER as HISTORY
from saga.declaration import EarlyEnd, PersonsChoice, Saga

SAGA: Final = Saga(
    "orders",
    participants=(ORDER, INVENTORY, PAYMENT, NOTIFICATION),
    observers=(HISTORY,),
    subject=Order,
    outside=(PROVIDER, MAIL_SERVER),
    always=ALWAYS,
    at_rest=AT_REST,
    for_people=(mails_unknown,),
    choices=(
        PersonsChoice(
            mails_unknown.__name__,
            NOTIFICATION.name,
            {
                "resend": "/notifications/{subject}/resend",
                "dismiss": "/notifications/{subject}/dismiss",
            },
            {
                "resend": lambda order_id: ResendNotification(order_id=UUID(order_id)),
                "dismiss": lambda order_id: DismissNotification(order_id=UUID(order_id)),
            },
        ),
    ),
    early_end=EarlyEnd(
        ORDER.name,
        "/orders/{subject}/cancel",
        lambda order_id: CancelOrder(order_id=UUID(order_id)),
    ),
    scenarios=SCENARIOS,
    load=plan,
    commands={
        "publish": "order_saga.commands:publish",
        "demo": "order_saga.commands:demo",
    },
    view=ORDER_VIEW,
)
