"""Routes ask who may before they read, and are otherwise what FastAPI would have made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from saga.auth.access import serve_routes
from saga.auth.caller import ANYBODY, AuthMethod, Caller
from saga.auth.scopes import ASKING, Asking, AskingRoute, need_of, needs
from saga.personal import Personal
from saga.runtime.problem import Problem
from saga.runtime.settings import SettingsError


class Room(BaseModel):
    name: str


def read_only(name: str = "ria") -> Caller:
    return Caller(name, AuthMethod.TOKEN, frozenset({"*:read"}))


def writer() -> Caller:
    return Caller("willem", AuthMethod.TOKEN, frozenset({"*:write"}))


def nested(caller: Annotated[Caller, needs("rooms:read")]) -> str:
    return f"{caller.subject} asks"


router = APIRouter(tags=["rooms"])


@router.post("/rooms", status_code=201)
async def add(room: Room, caller: Annotated[Caller, needs("rooms:write")]) -> dict[str, str]:
    return {"name": room.name, "by": caller.subject}


@router.put("/rooms/{room}", dependencies=[needs("rooms:write")])
async def change(room: str, new: Room, request: Request) -> dict[str, str]:
    return {"name": new.name, "was": room, "path": request.url.path}


@router.get("/rooms/{room}")
async def get(
    room: str, request: Request, caller: Annotated[Caller, needs("rooms:read")]
) -> dict[str, str]:
    return {"name": room, "by": caller.subject, "path": request.url.path}


@router.get("/rooms")
async def find(who: Annotated[str, Depends(nested)], like: str = "") -> dict[str, str]:
    return {"like": like, "who": who}


def served(*, closed: bool = False, by: APIRouter = router) -> FastAPI:
    app = FastAPI()
    app.state.closed = closed

    @app.exception_handler(Problem)
    async def on_problem(_: Any, problem: Problem) -> Any:
        return problem.response()

    serve_routes(app, by)
    return app


def client(app: FastAPI, caller: Caller | None = None) -> httpx.AsyncClient:
    async def as_caller(scope: Any, receive: Any, send: Any) -> None:
        known = {ASKING: Asking(caller)} if caller is not None else {}
        await app({**scope, **known}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(as_caller), base_url="http://localhost")


async def test_a_route_is_given_its_caller_and_all_else_that_it_takes() -> None:
    async with client(served(), writer()) as http:
        added = await http.post("/rooms", json={"name": "red"})
        changed = await http.put("/rooms/red", json={"name": "blue"})
    async with client(served(), read_only()) as http:
        got = await http.get("/rooms/blue")
        found = await http.get("/rooms", params={"like": "b"})

    assert (added.status_code, added.json()) == (201, {"name": "red", "by": "willem"})
    assert changed.json() == {"name": "blue", "was": "red", "path": "/rooms/red"}
    assert got.json() == {"name": "blue", "by": "ria", "path": "/rooms/blue"}
    assert found.json() == {"like": "b", "who": "ria asks"}


async def test_without_a_gate_any_caller_is_let_in() -> None:
    async with client(served()) as http:
        added = await http.post("/rooms", json={"name": "red"})

    assert added.json() == {"name": "red", "by": ANYBODY.subject}


@pytest.mark.parametrize(("method", "path"), [("POST", "/rooms"), ("PUT", "/rooms/red")])
async def test_who_may_not_is_told_so_before_anything_of_the_body_is_read(
    method: str, path: str
) -> None:
    read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"{"

    async with client(served(), read_only()) as http:
        refused = await http.request(method, path, content=body())

    assert refused.status_code == 403
    assert "rooms:write" in refused.json()["detail"]
    assert not read


GUESTS = APIRouter()


class Guest(BaseModel):
    guest: Annotated[str, Personal]


@GUESTS.post("/own")
async def book(new: Guest, caller: Annotated[Caller, needs("rooms:write", own=True)]) -> str:
    return new.guest


@GUESTS.post("/for/{guest}")
async def book_for(
    guest: Annotated[str, Personal],
    caller: Annotated[Caller, needs("rooms:write", own=True)],
) -> str:
    return guest


@GUESTS.post("/present")
async def give(
    new: Guest,
    caller: Annotated[Caller, needs("rooms:write", own=True, names_others=True)],
) -> str:
    return new.guest


@pytest.mark.parametrize(
    ("path", "owner", "status"),
    [
        ("/own", "willem", 200),
        ("/own", "ria", 403),
        ("/own", None, 200),
        ("/for/{}", "willem", 200),
        ("/for/{}", "ria", 403),
        ("/present", "ria", 200),
    ],
)
async def test_who_acts_for_one_owner_names_nobody_else_unless_the_route_says_so(
    path: str, owner: str | None, status: int
) -> None:
    caller = replace(writer(), owner=owner)
    async with client(served(by=GUESTS), caller) as http:
        answer = await http.post(path.format("willem"), json={"guest": "willem"})

    assert answer.status_code == status


async def test_what_cannot_be_read_of_who_may_is_told_as_ever() -> None:
    async with client(served(), writer()) as http:
        answers = [await http.post("/rooms", json={}), await http.post("/rooms", content=b"{")]

    assert [answer.status_code for answer in answers] == [422, 422]


def test_the_document_is_what_fastapi_makes_of_the_same_routes() -> None:
    plain = FastAPI()
    plain.include_router(router)

    ours = served().openapi()
    for path, methods in plain.openapi()["paths"].items():
        for method, operation in methods.items():
            mine = ours["paths"][path][method]
            for status in ("401", "403"):
                del mine["responses"][status]
            assert mine == operation, f"{method} {path}"
    assert ours["components"]["securitySchemes"] == plain.openapi()["components"]["securitySchemes"]


def test_routes_still_say_what_they_need() -> None:
    ours = [route for route in served().routes if isinstance(route, AskingRoute)]

    assert [need and need.scope for need in map(need_of, ours)] == [
        "rooms:write",
        "rooms:write",
        "rooms:read",
        "rooms:read",
    ]
    assert all(isinstance(route, APIRoute) for route in router.routes)


@pytest.mark.parametrize("closed", [True, False])
async def test_a_router_within_the_router_is_served_only_where_all_clients_are(
    closed: bool,
) -> None:
    outer, inner = APIRouter(), APIRouter()

    @inner.get("/inner")
    async def within(caller: Annotated[Caller, needs("rooms:read")]) -> str:
        return caller.subject

    outer.include_router(inner)
    if closed and not all(isinstance(route, APIRoute) for route in outer.routes):
        with pytest.raises(SettingsError, match="add path operations to the service's own router"):
            served(closed=True, by=outer)
        return
    async with client(served(closed=closed, by=outer)) as http:
        assert (await http.get("/inner")).status_code == 200
