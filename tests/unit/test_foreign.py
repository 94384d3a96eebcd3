"""What follows from the signatures of a participant in another language, and what it owes."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from saga.archive.store import Fact
from saga.bootstrap import bootstrap
from saga.choreography import Choreography, ChoreographyError, Participant
from saga.cli import app
from saga.deployment import Deployment
from saga.discovery import services
from saga.envelope import Attributes, Envelope, derived_id, source_of, wrap
from saga.errors import InputError
from saga.foreign import ANSWERS_MAX, DUTIES, PAGE, Foreign, ForeignState
from saga.generate.containers import CLUSTER, COMPOSE, container_files
from saga.generate.files import generated
from saga.graph.asyncapi import asyncapi
from saga.graph.canvas import canvas
from saga.graph.check import check
from saga.graph.flow import Flow
from saga.graph.listing import listing
from saga.graph.svg import svg
from saga.history.debts import debts_of
from saga.history.sources import participant_named
from saga.history.story import tell
from saga.limits import BODY_MAX_BYTES, TEXT_MAX_BYTES
from saga.message import Answer, Command, Event, EventTypes, Intent, Priority, Role
from saga.reconcile import history_for, rule_names
from saga.reconcile.conservation import unpublished
from saga.reconcile.facts import MessageFates
from saga.retry import RUNGS_MS
from saga.runtime.messaging.dead_letters import (
    ATTEMPTS,
    ERROR,
    ERROR_MAX_CHARACTERS,
    ERROR_TYPE,
    FIRST_FAILED_AT,
    LAST_FAILED_AT,
    ORIGIN_EXCHANGE,
    ORIGIN_QUEUE,
    ORIGIN_ROUTING_KEY,
    REASON,
)
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    topology_of,
    wait_queue,
)
from saga.runtime.settings import INBOX_DAYS
from saga.simulation import Simulation
from saga.verify import VerifyError, model_of, replay, uncovered, verify
from tests import parcels
from tests.parcels import (
    GRAPH,
    LABEL,
    NOW,
    SAGA,
    SHOP,
    LabelPrinted,
    LabelRefused,
    LabelVoided,
    ParcelPacked,
    VoidLabel,
    print_label,
)

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / PAGE).read_text()
PACKED = ParcelPacked(parcel="a", grams=500)
SEEDS = 12


def with_label(label: Participant) -> Choreography:
    return replace(SAGA, participants=(SHOP, label)).choreography


# --- what follows from its signatures -----------------------------------------------------------


def test_it_has_queues_like_any_other() -> None:
    topology = topology_of(GRAPH)

    assert {queue.name for queue in topology.queues if queue.name.startswith("label.")} == {
        *("label.high", "label.normal", "label.intake.high", "label.intake.normal", "label.dlq")
    }
    bound = {(b.key, b.queue) for b in topology.bindings if b.queue.startswith("label.")}
    assert ("parcel.packed.high", "label.high") in bound
    assert ("label.void.normal", "label.intake.normal") in bound


def test_its_queues_stay_undivided_where_those_of_others_have_partitions() -> None:
    topology = topology_of(GRAPH, 3)

    assert topology.hashes
    assert not [name for name in topology.hashes if name.startswith("label.")]
    assert {binding.queue for binding in topology.bindings if binding.hashed} == {*topology.hashes}
    bound = {b.queue for b in topology.bindings if not b.hashed and b.exchange == EVENTS_EXCHANGE}
    assert {"label.high", "label.intake.normal"} <= bound


def test_its_user_may_do_what_its_signatures_say_and_no_more() -> None:
    (user,) = (user for user in users_of(GRAPH) if user.name == "label")
    (events,) = (topic for topic in user.topics if topic.exchange == "saga.events")

    assert user.configure == "^$"
    assert user.read == r"^(label\.high|label\.normal|label\.intake\.high|label\.intake\.normal)$"
    assert events.write == "^({})$".format(
        "|".join(
            rf"label\.{what}\.{priority}"
            for what in ("printed", "refused", "voided")
            for priority in ("high", "normal")
        )
    )


def test_it_is_in_the_contract_and_on_the_map() -> None:
    document = asyncapi(Flow(GRAPH), "parcels")
    assert document["operations"]["label.print_label"]["x-publishes"] == [
        *("label.printed", "label.refused")
    ]
    assert "label.publish.label.voided" in document["operations"]
    (label,) = (p for p in listing(Flow(GRAPH))["participants"] if p["name"] == "label")
    assert label["foreign"]
    assert label["states"] == []
    assert "label (another language)" in svg(Flow(GRAPH))


def test_its_page_says_what_names_its_duties_and_nothing_of_a_database() -> None:
    page = canvas(Flow(GRAPH), LABEL)

    assert "A participant in another language" in page
    assert "`saga check` names" in page
    assert "`label.printed` v1" in page
    assert "## Keeps" not in page
    assert "## Serves over HTTP" not in page


def test_a_sound_saga_with_it_has_no_findings() -> None:
    assert check(GRAPH, definitions(topology_of(GRAPH), users_of(GRAPH))) == []


def test_check_names_the_page_and_what_has_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAGA", "tests.parcels:SAGA")
    asked_for = tmp_path / "definitions.json"
    exported = CliRunner().invoke(app, ["topology", "export"])
    asked_for.write_text(exported.stdout)

    done = CliRunner().invoke(app, ["check", "--definitions", str(asked_for)])

    assert done.exit_code == 0
    told = " ".join(done.output.split())
    assert f"in another language: label; to be kept there (the engine's {PAGE}):" in told
    for duty in DUTIES:
        assert duty in told
    assert (ROOT / PAGE).is_file()


def test_it_alone_stops_no_cycle() -> None:
    def again(event: LabelRefused) -> LabelRefused | None: ...

    graph = Choreography([Foreign("label", again)])

    assert "cycle" in {finding.rule for finding in check(graph, {})}


def test_it_is_none_of_the_services_that_are_started_and_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGA", "tests.parcels:SAGA")

    assert {service.name for service in services().values()} == {"shop", "history"}
    with pytest.raises(InputError, match="label is in another language"):
        participant_named(GRAPH, "label")


def test_its_container_is_left_to_its_authors_and_finds_its_address(tmp_path: Path) -> None:
    shutil.copy(ROOT / COMPOSE, tmp_path / COMPOSE)
    files = container_files(tmp_path, GRAPH, {})
    assert "\n  label:\n" not in files[COMPOSE]
    assert "- label-secrets:/secrets/label\n" in files[COMPOSE]
    assert "\n  label-secrets:\n" in files[COMPOSE]
    scraped = generated(ROOT, GRAPH)[ROOT / "monitoring" / "prometheus.yml"]
    assert "names: [history, shop]" in scraped

    own = "  label:\n    image: label\n\n"
    edited = files[COMPOSE].replace("  shop:\n", f"{own}  shop:\n")
    (tmp_path / COMPOSE).write_text(edited)

    assert container_files(tmp_path, GRAPH, {})[COMPOSE] == edited


def test_who_asks_a_sandbox_in_a_file_has_a_volume_for_it(tmp_path: Path) -> None:
    for name in (COMPOSE, CLUSTER):
        shutil.copy(ROOT / name, tmp_path / name)
    for asks in (True, False):
        for text in container_files(tmp_path, GRAPH, {}, {"shop"} if asks else ()).values():
            assert ('"outside:/data"]' in text) is asks


def test_a_project_with_it_gets_every_file_and_an_example_of_what_it_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGA", "tests.parcels:SAGA")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "parcels"\nversion = "0"\n')

    done = CliRunner().invoke(app, ["generate", "--root", str(tmp_path)])
    again = CliRunner().invoke(app, ["generate", "--check", "--root", str(tmp_path)])

    assert (done.exit_code, again.exit_code) == (0, 0), done.output + again.output
    example = tmp_path / "contracts" / "examples" / "label.printed" / "v1.json"
    assert isinstance(GRAPH.decoder.decode(example.read_bytes()).data, LabelPrinted)


def test_it_has_an_address_of_the_broker_and_of_no_database(tmp_path: Path) -> None:
    bootstrap(tmp_path, GRAPH, brokers=["rabbitmq"], database_host="postgres")

    assert [file.name for file in (tmp_path / "label").iterdir()] == ["amqp_url"]
    deployment = Deployment.load(tmp_path / "operator")
    assert {*deployment.database_urls} == {*deployment.http_urls} == {"shop", "history"}
    assert "label" in deployment.amqp_urls


# --- what its page says -------------------------------------------------------------------------


def test_the_pages_declaration_is_that_of_the_labels() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {**vars(parcels), "__name__": "page"}

    exec(block, names)  # noqa: S102 - a page of our own

    declared = names["LABEL"]
    assert [(r.name, r.consumes, r.returns) for r in declared.reactions] == [
        (r.name, r.consumes, r.returns) for r in LABEL.reactions
    ]
    assert declared.retry_of(ParcelPacked) == LABEL.retry_of(ParcelPacked)


def test_the_page_names_every_attribute_header_delay_and_limit() -> None:
    rows = set(re.findall(r"`([\w.-]+)`", TEXT))

    assert {*Attributes.model_fields, "data"} <= rows
    assert {REASON, ERROR_TYPE, ERROR, ATTEMPTS, FIRST_FAILED_AT, LAST_FAILED_AT} <= rows
    assert {ORIGIN_QUEUE, ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY} <= rows
    assert all(str(rung) in TEXT for rung in RUNGS_MS)
    for limit in (BODY_MAX_BYTES, TEXT_MAX_BYTES, ERROR_MAX_CHARACTERS, INBOX_DAYS):
        assert f"{limit:,g}" in TEXT
    (user,) = (user for user in users_of(GRAPH) if user.name == "label")
    exchanges = {EVENTS_EXCHANGE, DEAD_EXCHANGE, *map(wait_queue, RUNGS_MS)}
    assert {topic.exchange for topic in user.topics} == exchanges
    assert {EVENTS_EXCHANGE, DEAD_EXCHANGE} <= rows


# --- what it may answer -------------------------------------------------------------------------


def test_it_may_answer_anything_that_its_signature_allows() -> None:
    printed = LabelPrinted(parcel="a", number="L-1")

    assert [*LABEL.answers(PACKED)] == [(), (printed,), (LabelRefused(parcel="a"),)]


def test_what_it_has_undone_it_does_no_more() -> None:
    answers = [*LABEL.answers(PACKED, {LabelVoided.type})]

    assert answers == [(), (LabelRefused(parcel="a"),)]


def test_several_in_any_number_are_tried_in_every_choice() -> None:
    def many(event: ParcelPacked) -> tuple[LabelRefused | LabelVoided, ...]:
        raise NotImplementedError

    refused, voided = LabelRefused(parcel="a"), LabelVoided(parcel="a")
    assert [*Foreign("label", many).answers(PACKED)] == [
        *((), (refused,), (voided,), (refused, voided))
    ]


def test_a_message_that_cannot_be_made_up_takes_a_sample() -> None:
    with pytest.raises(ChoreographyError, match=r"does not tell its number; say by `samples="):
        [*Foreign("label", print_label).answers(PACKED)]


def test_no_more_answers_are_tried_than_there_is_time_for() -> None:
    def make(cause: Any) -> list[LabelPrinted]:
        return [LabelPrinted(parcel=cause.subject, number=str(n)) for n in range(ANSWERS_MAX)]

    label = Foreign("label", print_label, samples={LabelPrinted: make})
    with pytest.raises(ChoreographyError, match="too many to try; give fewer samples"):
        [*label.answers(PACKED)]


def test_each_answer_is_tried_at_any_time_and_once() -> None:
    report = verify(model_of(SAGA, "one parcel"))

    assert report.ok
    assert list(uncovered(SAGA, report.reacted, report.published, report.asked)) == []


def test_a_shop_that_is_wrong_about_it_is_found_with_the_answer_that_breaks_it() -> None:
    def no_void(command: VoidLabel) -> LabelVoided | None: ...

    label = Foreign(
        "label",
        print_label,
        no_void,
        samples={LabelPrinted: lambda cause: [LabelPrinted(parcel=cause.subject, number="1")]},
    )
    report = verify(model_of(replace(SAGA, participants=(SHOP, label)), "one parcel"))

    assert report.schedule is not None
    assert report.schedule.violation.rule == "effect_standing"
    steps = [step.text for step in report.schedule.steps]
    assert any(step.startswith("label takes label.void a: nothing") for step in steps)
    assert replay(report.schedule.model, report.schedule.start, *steps) is not None


def test_the_simulation_plays_it_on_the_real_kernel() -> None:
    simulation = Simulation(saga=SAGA)
    try:
        runs = [simulation.run(seed) for seed in range(SEEDS)]
        again = simulation.run(0)
    finally:
        simulation.close()

    assert [run.violations for run in runs] == [()] * SEEDS
    assert any("label.printed" in line for run in runs for line in run.trace)
    assert again.digest == runs[0].digest


def test_what_it_would_make_of_a_command_at_once_is_not_guessed() -> None:
    scenario = replace(SAGA.scenarios[0], starts={"": [("label", VoidLabel(parcel="a"))]})

    with pytest.raises(VerifyError, match="name it under `sent`"):
        verify(model_of(replace(SAGA, scenarios=(scenario,)), scenario.name))


def test_a_missing_sample_is_told_where_it_is_missed() -> None:
    label = Foreign("label", *(reaction.function for reaction in LABEL.reactions))

    with pytest.raises(VerifyError, match="cannot make up a LabelPrinted"):
        verify(model_of(replace(SAGA, participants=(SHOP, label)), "one parcel"))


def test_its_state_is_none_that_an_invariant_has_to_read() -> None:
    assert not [line for line in SAGA.unwatched() if ForeignState.__name__ in line]
    assert list(SAGA.elsewhere()) == [
        "label is in another language: its database cannot be read here"
    ]
    assert "not_ended" in rule_names(SAGA)


# --- what it owes -------------------------------------------------------------------------------


def envelope(message: Event | Command, source: str, sequence: int) -> Envelope[Any]:
    return wrap(
        message,
        id=derived_id(message.type, source),
        source=source_of(source),
        time=NOW,
        priority=Priority.NORMAL,
        sequence=sequence,
    )


@pytest.mark.parametrize(
    ("message", "owed"),
    [(PACKED, []), (VoidLabel(parcel="a"), [("label", ("label.voided",))])],
    ids=["may say nothing", "has to answer"],
)
def test_it_owes_an_answer_where_its_signature_leaves_it_none(
    message: Event | Command, owed: list[tuple[str, tuple[str, ...]]], monkeypatch: Any
) -> None:
    monkeypatch.setenv("SAGA", "tests.parcels:SAGA")
    event = envelope(message, "shop", 1)
    facts = [Fact(event, event.to_bytes())]

    debts = debts_of(GRAPH, tell(GRAPH, "a", facts), NOW)

    assert [(debt.participant, debt.answers) for debt in debts if debt.event] == owed


def test_a_hole_in_its_sequence_is_an_event_that_is_missing() -> None:
    history = history_for(SAGA)
    for number, message in ((1, LabelRefused(parcel="a")), (3, LabelVoided(parcel="a"))):
        event = envelope(message, "label", number)
        history.take(event.routing_key, event.id, event.time, event.to_bytes())

    deliveries = MessageFates(
        started_at=NOW,
        grace_seconds=0.0,
        history=history,
        sequences={"label": history.last_numbers("label")},
    )

    ((subject, detail),) = unpublished(deliveries)
    assert subject == "a"
    assert "number 2 is neither" in detail


# --- what cannot be declared --------------------------------------------------------------------


class Asking(Intent):
    pass


class Answered(Answer):
    parcel: str


class Within(Command):
    type: ClassVar[str] = "label.within"


class Own(Event):
    type: ClassVar[str] = "label.own"
    private: ClassVar[bool] = True
    role: ClassVar[Role] = Role.STEP
    undoes: ClassVar[EventTypes] = ()


def keeps_a_state(event: ParcelPacked, state: ForeignState) -> LabelRefused: ...  # type: ignore[empty-body]
def asks(event: ParcelPacked) -> Asking: ...  # type: ignore[empty-body]
def takes_an_answer(answer: Answered) -> LabelRefused: ...  # type: ignore[empty-body]
def takes_one_from_within(command: Within) -> LabelRefused: ...  # type: ignore[empty-body]
def keeps_a_fact(event: ParcelPacked) -> Own: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (keeps_a_state, "takes 'state' beside its message"),
        (asks, "whom a participant in another language asks is its own matter"),
        (takes_an_answer, "whom a participant in another language asks is its own matter"),
        (takes_one_from_within, "which comes over no queue; let it have `intake = True`"),
        (keeps_a_fact, "which is private"),
    ],
)
def test_what_only_a_participant_here_can_have_is_refused(function: Any, why: str) -> None:
    with pytest.raises(ChoreographyError, match=why):
        Foreign("label", function)


def test_samples_are_of_what_it_may_publish() -> None:
    with pytest.raises(ChoreographyError, match="samples of VoidLabel, which none"):
        Foreign("label", print_label, samples={VoidLabel: lambda _: []})


def test_one_that_only_listens_is_a_participant_as_well() -> None:
    def note(event: ParcelPacked) -> None: ...

    counter = Foreign("counter", note)

    assert [*counter.answers(PACKED)] == [()]
    graph = Choreography((SHOP, LABEL, counter))
    assert check(graph, definitions(topology_of(graph), users_of(graph))) == []
