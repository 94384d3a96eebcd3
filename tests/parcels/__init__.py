"""A saga with a participant in another language: parcels, whose labels a program for Node prints.

The shop packs a parcel and sends it once it has a label; it keeps a parcel that gets none, and has
the label voided. Of the printer, only the signatures are here: its code is in `label`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Final, Self

from saga.archive import OBSERVER as HISTORY
from saga.choreography import Participant, State
from saga.declaration import Saga, Scenario
from saga.due import Due
from saga.envelope import derived_id
from saga.foreign import Foreign
from saga.load.plan import Given, Plan
from saga.message import Command, Decided, Event, EventTypes, Priority, Role
from saga.retry import Retry
from saga.view import Broken, States

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
HEAVY_GRAMS: Final = 30_000
"""What is heavier gets no label."""


class _ParcelCommand(Command):
    parcel: str

    @property
    def subject(self) -> str:
        return self.parcel


class _ParcelEvent(Event):
    parcel: str

    @property
    def subject(self) -> str:
        return self.parcel


class SendParcel(_ParcelCommand):
    """A customer wants this parcel sent."""

    type: ClassVar[str] = "parcel.send"
    intake: ClassVar[bool] = True

    grams: int = 500


class KeepParcel(_ParcelCommand):
    """Nothing was said of a label for too long."""

    type: ClassVar[str] = "parcel.keep"


class VoidLabel(_ParcelCommand):
    """See to it that the parcel has no label."""

    type: ClassVar[str] = "label.void"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("shop",)


class ParcelPacked(_ParcelEvent):
    """It is packed and weighed."""

    type: ClassVar[str] = "parcel.packed"
    publisher: ClassVar[str] = "shop"

    grams: int


class LabelPrinted(_ParcelEvent):
    """The label is paid for, and on the parcel."""

    type: ClassVar[str] = "label.printed"
    publisher: ClassVar[str] = "label"
    role: ClassVar[Role] = Role.EFFECT

    number: str


class LabelRefused(_ParcelEvent):
    """The parcel gets no label."""

    type: ClassVar[str] = "label.refused"
    publisher: ClassVar[str] = "label"
    role: ClassVar[Role] = Role.FAILURE


class LabelVoided(_ParcelEvent):
    """There is no label, and there will be none."""

    type: ClassVar[str] = "label.voided"
    publisher: ClassVar[str] = "label"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (LabelPrinted,)
    final: ClassVar[bool] = True


class ParcelSent(_ParcelEvent):
    """It is on its way."""

    type: ClassVar[str] = "parcel.posted"
    publisher: ClassVar[str] = "shop"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True

    number: str


class ParcelKept(_ParcelEvent):
    """It stays where it is."""

    type: ClassVar[str] = "parcel.kept"
    publisher: ClassVar[str] = "shop"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


# --- the shop -----------------------------------------------------------------------------------


class Stage(StrEnum):
    """How far a parcel is."""

    UNKNOWN = "unknown"
    PACKED = "packed"
    SENT = "sent"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Parcel(State):
    """What the shop knows of a parcel."""

    stage: Stage = Stage.UNKNOWN
    deadline: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case ParcelPacked():
                return replace(self, stage=Stage.PACKED, deadline=at + timedelta(hours=1))
            case ParcelSent():
                return replace(self, stage=Stage.SENT)
            case ParcelKept():
                return replace(self, stage=Stage.KEPT)
            case _:
                return self

    def due(self) -> Due[KeepParcel] | None:
        """A parcel without a label is kept after an hour: the printer need not say anything."""
        if self.stage is not Stage.PACKED or self.deadline is None:
            return None
        return Due(self.deadline, KeepParcel(parcel=self.key), expected=True)


def send(command: SendParcel, parcel: Parcel) -> ParcelPacked | None:
    if parcel.stage is not Stage.UNKNOWN:
        return None
    return ParcelPacked(parcel=command.parcel, grams=command.grams)


def labelled(event: LabelPrinted, parcel: Parcel) -> ParcelSent | None:
    if parcel.stage is not Stage.PACKED:
        return None
    return ParcelSent(parcel=event.parcel, number=event.number)


def refused(event: LabelRefused, parcel: Parcel) -> tuple[ParcelKept, VoidLabel] | None:
    return _keep(parcel)


def keep(command: KeepParcel, parcel: Parcel) -> tuple[ParcelKept, VoidLabel] | None:
    return _keep(parcel)


def _keep(parcel: Parcel) -> tuple[ParcelKept, VoidLabel] | None:
    if parcel.stage is not Stage.PACKED:
        return None
    return ParcelKept(parcel=parcel.key), VoidLabel(parcel=parcel.key)


SHOP: Final = Participant("shop", send, labelled, refused, keep, package=f"{__name__}.shop")


# --- who prints labels --------------------------------------------------------------------------


def print_label(event: ParcelPacked) -> LabelPrinted | LabelRefused | None:
    """Print a label, unless the parcel is too heavy, or its label was voided before."""


def void_label(command: VoidLabel) -> LabelVoided:
    """Void the label, or see to it that none is printed."""
    raise NotImplementedError


LABEL: Final = Foreign(
    "label",
    print_label,
    void_label,
    samples={LabelPrinted: lambda cause: [LabelPrinted(parcel=cause.subject, number="L-1")]},
    retry=Retry(max_calls=2, delay=0.1),
)


# --- what must hold, and how that is tried ------------------------------------------------------


def sent_unlabelled(
    parcels: States[Parcel],
) -> Iterator[Broken]:
    """A parcel that was sent has been packed."""
    for key, parcel in parcels.items():
        if parcel.stage is Stage.SENT and parcel.deadline is None:
            yield key, "it is sent, and was never packed"


def plan(chance: random.Random, parcels: int) -> Plan:
    """Draw a plan: parcels, of which some are too heavy."""
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    for number in range(parcels):
        key = f"parcel {chance.randrange(10**6)}/{number}"
        heavy = chance.random() < 0.3
        command = SendParcel(parcel=key, grams=HEAVY_GRAMS + 1 if heavy else 500)
        given.append(
            Given(
                SHOP.name,
                command,
                derived_id(key, command.type),
                chance.random(),
                chance.random() < 0.5,
                chance.choice(list(Priority)),
            )
        )
        # Tried without the printer's code, any answer within its signature may come.
        ends[key] = frozenset({ParcelSent.type, ParcelKept.type})
    return Plan(given, ends)


ONE_PARCEL: Final = Scenario(
    "one parcel",
    sent=[(SHOP.name, SendParcel(parcel="a"))],
    moments=(NOW, NOW + timedelta(hours=2)),
)

SAGA: Final = Saga(
    "parcels",
    participants=(SHOP, LABEL),
    observers=(HISTORY,),
    subject=Parcel,
    always=(sent_unlabelled,),
    scenarios=(ONE_PARCEL,),
    load=plan,
)
GRAPH: Final = SAGA.choreography
