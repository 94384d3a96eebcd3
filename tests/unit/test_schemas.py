"""The contracts as files: what the last release reads and wrote, and examples of every version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from typer.testing import CliRunner

import saga.discovery
from saga.choreography import Choreography, Participant, State
from saga.cli import app
from saga.envelope import wrap
from saga.message import Command, Decided, Event, Priority
from saga.runtime.kernel.step import react
from saga.schemas.export import schema_of
from saga.schemas.registry import RegistryError, problems, release
from saga.testing import NOW

# A change, from the release before it to the one after it.


class SendCrate(Command):
    type: ClassVar[str] = "crate.send"
    crate: str

    @property
    def subject(self) -> str:
        return self.crate


class _Crate(Event):
    crate: str

    @property
    def subject(self) -> str:
        return self.crate


class CrateSent(_Crate):
    type: ClassVar[str] = "crate.sent"
    version: ClassVar[int] = 2
    weight_grams: int


class CrateSentV1(_Crate):
    type: ClassVar[str] = "crate.sent"
    weight_kilograms: int

    def upcast(self) -> Event:
        return CrateSent(crate=self.crate, weight_grams=self.weight_kilograms * 1_000)


@dataclass(frozen=True, slots=True)
class Crate(State):
    weight_grams: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case CrateSent():
                return replace(self, weight_grams=message.weight_grams)
            case _:
                return self


def send_old(command: SendCrate, crate: Crate) -> CrateSentV1:
    return CrateSentV1(crate=command.crate, weight_kilograms=2)


def send_new(command: SendCrate, crate: Crate) -> CrateSent:
    return CrateSent(crate=command.crate, weight_grams=2_000)


def graph(function: Callable[..., Any]) -> Choreography:
    return Choreography([Participant("crate", function)])


def example(folder: Path, event: Event, name: str = "") -> Path:
    envelope = wrap(
        event, id="1", source="/services/crate", time=NOW, priority=Priority.NORMAL, sequence=1
    )
    file = folder / "examples" / event.type / f"{name or f'v{event.version}'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(envelope.to_bytes())
    return file


OLD = CrateSentV1(crate="c", weight_kilograms=2)
NEW = CrateSent(crate="c", weight_grams=2_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Contracts of which version 1 is released."""
    example(tmp_path, OLD)
    example(tmp_path, NEW)
    file = tmp_path / "released" / "crate.sent" / "v1.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(schema_of(CrateSentV1)))
    return tmp_path


def said(folder: Path, function: Callable[..., Any]) -> list[str]:
    return [*map(str, problems(folder, graph(function)))]


def test_a_new_version_is_read_by_a_release_before_it_is_published(folder: Path) -> None:
    (refused,) = said(folder, send_new)
    assert refused.startswith("crate.sent v2: is published, but the last release cannot read it;")

    assert said(folder, send_old) == []
    changed = release(folder, graph(send_old))
    assert [file.relative_to(folder).as_posix() for file in changed] == [
        "released/crate.sent/v1.json",
        "released/crate.sent/v2.json",
    ]

    assert said(folder, send_new) == []
    assert release(folder, graph(send_new)) == []


def test_an_old_version_is_published_while_the_state_evolves_by_the_newest() -> None:
    participant = Participant("crate", send_old)
    command = SendCrate(crate="c")
    cause = wrap(command, id="1", source="/shop", time=NOW, priority=Priority.NORMAL)

    decision = react(participant, cause, command, lambda state: state[0](state[1]), NOW)

    assert decision.own == Crate("c", sequence=1, weight_grams=2_000)
    assert decision.events[0].dataschema == "urn:order-saga:crate.sent:1"


def test_a_change_of_a_released_version_is_refused_in_the_direction_that_it_breaks(
    folder: Path,
) -> None:
    file = folder / "released" / "crate.sent" / "v1.json"
    schema = schema_of(CrateSentV1)
    schema["properties"]["weight_kilograms"] = {"type": "number"}
    schema["properties"]["colour"] = {"type": "string"}
    schema["required"].append("colour")
    file.write_text(json.dumps(schema))

    assert said(folder, send_old) == [
        "crate.sent v1: readers of the last release refuse it: "
        "colour: is not there, where it is required",
        "crate.sent v1: what the last release published is refused: "
        "weight_kilograms: is number, where integer is read",
    ]


def test_a_released_version_without_a_class_is_refused(folder: Path) -> None:
    shutil.copytree(folder / "released" / "crate.sent", folder / "released" / "crate.lost")
    schema = folder / "released" / "crate.sent" / "v7.json"
    schema.write_text(json.dumps(schema_of(CrateSent)))

    lost, seventh = said(folder, send_old)

    assert lost.startswith("crate.lost v1: was released, but has no class any more")
    assert seventh.startswith("crate.sent v7: was released, but has no class any more")


def test_every_version_needs_an_example(folder: Path) -> None:
    (folder / "examples" / "crate.sent" / "v1.json").unlink()

    (missing,) = said(folder, send_old)

    assert missing == (
        f"crate.sent v1: has no example; put a message of it in "
        f"{folder / 'examples' / 'crate.sent' / 'v1.json'}"
    )


class BasketSent(_Crate):
    type: ClassVar[str] = "basket.sent"
    version: ClassVar[int] = 2
    weight_grams: int


class BasketSentV1(_Crate):
    """Its upcaster makes something that its newest version does not allow."""

    type: ClassVar[str] = "basket.sent"
    weight_kilograms: int

    def upcast(self) -> Event:
        return BasketSent(crate=self.crate, weight_grams=self.weight_kilograms * 0.5)  # type: ignore[arg-type]  # on purpose


class SackSent(_Crate):
    type: ClassVar[str] = "sack.sent"
    version: ClassVar[int] = 2


class SackSentV1(_Crate):
    """Has no upcaster."""

    type: ClassVar[str] = "sack.sent"


def send_basket(command: SendCrate, crate: Crate) -> BasketSent:
    raise NotImplementedError


def send_sack(command: SendCrate, crate: Crate) -> SackSent:
    raise NotImplementedError


def test_an_upcaster_that_fails_on_a_stored_example_is_told(tmp_path: Path) -> None:
    example(tmp_path, BasketSentV1(crate="c", weight_kilograms=1))
    example(tmp_path, BasketSent(crate="c", weight_grams=1))

    (failed,) = said(tmp_path, send_basket)

    assert failed.startswith("basket.sent v1: the example v1.json cannot be upcast: ValidationErr")


def test_an_example_that_does_not_come_out_as_the_newest_version_is_told(tmp_path: Path) -> None:
    example(tmp_path, SackSentV1(crate="c"))
    example(tmp_path, SackSent(crate="c"))

    assert said(tmp_path, send_sack) == [
        "sack.sent v1: the example v1.json is read as version 1, but the newest is 2"
    ]


def test_an_example_that_is_none_of_its_version_is_told(folder: Path) -> None:
    example(folder, NEW, name="v1-heavy")
    spoiled = example(folder, OLD, name="v1-spoiled")
    spoiled.write_text(spoiled.read_text().replace(":2}", ':"two"}'))

    heavy, spoilt = said(folder, send_old)

    assert heavy.startswith("crate.sent v1: the example v1-heavy.json is of 'urn:order-saga:crate.")
    assert "v1-spoiled.json cannot be read: data.weight_kilograms" in spoilt


class OrderCrate(SendCrate):
    type: ClassVar[str] = "crate.order"
    intake: ClassVar[bool] = True
    weight_grams: int


def order(command: OrderCrate, crate: Crate) -> CrateSentV1:
    raise NotImplementedError


def test_what_others_may_have_left_out_of_a_command_cannot_be_required_of_them(
    folder: Path,
) -> None:
    command = OrderCrate(crate="c", weight_grams=1)
    envelope = wrap(command, id="1", source="/shop", time=NOW, priority=Priority.NORMAL)
    for part, text in (
        ("examples", envelope.to_bytes().decode()),
        ("released", json.dumps(with_a_default(schema_of(OrderCrate)))),
    ):
        file = folder / part / "crate.order" / "v1.json"
        file.parent.mkdir(parents=True)
        file.write_text(text)

    assert said(folder, order) == [
        "crate.order v1: what the last release published is refused: "
        "weight_grams: may be left out, where it is required"
    ]


def with_a_default(schema: dict[str, Any]) -> dict[str, Any]:
    schema["properties"]["weight_grams"]["default"] = 1
    schema["required"].remove("weight_grams")
    return schema


def test_a_contract_file_that_is_none_is_named(folder: Path) -> None:
    file = folder / "released" / "crate.sent" / "v1.json"
    for text in ("{", "[]"):
        file.write_text(text)
        with pytest.raises(RegistryError, match=r"v1\.json"):
            problems(folder, graph(send_old))


def test_without_a_release_nothing_is_said_to_have_been_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crates = Choreography([Participant("crate", send_old)])
    monkeypatch.setattr(saga.discovery, "choreography", lambda: crates)
    command = ["schemas", "check", str(folder)]
    compared = CliRunner().invoke(app, command)
    assert "readers of the last release read what is published" in compared.stderr
    shutil.rmtree(folder / "released")

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0
    assert "nothing was compared" in result.stderr
    assert "readers of the last release" not in result.stderr
    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.stdout)["compared_with_a_release"] is False


def test_saga_schemas_refuses_releases_and_exports(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["schemas", *arguments])
        return result.exit_code, result.stdout

    def use(function: Callable[..., Any]) -> None:
        crates = Choreography([Participant("crate", function)])
        monkeypatch.setattr(saga.discovery, "choreography", lambda: crates)

    use(send_new)
    status, text = run("check", str(folder), "--json")
    assert status == 1
    assert [p["version"] for p in json.loads(text)["problems"]] == [2]
    assert run("release", str(folder))[0] == 1

    use(send_old)
    assert run("check", str(folder)) == (0, "")
    assert run("release", str(folder))[0] == 0
    assert (folder / "released" / "crate.sent" / "v2.json").exists()

    exported = tmp_path / "exported"
    status, text = run("export", str(exported), "--json")
    assert status == 0
    assert json.loads(text)["files"] == ["crate.sent/v1.json", "crate.sent/v2.json"]
    written = json.loads((exported / "crate.sent" / "v2.json").read_text())
    assert written["properties"]["weight_grams"] == {"type": "integer"}
    assert run("check", str(tmp_path / "nowhere"))[0] == 2
