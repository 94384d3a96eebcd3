"""Who may ask the services over HTTP, and who may not: every route of every service, as its OpenAPI
document lists them; and what a customer may do with orders."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import oidc_provider_mock
import pytest

from common.events import order_id_of
from order_service.domain import CancelOrder
from saga.archive import queries, store
from saga.auth import access, audit, keys
from saga.auth.audit import Audited, entries
from saga.auth.caller import NotAllowed
from saga.auth.keys import changing, last_used, new_key
from saga.auth.settings import KEYS_FILE_NAME, Auth
from saga.deployment import Deployment
from saga.discovery import packages
from saga.exporter import Exporter
from saga.http import KeyRefused, client
from saga.personal.keystore import KeyStore
from saga.personal.opening import made_key
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import HttpSettings, SettingsError
from tests import forked
from tests.closed import EVERY_SCOPE, Callers, operations_of, wrong_with
from tests.command import saga
from tests.integration.served import Answer, Served, built, serving
from tests.issuer import OWNER, Issuer, ec_key
from tests.issuer import served as issuing
from tests.order_play import SAGA, Play
from tests.polling import until
from tests.stores import PROJECTION

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = [file.parent for file in sorted(ROOT.glob("examples/*/pyproject.toml"))]
NOWHERE: Final = Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={})
MARKER: Final = "Zebedee Quigley"
OPERATIONS: Final = ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")


@pytest.fixture(autouse=True)
def unheard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Applications that were made before know no callers of this test."""
    access._made.cache_clear()
    yield
    access._made.cache_clear()


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers(tmp_path / "auth")


@asynccontextmanager
async def closed(package: str, callers: Callers, **settings: str) -> AsyncIterator[Served]:
    """A service that knows these callers, and records what it decides."""
    settings = callers.settings | settings
    _, found = built(package, callers.folder, **settings)
    access.begin(found, package)
    async with serving(package, callers.folder, **settings) as served:
        yield served


async def asked(
    served: Served, method: str, target: str, credentials: str | None, document: Any = None
) -> Answer:
    headers = [(b"Authorization", f"Bearer {credentials}".encode())] if credentials else []
    if document is None:
        return await served.ask(method, target, headers)
    headers.append((b"Content-Type", b"application/json"))
    return await served.ask(method, target, headers, json.dumps(document).encode())


def order(customer: str) -> dict[str, Any]:
    line = {"sku": "A", "quantity": 1, "unit_price_cents": 100}
    return {"customer": customer, "currency": "EUR", "lines": [line]}


async def furnished(served: Served, callers: Callers, customer: str = "adalbert") -> dict[str, str]:
    """Put an order there; gives what it is known by."""
    match served.name:
        case "order":
            key = callers.keys[EVERY_SCOPE]
            placed = await asked(served, "POST", "/orders", key, order(customer))
            return {"order_id": placed.json["order_id"]}
        case "history":
            play = Play(at=utc_now() - timedelta(hours=1), graph=SAGA)
            order_id = play.place(customer=customer)
            play.give("order", CancelOrder(order_id=UUID(order_id)))
            facts = [store.Fact(event, event.to_bytes()) for event in play.events]
            await served.database.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
            return {"order_id": order_id}
        case _:
            return {"order_id": str(uuid4())}


def trail(callers: Callers) -> list[Audited]:
    """What was recorded, the first decision first."""
    return [*entries(callers.folder / "audit")][::-1]


# --- every route ----------------------------------------------------------------------------------


@pytest.mark.parametrize("package", packages())
async def test_every_route_is_closed_to_those_it_is_not_for(package: str, callers: Callers) -> None:
    async with closed(package, callers) as served:
        known = await furnished(served, callers)
        assert await operations_of(served, known)

        assert await wrong_with(served, callers, known) == []


@pytest.mark.parametrize(
    "folder",
    [EXAMPLES[0], *(pytest.param(folder, marks=pytest.mark.long) for folder in EXAMPLES[1:])],
    ids=lambda folder: folder.name,
)
def test_every_route_of_the_examples_is_closed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(
        folder, tmp_path / "project", ignore=shutil.ignore_patterns(".venv", "data", "__pycache__")
    )

    assert_closed(tmp_path / "project")


def test_every_route_of_a_new_project_is_closed(tmp_path: Path) -> None:
    assert saga("new", "stays", "--folder", str(tmp_path / "project")).returncode == 0

    assert_closed(tmp_path / "project")


def assert_closed(project: Path) -> None:
    program(project, "-m", "saga.cli", "generate")
    found = json.loads(program(project, str(ROOT / "tests" / "closed.py")))
    assert len(found) > 1
    assert found == {package: [] for package in found}


def program(folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("AMQP_URL", "SAGA", "DATA_DIR")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.mark.parametrize("package", packages())
async def test_what_asks_nobody_who_they_are_answers_everybody(
    package: str, callers: Callers
) -> None:
    async with closed(package, callers) as served:
        for path in OPERATIONS:
            assert (await served.ask("GET", path)).status in (200, 503), path


async def test_a_route_that_says_nothing_of_its_callers_is_refused_where_they_are_to_be_known(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.auth.access.need_of", lambda route: None)
    with pytest.raises(SettingsError, match="POST /orders does not say who may ask"):
        async with closed("order_service", callers):
            pass


async def test_a_route_for_owners_that_never_learns_who_asks_is_refused(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.auth.access.takes_its_caller", lambda route: False)
    with pytest.raises(SettingsError, match="does not take its caller"):
        async with closed("order_service", callers):
            pass


# --- what a process needs to start ----------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "shop.example", "127.0.0.1.nip.io"])
def test_an_address_that_others_reach_takes_callers_that_can_be_known(
    host: str, tmp_path: Path, callers: Callers
) -> None:
    alone: dict[str, Any] = {"http_host": host, "data_dir": tmp_path}

    with pytest.raises(SettingsError, match="no caller could be known"):
        access.access_of(HttpSettings(**alone))
    for reason in (None, "", " \t"):
        with pytest.raises(SettingsError, match="AUTH_OFF_REASON"):
            access.access_of(HttpSettings(**alone, auth=Auth.OFF, auth_off_reason=reason))
    assert access.access_of(HttpSettings(**alone, auth=Auth.OFF, auth_off_reason="a lab")) is None
    file = callers.folder / "api_keys.json"
    assert access.access_of(HttpSettings(**alone, api_keys_file=file)) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_on_loopback_nobody_is_asked_who_they_are_unless_that_is_wanted(
    host: str, tmp_path: Path
) -> None:
    assert access.access_of(HttpSettings(http_host=host, data_dir=tmp_path)) is None
    with pytest.raises(SettingsError, match="no caller could be known"):
        access.access_of(HttpSettings(http_host=host, data_dir=tmp_path, auth=Auth.ON))


@pytest.mark.parametrize("package", packages())
def test_a_service_does_not_start_open(package: str, tmp_path: Path) -> None:
    given = {"HTTP_HOST": "0.0.0.0", "DATA_DIR": str(tmp_path), "LOG_FORMAT": "text"}
    done = forked.run(f"{package}.app", environment=os.environ | given)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "AUTH_ISSUER" in line
    assert "saga keys create" in line


def test_the_exporter_does_not_start_open(tmp_path: Path) -> None:
    with (
        mock.patch.dict(os.environ, {"DATA_DIR": str(tmp_path)}),
        pytest.raises(SettingsError, match="no caller could be known"),
        Exporter(NOWHERE, host="0.0.0.0", port=0),
    ):
        pass


def test_that_nobody_is_asked_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    access.begin(HttpSettings(data_dir=tmp_path), "order")

    assert ["AUTH is off" in line for line in caplog.messages] == [True]


# --- customers ------------------------------------------------------------------------------------


async def test_a_customer_does_with_their_own_orders_what_their_token_says(
    callers: Callers,
) -> None:
    async with closed("order_service", callers) as served:
        ada = callers.issuer.customers("orders:read orders:write")

        placed = await asked(served, "POST", "/orders", ada, order(OWNER))
        path = f"/orders/{placed.json['order_id']}"

        assert placed.status == 202
        assert (await asked(served, "GET", path, ada)).status == 200
        only_reads = callers.issuer.customers("orders:read")
        assert (await asked(served, "POST", f"{path}/cancel", only_reads)).status == 403
        assert (await asked(served, "POST", f"{path}/cancel", ada)).status == 202


@pytest.mark.parametrize("package", packages())
@pytest.mark.parametrize("personal", ["off", "sealed"])
async def test_old_names_in_clear_are_shown_to_who_may_read_them_only(
    package: str, personal: str, callers: Callers
) -> None:
    """Every route that shows something, of a system with an event from before names were sealed."""
    settings = {}
    if personal == "sealed":
        settings = {"PERSONAL": "sealed", "PERSONAL_KEY_FILE": str(made_key(callers.folder))}
    callers.let_in("*:read", "personal:read")
    reader = callers.keys["*:read"]
    async with closed(package, callers, **settings) as served:
        known = await furnished(served, callers, MARKER) | {"subject": ""}
        known["subject"] = known["order_id"]
        shown: dict[str, bool] = {}
        for operation in await operations_of(served, known):
            if operation.method == "GET":
                answer = await operation.asked(served, reader)
                assert MARKER not in answer.body.decode(), operation.path
                assert "~1." not in answer.body.decode(), operation.path
                all_ = await operation.asked(served, callers.keys[EVERY_SCOPE])
                shown[operation.path] = MARKER in all_.body.decode()
    expected = {
        "order": {"/orders/{order_id}"},
        "history": {
            "/orders",
            "/orders/{order_id}",
            "/orders/{order_id}/timeline",
            "/subjects/{subject}/timeline",
        },
    }
    assert {path for path, is_ in shown.items() if is_} == expected.get(served.name, set())


@pytest.mark.parametrize("package", packages())
async def test_nothing_is_found_by_parts_of_a_name_that_is_masked(
    package: str, callers: Callers
) -> None:
    """Every text that a route takes, of a system with an event from before names were sealed."""
    part, nowhere = MARKER[2:7].upper(), "OTTOL"
    callers.let_in("*:read")
    async with closed(package, callers) as served:
        known = await furnished(served, callers, MARKER) | {"subject": ""}
        known["subject"] = known["order_id"]
        tried = [
            (operation, name)
            for operation in await operations_of(served, known)
            if operation.method == "GET"
            for name in operation.texts
        ]
        for operation, name in tried:
            for who in ("*:read", EVERY_SCOPE):
                found, nothing = [
                    await operation.asked(served, callers.keys[who], **{name: said})
                    for said in (part, nowhere)
                ]
                assert found.status == nothing.status, (operation.path, name)
                said = found.body.decode().replace(part, nowhere)
                assert said == nothing.body.decode(), (operation.path, name)
    assert bool(tried) == (served.name == "history")


async def test_anothers_order_is_as_if_it_were_not_there(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        ada = callers.issuer.customers("orders:read orders:write")
        eve = callers.issuer.customers("orders:read orders:write", owner="eve")
        placed = await asked(served, "POST", "/orders", ada, order(OWNER))
        order_id = placed.json["order_id"]
        nobodys = str(uuid4())

        for method, path in (("GET", "/orders/{}"), ("POST", "/orders/{}/cancel")):
            anothers = await asked(served, method, path.format(order_id), eve)
            missing = await asked(served, method, path.format(nobodys), eve)
            assert anothers.status == missing.status == 404
            assert anothers.detail.replace(order_id, nobodys) == missing.detail
        assert (await asked(served, "GET", f"/orders/{order_id}", ada)).json["status"] == "pending"


async def test_the_history_loads_no_event_of_anothers_order(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    facts_about = queries.facts_about

    def counted(connection: Any, subjects: list[str]) -> Any:
        loaded.append(subjects)
        return facts_about(connection, subjects)

    async with closed("saga.archive", callers) as served:
        known = await furnished(served, callers, OWNER)
        monkeypatch.setattr(queries, "facts_about", counted)
        eve = callers.issuer.customers("orders:read", owner="eve")
        for path in ("/orders/{}", "/orders/{}/timeline"):
            for order_id in (known["order_id"], str(uuid4())):
                assert (await asked(served, "GET", path.format(order_id), eve)).status == 404
            assert loaded == []
            own = callers.issuer.customers("orders:read")
            found = await asked(served, "GET", path.format(known["order_id"]), own)
            assert found.status == 200
            assert loaded == [[known["order_id"]]]
            loaded.clear()


async def test_nobody_places_an_order_in_anothers_name(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        eve = callers.issuer.customers("orders:write", owner="eve")

        placed = await asked(served, "POST", "/orders", eve, order(OWNER))

        assert placed.status == 403
        assert "own name" in placed.detail


async def test_an_order_in_anothers_name_makes_no_person_and_asks_no_key_store(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_key(callers.folder)
    asked_about: list[str] = []
    seal_all = KeyStore.seal_all

    def noting(store: KeyStore, values: Iterable[str]) -> dict[str, str]:
        asked_about.extend(known := [*values])
        return seal_all(store, known)

    monkeypatch.setattr(KeyStore, "seal_all", noting)
    async with closed("order_service", callers, PERSONAL="sealed") as served:
        eve = callers.issuer.customers("orders:write", owner="eve")

        refused = await asked(served, "POST", "/orders", eve, order(OWNER))
        placed = await asked(served, "POST", "/orders", eve, order("eve"))

        assert (refused.status, placed.status) == (403, 202)
        assert asked_about == ["eve"]


async def test_an_order_that_was_placed_before_names_were_sealed_is_placed_once(
    callers: Callers,
) -> None:
    token = callers.issuer.customers("orders:read orders:write")
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Idempotency-Key", b"mugs"),
        (b"Authorization", f"Bearer {token}".encode()),
    ]
    body = json.dumps(order(OWNER)).encode()
    async with closed("order_service", callers) as served:
        assert (await served.ask("POST", "/orders", headers, body)).status == 202
    made_key(callers.folder)

    async with closed("order_service", callers, PERSONAL="sealed") as served:
        again = await served.ask("POST", "/orders", headers, body)
        headers[1] = (b"Idempotency-Key", b"more mugs")
        another = await served.ask("POST", "/orders", headers, body)

    assert (again.status, another.status) == (422, 202)
    assert "was used before" in again.detail


@pytest.mark.parametrize("personal", ["off", "sealed"])
async def test_each_customer_has_idempotency_keys_of_their_own(
    personal: str, callers: Callers
) -> None:
    if personal == "sealed":
        made_key(callers.folder)
    async with closed("order_service", callers, PERSONAL=personal) as served:
        headers = [(b"Content-Type", b"application/json"), (b"Idempotency-Key", b"guessed")]

        async def place(customer: str) -> Answer:
            token = callers.issuer.customers("orders:write", owner=customer)
            token = callers.keys[EVERY_SCOPE] if customer == "operator" else token
            own = [*headers, (b"Authorization", f"Bearer {token}".encode())]
            return await served.ask("POST", "/orders", own, json.dumps(order(customer)).encode())

        answers = {who: await place(who) for who in ("operator", OWNER, "eve")}
        again = await place(OWNER)

        assert [answer.status for answer in answers.values()] == [202] * 3
        ids = {who: answer.json["order_id"] for who, answer in answers.items()}
        assert again.json["order_id"] == ids[OWNER]
        assert OWNER.encode() not in answers["eve"].body
        assert ids["operator"] == str(order_id_of("guessed"))
        assert len({*ids.values()}) == 3
        by_name = str(order_id_of("guessed", OWNER))
        assert (ids[OWNER] == by_name) is (personal == "off")  # Else a name could be guessed.


async def test_the_history_shows_a_customer_their_own(callers: Callers) -> None:
    async with closed("saga.archive", callers) as served:
        hers = await furnished(served, callers, customer=OWNER)
        his = await furnished(served, callers, customer="bob")
        ada = callers.issuer.customers("orders:read history:read stats:read")

        found = await asked(served, "GET", "/orders", ada)
        bobs = await asked(served, "GET", "/orders?customer=bob", ada)

        assert [one["order_id"] for one in found.json["orders"]] == [hers["order_id"]]
        assert bobs.json["orders"] == []
        for rest in ("", "/timeline"):
            own = await asked(served, "GET", f"/orders/{hers['order_id']}{rest}", ada)
            other = await asked(served, "GET", f"/orders/{his['order_id']}{rest}", ada)
            assert (own.status, other.status) == (200, 404)
        assert (await asked(served, "GET", "/subjects", ada)).status == 403
        assert (await asked(served, "GET", "/stats", ada)).status == 403


async def test_an_operator_acts_on_everybodys_orders(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        known = await furnished(served, callers)

        olga = callers.issuer.token()
        assert (await asked(served, "GET", f"/orders/{known['order_id']}", olga)).status == 200


# --- the record -----------------------------------------------------------------------------------


async def test_what_no_route_takes_is_recorded_of_known_callers_too(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        olga = callers.issuer.token()
        headers = [
            (b"Authorization", f"Bearer {olga}".encode()),
            (b"Content-Type", b"application/json"),
        ]

        await asked(served, "GET", "/no/such/path", olga)
        await asked(served, "PUT", "/orders", olga)
        await served.ask("POST", "/orders", headers, b"{no json")
        await served.ask("POST", "/orders", headers, b"x" * 100_000)

        await until(lambda: len(trail(callers)) == 4)
    found = [(e.who, e.action, e.allowed, e.reason) for e in trail(callers)]
    assert found == [
        ("olga", "GET /no/such/path", False, "answered 404"),
        ("olga", "PUT /orders", False, "answered 405"),
        ("olga", "POST /orders", True, ""),  # Who asks is decided first.
        ("olga", "POST /orders", False, "answered 413"),
    ]


async def test_why_a_service_is_not_ready_is_told_to_who_may_know(callers: Callers) -> None:
    async with closed("order_service", callers) as served:

        async def lacks_the_same_from_now_on() -> bool:
            answer = await asked(served, "GET", "/readyz", None)
            return "database" not in answer.json["missing"]  # It has been read from by then.

        await until(lacks_the_same_from_now_on)
        nobody, forged, reader, customer = [
            await asked(served, "GET", "/readyz", credentials)
            for credentials in (
                None,
                "not.a.token",
                callers.issuer.token(roles=["reader"]),
                callers.issuer.customers("health:read"),
            )
        ]
    assert {answer.status for answer in (nobody, forged, reader, customer)} == {503}
    for answer in (nobody, forged, customer):
        assert answer.json["missing"].keys() == reader.json["missing"].keys()
        assert {*answer.json["missing"].values()} == {"why, is told to who may health:read"}
        assert "127.0.0.1" not in answer.body.decode()
    assert "health:read" not in reader.body.decode()
    assert [entry.reason for entry in trail(callers)] == ["the token cannot be read"]


async def test_each_decision_is_recorded_once_and_no_token_is(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        ada, eve = (callers.issuer.customers("orders:read", owner=who) for who in (OWNER, "eve"))
        order_id = (await furnished(served, callers, customer=OWNER))["order_id"]
        path = f"/orders/{order_id}"

        await asked(served, "GET", path, ada)
        await asked(served, "GET", path, eve)
        await asked(served, "POST", f"{path}/cancel", ada)
        await asked(served, "GET", path, None)
        await asked(served, "GET", path, ada + "x")
        await asked(served, "GET", "/metrics", None)

        found = [(one.who, one.action, one.allowed, one.reason) for one in trail(callers)[1:]]
        assert found == [
            (OWNER, "GET /orders/{order_id}", True, ""),
            ("eve", "GET /orders/{order_id}", False, "it is another's"),
            (OWNER, "POST /orders/{order_id}/cancel", False, "needs orders:write"),
            (None, f"GET {path}", False, "neither a token nor a key came with it"),
            (None, f"GET {path}", False, found[-1][3]),
        ]
        assert [one.subject for one in trail(callers)[1:4]] == [order_id] * 3
        assert [one.personal for one in trail(callers)[:4]] == [False, True, False, False]
        written = "".join(file.read_text() for file in (callers.folder / "audit").glob("*.jsonl"))
        for secret in (ada, eve, callers.keys[EVERY_SCOPE]):
            assert secret not in written
            assert secret[-20:] not in written  # Of a signature, or of a secret.


async def test_the_audit_trail_holds_no_owners_name_where_the_issuer_has_opaque_ids(
    callers: Callers,
) -> None:
    async with closed("order_service", callers, AUTH_OWNER_CLAIM="preferred_username") as served:
        opaque = callers.issuer.token(
            sub="7f3a", preferred_username="Ada Lovelace", roles=None, scope="orders:write"
        )
        placed = await asked(served, "POST", "/orders", opaque, order("Ada Lovelace"))
        text, key = new_key("for Ada Lovelace", ["orders:write"], owner="ada", now=utc_now())
        with changing(callers.folder / KEYS_FILE_NAME) as keys:
            keys.append(key)
        await until_status(served, "/orders/none", text, 403)
        await until(lambda: len(trail(callers)) > 1)
    assert placed.status == 202, placed.body
    written = "".join(file.read_text() for file in (callers.folder / "audit").glob("*.jsonl"))
    assert "7f3a" in written
    assert key.id in written
    assert "Lovelace" not in written


async def test_a_forged_token_has_no_free_tries_where_supervisors_ask(callers: Callers) -> None:
    async with closed("order_service", callers, HTTP_REQUESTS_PER_SECOND="1") as served:
        forged = [(await asked(served, "GET", "/readyz", "not.a.token")).status for _ in range(15)]
        open_to_all = [(await asked(served, "GET", "/readyz", None)).status for _ in range(15)]
    assert 429 in forged
    assert 429 not in open_to_all


async def test_a_look_a_change_and_a_refusal_are_in_the_file_before_the_answer_is(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FLUSH_SECONDS", 3_600.0)  # What may wait is not written at all.
    async with closed("order_service", callers) as served:
        ada, eve = (callers.issuer.customers("orders:read", owner=who) for who in (OWNER, "eve"))
        order_id = (await furnished(served, callers, customer=OWNER))["order_id"]  # A change.
        path = f"/orders/{order_id}"
        assert lines_in(callers) == 1

        for count, (asked_for, token) in enumerate(
            [(path, ada), (path, eve), (path, None), ("/nowhere", ada), (f"{path}/cancel", eve)], 2
        ):
            method = "POST" if asked_for.endswith("cancel") else "GET"
            await asked(served, method, asked_for, token)
            assert lines_in(callers) == count, asked_for


def lines_in(callers: Callers) -> int:
    """Lines of the trail that the disk has by now."""
    files = (callers.folder / "audit").glob("*.jsonl")
    return sum(len(file.read_text().splitlines()) for file in files)


async def test_what_is_refused_is_counted_by_its_reason(callers: Callers) -> None:
    async with closed("order_service", callers) as served:
        eve = callers.issuer.customers("orders:read", owner="eve")
        known = await furnished(served, callers)
        before = await refusals(served)

        await asked(served, "GET", f"/orders/{known['order_id']}", None)
        await asked(served, "GET", f"/orders/{known['order_id']}", eve)
        await asked(served, "POST", f"/orders/{known['order_id']}/cancel", eve)

        after = await refusals(served)
        grown = {reason for reason in after if after[reason] == before[reason] + 1}
        assert grown == {"unauthenticated", "not_theirs", "forbidden"}


async def refusals(served: Served) -> dict[str, float]:
    text = (await served.ask("GET", "/metrics")).body.decode()
    found = re.findall(r'saga_http_requests_refused_total\{reason="(\w+)"\} (\S+)', text)
    return {reason: float(count) for reason, count in found}


async def test_a_caller_has_a_limit_whatever_address_they_ask_from(callers: Callers) -> None:
    proxied = {"HTTP_PROXIES": "127.0.0.1", "AUTH_REQUESTS_PER_SECOND": "0.2"}
    async with closed("payment_service", callers, **proxied) as served:

        async def status(number: int, token: str) -> int:
            headers = [
                (b"X-Forwarded-For", b"10.0.0.%d" % number),
                (b"Authorization", f"Bearer {token}".encode()),
            ]
            return (await served.ask("GET", f"/payments/{uuid4()}", headers)).status

        olga, otto = callers.issuer.token(), callers.issuer.token(sub="otto")
        assert [await status(number, olga) for number in range(4)] == [404, 404, 429, 429]
        assert await status(5, otto) == 404


# --- keys and issuers that change -----------------------------------------------------------------


async def test_a_key_counts_within_seconds_and_no_more_once_it_is_revoked(
    callers: Callers,
) -> None:
    async with closed("payment_service", callers) as served:
        file = callers.folder / "api_keys.json"
        path = f"/payments/{uuid4()}"
        text, key = keys.new_key("shop", ["payments:read"], now=utc_now())
        assert (await asked(served, "GET", path, text)).status == 401

        with changing(file) as known:
            known.append(key)
        await until_status(served, path, text, 404)
        assert last_used(callers.folder / "audit", key.id) is not None

        with changing(file) as known:
            known.remove(key)
        await until_status(served, path, text, 401)


async def test_a_key_file_that_is_made_after_the_start_counts_where_tokens_do(
    callers: Callers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    settings = HttpSettings(
        http_host="0.0.0.0",
        data_dir=tmp_path,
        auth_issuer=callers.issuer.url,
        auth_audience="orders",
    )
    known = access.access_of(settings)
    assert known is not None
    text, key = keys.new_key("shop", ["*"], now=utc_now())
    with pytest.raises(NotAllowed):
        await known.caller(text)

    keys.write_keys(settings.keys_file, [key])
    assert (await known.caller(text)).name == "shop"


async def until_status(served: Served, path: str, credentials: str, status: int) -> None:
    async def holds() -> bool:
        return (await asked(served, "GET", path, credentials)).status == status

    await until(holds)


async def test_an_issuer_is_asked_over_http_and_may_be_away(callers: Callers) -> None:
    issuer = callers.issuer
    with issuing(issuer) as requested:
        settings = {"AUTH_ISSUER": issuer.url, "AUTH_JWKS": ""}
        async with closed("payment_service", callers, **settings) as served:
            path = f"/payments/{uuid4()}"
            assert (await asked(served, "GET", path, issuer.token())).status == 404
            assert requested == ["/.well-known/openid-configuration", "/keys"]
            for _ in range(5):  # Not before a minute is over.
                strange = issuer.token(key=ec_key("strange"))
                assert (await asked(served, "GET", path, strange)).status == 401
            assert len(requested) == 2
    # Gone from here on.


async def test_before_the_issuer_was_there_tokens_are_for_later(callers: Callers) -> None:
    away = Issuer("http://127.0.0.1:1")
    settings = {"AUTH_ISSUER": away.url, "AUTH_JWKS": ""}
    async with closed("payment_service", callers, **settings) as served:
        path = f"/payments/{uuid4()}"

        answer = await asked(served, "GET", path, away.token())

        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert (await asked(served, "GET", path, callers.keys[EVERY_SCOPE])).status == 404


CLIENT: Final = {"client_id": "saga-services", "client_secret": "none of its business"}


def token_of(provider: str, user: str) -> str:
    """What an operator gets who logs in at a provider of OpenID Connect."""
    back = "http://127.0.0.1:1/back"
    with httpx.Client(base_url=provider, trust_env=False) as browser:
        discovered = browser.get("/.well-known/openid-configuration").json()
        wish = {
            "client_id": CLIENT["client_id"],
            "redirect_uri": back,
            "response_type": "code",
            "scope": "openid profile",
            "state": "x",
        }
        sent_back = browser.post(
            discovered["authorization_endpoint"], params=wish, data={"sub": user}
        )
        code = parse_qs(urlsplit(sent_back.headers["location"]).query)["code"][0]
        grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, **CLIENT}
        token: str = browser.post(discovered["token_endpoint"], data=grant).json()["id_token"]
        return token


@pytest.mark.filterwarnings("ignore")  # The provider's own, which would be its errors.
async def test_people_who_log_in_at_a_real_provider_are_known_by_their_tokens(
    callers: Callers,
) -> None:
    users = [
        oidc_provider_mock.User(sub="olga", claims={"groups": {"saga": ["operator"]}}),
        oidc_provider_mock.User(sub=OWNER, claims={"scope": "orders:read orders:write"}),
    ]
    with oidc_provider_mock.run_server_in_thread(user_claims=users) as server:
        url = f"http://localhost:{server.server_port}"
        settings = {"AUTH_ISSUER": url, "AUTH_JWKS": "", "AUTH_ROLES_CLAIM": "groups.saga"}
        async with closed("order_service", callers, **settings) as served:
            olga = await asyncio.to_thread(token_of, url, "olga")
            ada = await asyncio.to_thread(token_of, url, OWNER)

            placed = await asked(served, "POST", "/orders", ada, order(OWNER))
            others = await furnished(served, callers)

            assert placed.status == 202
            assert (await asked(served, "GET", f"/orders/{others['order_id']}", ada)).status == 404
            assert (await asked(served, "GET", f"/orders/{others['order_id']}", olga)).status == 200


# --- our own commands -----------------------------------------------------------------------------


async def test_a_command_is_told_what_is_wrong_with_its_key(
    callers: Callers, tmp_path: Path
) -> None:
    callers.let_in("stock:read")
    async with closed("payment_service", callers) as served:
        path = f"/payments/{uuid4()}"

        async def get(**environment: str) -> int:
            with mock.patch.dict(os.environ, {"DATA_DIR": str(tmp_path)} | environment):
                async with client(f"http://127.0.0.1:{served.port}", 10) as asking:
                    return (await asking.get(path)).status_code

        with pytest.raises(KeyRefused, match="set SAGA_API_KEY, or SAGA_API_KEY_FILE"):
            await get()
        with pytest.raises(KeyRefused, match="does not know the key 0123456789"):
            await get(SAGA_API_KEY="sagakey_0123456789_" + "A" * 43)
        low = callers.keys["stock:read"]
        with pytest.raises(KeyRefused, match="takes payments:read") as error:
            await get(SAGA_API_KEY=low)
        assert low not in str(error.value)
        assert await get(SAGA_API_KEY=callers.keys[EVERY_SCOPE]) == 404
        file = tmp_path / "key"
        file.write_text(callers.keys[EVERY_SCOPE] + "\n")
        assert await get(SAGA_API_KEY_FILE=str(file)) == 404
        file.rename(tmp_path / "saga_api_key")
        assert await get() == 404


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SAGA_API_KEY_FILE", "/no/such/file", "no file"),
        ("SAGA_API_KEY_FILE", "/", "cannot read"),
        ("SAGA_API_KEY", "two words", "no API key"),
        ("SAGA_API_KEY", "schlüssel", "no API key"),
    ],
)
def test_a_key_that_is_none_is_refused_before_anybody_is_asked(
    variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError, match=why):
        client("http://127.0.0.1:1", 1)
