"""The doors with sealing on: what a route sees, what an answer shows, what is kept of a command."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, cast
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, WebSocket
from pydantic import BaseModel, Field

from common.events import OrderLine, PlaceOrder
from inventory_service.domain import PARTICIPANT as INVENTORY
from order_service.domain import PARTICIPANT, Order
from saga.choreography import Participant
from saga.discovery import choreography
from saga.dlq.edit import corrected, text_of, with_values
from saga.dlq.letters import copy_of
from saga.envelope import Envelope, Undecodable, digest_of, source_of, wrap
from saga.errors import InputError
from saga.message import Answer, Command, Intent, Priority
from saga.personal import Personal, sealed
from saga.personal.opening import STORE_FILE, made_key, open_store
from saga.personal.persons import Persons
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.work import Conflicting, Done, Failed
from saga.runtime.messaging import frames
from saga.runtime.messaging.consumer import Deliveries, DeliveryChannel
from saga.runtime.messaging.dead_letters import ERROR, ORIGIN_EXCHANGE, REASON
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.sealing import IntakeSeal
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    intake_queue,
    work_queue,
)
from saga.runtime.personal import MAY_READ, guarded, texts_of
from saga.runtime.problem import Problem
from saga.runtime.settings import PersonalSettings, SettingsError, load
from saga.runtime.telemetry import name_nobody
from tests.errands import Ride
from tests.polling import until
from tests.unit.test_deliveries import CopyingPublisher, HoldingKernel, WatchedChannel
from tests.unit.test_dlq import delivered, letter_of

NAME = "Anna Muster"
FORGED = f"~1.{'a' * 22}.{'b' * 24}"
EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"
NOW = datetime(2030, 1, 1, tzinfo=UTC)
QUEUE = intake_queue("order", Priority.NORMAL)


@pytest.fixture
async def persons(tmp_path: Path) -> AsyncIterator[Persons]:
    made_key(tmp_path)
    async with Persons(load(PersonalSettings, data_dir=tmp_path, personal="sealed")) as persons:
        yield persons


# --- HTTP ---------------------------------------------------------------------------------------

Name = Annotated[str, Field(max_length=40), Personal]


class Guest(BaseModel):
    """Who comes."""

    name: Name
    nights: int = 1


class Search(BaseModel):
    """Whom to look for."""

    name: Name | None = None


class House:
    """A service's routes, and what its functions were given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.router = APIRouter()
        self.router.post("/guests")(self.add)
        self.router.post("/named")(self.add_named)
        self.router.get("/guests")(self.find)
        self.router.get("/all")(self.all)

    async def add(self, guest: Guest) -> Guest:
        self.seen.append(guest.name)
        return guest

    async def add_named(self, name: Name) -> Guest:
        self.seen.append(name)
        return Guest(name=name)

    async def find(self, wanted: Annotated[Search, Query()]) -> list[Guest]:
        self.seen.append(await texts_of(wanted.name or ""))
        return [Guest(name=self.seen[0])]

    async def all(self) -> list[Guest]:
        return [Guest(name=name) for name in self.seen]


@pytest.fixture
def house() -> House:
    return House()


def asking(house: House, persons: Persons) -> httpx.AsyncClient:
    app = FastAPI()

    @app.exception_handler(Problem)
    async def on_problem(_: Any, problem: Problem) -> Any:
        return problem.response()

    app.include_router(guarded(house.router, persons))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_a_route_sees_sealed_values_and_its_caller_the_name_they_gave(
    house: House, persons: Persons
) -> None:
    async with asking(house, persons) as http:
        added = await http.post("/guests", json={"name": NAME})
        named = await http.post("/named", params={"name": NAME})

    assert added.json() == {"name": NAME, "nights": 1}
    assert named.json()["name"] == NAME
    assert len({*house.seen}) == 1
    assert sealed(house.seen[0])
    assert await persons.open(house.seen[0]) == NAME


async def test_a_route_that_is_no_coroutine_sees_sealed_values_as_well(
    house: House, persons: Persons
) -> None:
    @house.router.post("/blocking")
    def add(guest: Guest) -> Guest:
        house.seen.append(guest.name)
        return guest

    async with asking(house, persons) as http:
        added = await http.post("/blocking", json={"name": NAME})

    assert added.json()["name"] == NAME
    assert await persons.open(house.seen[0]) == NAME


def test_what_cannot_be_guarded_is_refused_where_values_are_sealed(
    house: House, persons: Persons
) -> None:
    @house.router.websocket("/live")
    async def live(_: WebSocket) -> None: ...

    with pytest.raises(SettingsError, match="web socket"):
        guarded(house.router, persons)


async def test_limits_are_those_of_the_clear_text(house: House, persons: Persons) -> None:
    async with asking(house, persons) as http:
        refused = await http.post("/guests", json={"name": "x" * 41})

    assert refused.status_code == 422
    assert house.seen == []


async def test_others_see_a_masked_name_unless_they_may_read_it(
    house: House, persons: Persons
) -> None:
    async with asking(house, persons) as http:
        await http.post("/guests", json={"name": NAME})
        masked = (await http.get("/all")).json()
        token = MAY_READ.set(lambda clear: clear == NAME)
        shown = (await http.get("/all")).json()
        MAY_READ.reset(token)

    assert [guest["name"] for guest in masked] == [f"person …{house.seen[0][21:25]}"]
    assert [guest["name"] for guest in shown] == [NAME]


async def test_a_setting_shows_names_to_all(house: House, tmp_path: Path) -> None:
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed", personal_shown="clear")
    async with Persons(settings) as persons, asking(house, persons) as http:
        await http.post("/guests", json={"name": NAME})

        assert (await http.get("/all")).json()[0]["name"] == NAME


async def test_a_look_up_asks_for_both_texts_and_makes_nobody(
    house: House, persons: Persons, tmp_path: Path
) -> None:
    async with asking(house, persons) as http:
        await http.post("/guests", json={"name": NAME})
        found = await http.get("/guests", params={"name": NAME})
        await http.get("/guests", params={"name": "Nobody"})

    assert house.seen[1] == (NAME, house.seen[0])
    assert house.seen[2] == ("Nobody",)
    assert found.json()[0]["name"] == NAME
    store = open_store(persons.settings)
    assert len([*store.persons()]) == 1
    store.close()


async def test_a_sealed_text_is_taken_if_it_is_of_this_key_store_only(
    house: House, persons: Persons
) -> None:
    text = (await persons.seal([NAME]))[NAME]
    forged = f"~1.{text[3:25]}.{'A' * 40}"
    async with asking(house, persons) as http:
        taken = await http.post("/guests", json={"name": text})
        refused = await http.post("/guests", json={"name": forged})

    assert taken.status_code == 200
    assert house.seen == [text]
    assert refused.status_code == 422
    assert "cannot be opened" in refused.json()["detail"]


async def test_a_forgotten_persons_text_is_refused_and_shown_to_nobody(
    house: House, persons: Persons
) -> None:
    async with asking(house, persons) as http:
        await http.post("/guests", json={"name": NAME})
        (text,) = house.seen
        store = persons._store
        assert store is not None
        await asyncio.to_thread(store.forget, text[3:25], "asked to")
        refused = await http.post("/guests", json={"name": text})
        MAY_READ.set(lambda _: True)
        shown = (await http.get("/all")).json()

    assert refused.status_code == 422
    assert "asked to" in refused.json()["detail"]
    assert shown[0]["name"].startswith("person ")


async def test_while_the_key_store_is_away_nothing_enters(
    house: House, persons: Persons, tmp_path: Path
) -> None:
    await persons.check()
    (tmp_path / STORE_FILE).rename(tmp_path / "aside")
    async with asking(house, persons) as http:
        refused = await http.post("/guests", json={"name": NAME})
        (tmp_path / "aside").rename(tmp_path / STORE_FILE)
        taken = await http.post("/guests", json={"name": NAME})

    assert refused.status_code == 503
    assert "Retry-After" in refused.headers
    assert taken.status_code == 200
    assert len(house.seen) == 1


@pytest.fixture
async def unsealed(tmp_path: Path) -> AsyncIterator[Persons]:
    async with Persons(load(PersonalSettings, data_dir=tmp_path / "unsealed")) as persons:
        yield persons


async def test_without_sealing_a_route_sees_what_it_is_given(
    house: House, unsealed: Persons
) -> None:
    async with asking(house, unsealed) as http:
        added = await http.post("/guests", json={"name": NAME})
        all_ = await http.get("/all")

    assert house.seen == [NAME]
    assert [added.json(), *all_.json()] == [{"name": NAME, "nights": 1}] * 2


async def test_without_sealing_others_names_are_shown_to_who_may_read_them(
    house: House, unsealed: Persons
) -> None:
    house.seen.append(NAME)
    async with asking(house, unsealed) as http:
        for readable, shown_as in (("nobody", "A…"), (NAME, NAME)):
            token = MAY_READ.set(readable.__eq__)
            try:
                answer = await http.get("/all")
            finally:
                MAY_READ.reset(token)
            assert answer.json() == [{"name": shown_as, "nights": 1}]


async def test_without_sealing_a_text_that_only_looks_sealed_is_refused(
    house: House, unsealed: Persons
) -> None:
    async with asking(house, unsealed) as http:
        refused = await http.post("/guests", json={"name": FORGED})

    assert refused.status_code == 422
    assert "looks like a sealed value" in refused.json()["detail"]
    assert house.seen == []


# --- the broker ---------------------------------------------------------------------------------


class BodyPublisher(CopyingPublisher):
    """Keeps the bodies of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    async def publish(self, exchange: str, posting: Posting) -> None:
        self.bodies.append(posting.body)
        await super().publish(exchange, posting)


_SAYING: Final = ("message_id", "correlation_id", "type")
"""Properties of AMQP that repeat what the envelope says."""


class Intake:
    """The order service's intake queue, with a kernel that holds what it is given."""

    def __init__(
        self,
        persons: Persons,
        kernel: HoldingKernel | None = None,
        *,
        participant: Participant = PARTICIPANT,
        queue: str = QUEUE,
    ) -> None:
        self.kernel = kernel or HoldingKernel()
        self.publisher, self.channel = BodyPublisher(), WatchedChannel()
        deliveries = Deliveries(
            participant,
            cast(Kernel, self.kernel),
            cast(BrokerPublisher, self.publisher),
            lambda: NOW,
            persons,
        )
        self._take = deliveries.taker(queue)

    def deliver(
        self,
        body: bytes,
        *,
        tag: int = 1,
        redelivered: bool = False,
        exchange: str = "",
        key: str = QUEUE,
        raw: bytes = frames.NO_PROPERTIES,
    ) -> None:
        delivery = Delivery(tag, redelivered, exchange, key, raw, body)
        self._take(cast(DeliveryChannel, self.channel), delivery)

    async def taken(self, count: int = 1) -> Any:
        await until(lambda: len(self.kernel.taken) >= count)
        return self.kernel.taken[count - 1]


def command() -> Envelope[Any]:
    place = PlaceOrder(
        order_id=UUID(int=1),
        customer=NAME,
        currency="EUR",
        lines=(OrderLine(sku="tea", quantity=1, unit_price_cents=250),),
    )
    return wrap(place, id="c1", source=source_of("shop"), time=NOW, priority=Priority.NORMAL)


def body(**changes: Any) -> bytes:
    document = json.loads(command().to_bytes())
    document["data"] |= changes
    return json.dumps(document | {"note": "kept as it came"}).encode()


async def test_the_kernel_is_given_the_sealed_command(persons: Persons) -> None:
    intake = Intake(persons)
    intake.deliver(body())

    given = (await intake.taken()).envelope.data.customer

    assert await persons.open(given) == NAME != given
    assert intake.channel.acked == []
    (await intake.taken()).then(Done((), Order(str(UUID(int=1)))))
    await until(lambda: intake.channel.acked == [1])


async def test_commands_of_many_new_persons_are_sealed_with_few_questions(
    persons: Persons, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"newcomer {number}" for number in range(30)]
    asked: list[int] = []
    ask = persons._ask

    async def counting(question: Any) -> Any:
        asked.append(1)
        return await ask(question)

    monkeypatch.setattr(persons, "_ask", counting)
    intake = Intake(persons)
    for tag, name in enumerate(names, 1):
        intake.deliver(body(customer=name), tag=tag)
        if tag % 10 == 0:
            await asyncio.sleep(0)  # What comes while the store is asked is the next group.
    await intake.taken(len(names))

    assert len(asked) <= 3
    given = [work.envelope.data.customer for work in intake.kernel.taken]
    assert [await persons.open(text) for text in given] == names
    assert len({*given}) == len(names)


async def test_one_that_only_looks_sealed_is_in_the_way_of_no_other(persons: Persons) -> None:
    intake = Intake(persons)
    for tag, name in enumerate(["anna", FORGED, "ben"], 1):
        intake.deliver(body(customer=name), tag=tag)
    await intake.taken(2)
    await until(lambda: bool(intake.publisher.bodies))

    names = {await persons.open(work.envelope.data.customer) for work in intake.kernel.taken}
    assert names == {"anna", "ben"}
    assert len(intake.publisher.bodies) == 1
    assert intake.channel.acked == [2]


@pytest.mark.parametrize("times", [1, 2], ids=["new", "known"])
async def test_a_dead_letter_of_a_command_has_the_sealed_name(persons: Persons, times: int) -> None:
    intake = Intake(persons)
    for number in range(times):
        intake.deliver(body())
        (await intake.taken(number + 1)).then(Failed(ValueError("a mistake")))
        await until(partial(_has_copies, intake, number + 1))

    for copy in intake.publisher.bodies:
        document = json.loads(copy)
        assert await persons.open(document["data"]["customer"]) == NAME
        assert NAME.encode() not in copy
        assert document["note"] == "kept as it came"


@pytest.mark.parametrize("name", [NAME, f"{NAME}\x07", NAME * 200])
async def test_a_command_that_cannot_be_read_is_dead_without_its_name(
    persons: Persons, name: str
) -> None:
    intake = Intake(persons)
    intake.deliver(body(customer=name, currency="none"))
    await until(lambda: bool(intake.publisher.bodies))

    (copy,) = intake.publisher.bodies
    assert NAME.encode() not in copy
    opened = await persons.open(json.loads(copy)["data"]["customer"])
    assert opened == name or (opened.endswith("…") and name.startswith(opened[:-1]))


async def test_a_message_of_an_unknown_type_is_dead_without_the_names_under_known_keys(
    persons: Persons,
) -> None:
    intake = Intake(persons)
    document = json.loads(body())
    sent = {
        **document,
        "type": "order.wish",
        "data": {"wishes": [{"customer": [NAME]}], "note": "stays"},
    }
    intake.deliver(json.dumps(sent).encode())
    await until(lambda: bool(intake.publisher.bodies))

    (copy,) = intake.publisher.bodies
    assert NAME.encode() not in copy
    data = json.loads(copy)["data"]
    assert await persons.open(data["wishes"][0]["customer"][0]) == NAME
    assert data["note"] == "stays"


@pytest.mark.parametrize("type_", ["order.wish", "order.placed"], ids=["unknown", "an event"])
async def test_who_says_in_a_header_that_it_is_an_event_keeps_no_name_in_clear(
    persons: Persons, type_: str
) -> None:
    queue = work_queue("inventory", Priority.NORMAL)
    sent = json.dumps(json.loads(body(currency="none")) | {"type": type_}).encode()
    forged = frames.table_of([frames.field(ORIGIN_EXCHANGE, EVENTS_EXCHANGE)])
    copies = {}
    for exchange, key in (("", queue), (EVENTS_EXCHANGE, f"{type_}.normal")):
        intake = Intake(persons, participant=INVENTORY, queue=queue)
        intake.deliver(sent, exchange=exchange, key=key, raw=frames.join({"headers": forged}))
        await until(lambda here=intake: bool(here.publisher.bodies))  # type: ignore[misc]  # this one
        copies[exchange] = json.loads(intake.publisher.bodies[0])["data"]["customer"]

    assert await persons.open(copies[""]) == NAME != copies[""]
    assert copies[EVENTS_EXCHANGE] == NAME  # As its participant has published it.


async def test_logs_of_what_cannot_be_read_tell_ids_and_types_only_where_they_look_like_it(
    persons: Persons, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(persons)
    document = json.loads(body())
    sent = json.dumps(document | {"id": NAME, "type": f"order.{NAME}"}).encode()
    properties = {name: bytes((len(NAME),)) + NAME.encode() for name in _SAYING}
    intake.deliver(sent, raw=frames.join(properties))
    await until(lambda: bool(intake.publisher.bodies))

    (record,) = [one for one in caplog.records if "dead" in one.getMessage()]
    assert "sha256:" in record.getMessage()
    assert "no reaction here takes messages of type" in record.getMessage()
    assert NAME not in f"{record.getMessage()} {record.__dict__}"
    ((_, _, headers),) = intake.publisher.copies
    assert NAME not in headers[ERROR]


@pytest.mark.parametrize("sealing", [True, False], ids=["sealed", "off"])
async def test_a_command_with_a_text_that_only_looks_sealed_is_dead(
    persons: Persons, unsealed: Persons, sealing: bool
) -> None:
    intake = Intake(persons if sealing else unsealed)
    intake.deliver(body(customer=FORGED))
    await until(lambda: bool(intake.publisher.bodies))

    assert intake.kernel.taken == []
    assert json.loads(intake.publisher.bodies[0])["data"]["customer"] == FORGED


async def test_a_changed_text_of_a_person_who_is_known_is_dead_too(persons: Persons) -> None:
    text = (await persons.seal([NAME]))[NAME]
    changed = text[:-2] + ("AA" if text[-2:] != "AA" else "BB")
    intake = Intake(persons)
    intake.deliver(body(customer=changed))
    await until(lambda: bool(intake.publisher.bodies))

    assert intake.kernel.taken == []


async def test_any_handler_of_logs_is_told_of_a_dead_letter_without_its_name(
    unsealed: Persons, caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.getLogRecordFactory()
    try:
        name_nobody()
        intake = Intake(unsealed)
        intake.deliver(body())
        (await intake.taken()).then(Failed(ValueError(f"{NAME} is unknown, and {NAME.upper()}")))
        await until(partial(_has_copies, intake, 1))
    finally:
        logging.setLogRecordFactory(before)

    (record,) = [one for one in caplog.records if "dead" in one.getMessage()]
    assert record.exc_info is None
    assert "is unknown" in str(record.exc_text)
    assert "muster" not in f"{record.__dict__} {caplog.text}".lower()


@pytest.mark.parametrize("sealing", ["sealed", "off"])
@pytest.mark.parametrize("redelivered", [False, True])
async def test_a_command_for_who_is_forgotten_is_dead_and_nothing_begins(
    persons: Persons, tmp_path: Path, sealing: str, redelivered: bool
) -> None:
    text = await forgotten(persons)
    async with Persons(load(PersonalSettings, data_dir=tmp_path, personal=sealing)) as others:
        intake = Intake(others)
        sent = body(customer=text)
        intake.deliver(sent, redelivered=redelivered)
        await until(partial(_has_copies, intake, 1))

        assert intake.kernel.taken == []
        assert intake.publisher.bodies == [sent]
        ((exchange, _, headers),) = intake.publisher.copies
        assert exchange == DEAD_EXCHANGE
        assert "asked to; nothing is begun for them" in headers[ERROR]
        assert headers[REASON] == "undecodable"


async def forgotten(persons: Persons) -> str:
    """The sealed name of who is forgotten."""
    text = (await persons.seal([NAME]))[NAME]
    store = persons._store
    assert store is not None
    await asyncio.to_thread(store.forget, text[3:25], "asked to")
    return text


class Weigh(Command):
    """A parcel is to be weighed, by an outside."""

    type: ClassVar[str] = "parcel.weigh"
    intake: ClassVar[bool] = True

    parcel: str
    sender: Annotated[str, Field(max_length=800), Personal]

    @property
    def subject(self) -> str:
        return self.parcel


class Weight(Answer):
    """What the scale says."""

    parcel: str

    @property
    def subject(self) -> str:
        return self.parcel


class AskScale(Intent):
    """What the scale is asked."""

    answer: ClassVar[type[Answer]] = Weight

    parcel: str

    @property
    def subject(self) -> str:
        return self.parcel


def weigh(command: Weigh, ride: Ride) -> AskScale | None:
    raise NotImplementedError


@pytest.mark.parametrize(("tried", "goes_on"), [(False, False), (True, True)])
async def test_what_an_outside_may_have_been_asked_already_goes_on_for_who_is_forgotten(
    persons: Persons, tried: bool, goes_on: bool
) -> None:
    text = await forgotten(persons)
    seal = IntakeSeal(persons, Participant("scale", weigh))
    command = wrap(
        Weigh(parcel="p", sender=text),
        id="c1",
        source=source_of("shop"),
        time=NOW,
        priority=Priority.NORMAL,
    )

    if goes_on:
        assert (await seal.once_sealed(command, tried=tried)).envelope is command
    else:
        with pytest.raises(Undecodable, match="nothing is begun"):
            await seal.once_sealed(command, tried=tried)


async def test_an_event_about_who_is_forgotten_is_taken_as_ever(persons: Persons) -> None:
    document = json.loads((EXAMPLES / "order.placed" / "v1.json").read_text())
    document["data"]["customer"] = await forgotten(persons)
    intake = Intake(persons, participant=INVENTORY, queue=work_queue("inventory", Priority.HIGH))
    intake.deliver(json.dumps(document).encode(), exchange=EVENTS_EXCHANGE, key="order.placed.high")

    assert (await intake.taken()).envelope.data.customer == document["data"]["customer"]


async def test_a_command_that_comes_sealed_is_taken_as_it_came(persons: Persons) -> None:
    text = (await persons.seal([NAME]))[NAME]
    intake = Intake(persons)
    sent = body(customer=text)
    intake.deliver(sent)

    taken = await intake.taken()
    assert taken.envelope.data.customer == text
    taken.then(Failed(ValueError("a mistake")))
    await until(partial(_has_copies, intake, 1))
    assert intake.publisher.bodies == [sent]


async def test_a_name_within_what_is_no_text_is_sealed_in_a_dead_letter(persons: Persons) -> None:
    intake = Intake(persons)
    intake.deliver(body(customer={"first": NAME, "others": [NAME]}))
    await until(lambda: bool(intake.publisher.bodies))

    assert NAME.encode() not in intake.publisher.bodies[0]


async def test_what_is_no_json_is_dead_as_it_came(persons: Persons) -> None:
    intake = Intake(persons)
    intake.deliver(b"{" + NAME.encode())
    await until(lambda: bool(intake.publisher.bodies))

    assert intake.publisher.bodies == [b"{" + NAME.encode()]


async def test_a_command_waits_for_the_key_store(persons: Persons, tmp_path: Path) -> None:
    await persons.check()
    (tmp_path / STORE_FILE).rename(tmp_path / "aside")
    intake = Intake(persons)
    intake.deliver(body())
    await until(lambda: bool(persons.loop.failing))
    assert intake.kernel.taken == []
    assert intake.channel.acked == []
    assert intake.publisher.bodies == []

    (tmp_path / "aside").rename(tmp_path / STORE_FILE)

    assert sealed((await intake.taken()).envelope.data.customer)


class RecordingKernel(HoldingKernel):
    """Knows a command that was done in clear, before anything was sealed."""

    def __init__(self, done: bytes) -> None:
        super().__init__()
        self.done = done

    def take(self, envelope: Any, then: Any, *, attempt: int, digest: bytes) -> Any:
        work = super().take(envelope, then, attempt=attempt, digest=digest)
        known = digest == self.done
        outcome = Done((), Order(str(UUID(int=1)))) if known else Failed(Conflicting("another"))
        asyncio.get_running_loop().call_soon(then, outcome)
        return work


async def test_what_was_done_in_clear_is_known_when_it_comes_again(persons: Persons) -> None:
    for done, acked in ((digest_of(command(), b""), True), (b"another command", False)):
        intake = Intake(persons, RecordingKernel(done))
        intake.deliver(body())

        await until(partial(_is_acked, intake))
        assert (intake.publisher.bodies == []) is acked


def _is_acked(intake: Intake) -> bool:
    return intake.channel.acked == [1]


def _has_copies(intake: Intake, count: int) -> bool:
    return len(intake.publisher.bodies) == count


# --- dead letters -------------------------------------------------------------------------------


def test_an_edit_writes_no_name_in_clear_over_a_sealed_one() -> None:
    example = json.loads((EXAMPLES / "order.placed" / "v1.json").read_text())
    example["data"]["customer"] = FORGED
    queue = work_queue("inventory", Priority.NORMAL)
    delivery = delivered(json.dumps(example).encode(), x_saga_origin_queue=queue)
    letter = letter_of(copy_of(delivery, "inventory", NOW))
    text = text_of(letter.body)

    with pytest.raises(InputError, match="names a person in clear"):
        corrected(choreography(), letter, with_values(text, [f"data.customer={NAME}"]))
    assert (
        corrected(choreography(), letter, with_values(text, ["data.priority=normal"])) is not None
    )
