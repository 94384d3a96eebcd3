"""What came of a saga's scenarios, as a document: told of as it grows, and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, Field

from saga.branches import Branch
from saga.declaration import Saga, Scenario
from saga.document import SavedDocument
from saga.limits import Moment
from saga.runtime.kernel.tables import utc_now
from saga.verify import (
    ASKED_MAX,
    STATES_MAX,
    ModelReport,
    model_of,
    uncovered,
    verify,
    verify_elsewhere,
)
from saga.verify.coverage import branches_taken
from saga.verify.drawing import as_test
from saga.verify.schedule import Schedule
from saga.verify.search import STATE_BYTES
from saga.verify.sources import sources
from saga.version import engine_version
from saga.wording import counted

Transition = tuple[str, str | None, str]
"""A participant, the type of what it took, and of what it published because of it. None stands for
commands from outside and what is due."""


class ProofStep(BaseModel):
    """A step of a counterexample."""

    sender: str
    receiver: str
    what: str
    remark: str
    results: list[str]


class ProofCounterexample(BaseModel):
    """A shortest way to break a rule, and a test that fails as long as that is so."""

    rule: str
    subject: str
    detail: str
    start: str
    steps: list[ProofStep]
    open: list[str]
    test: str


class ProofScenario(BaseModel):
    """What came of one scenario."""

    name: str
    states: int
    states_at_rest: int
    transitions: int
    repetitions: int
    depth: int
    seconds: float
    ends: list[tuple[str, str]]
    whole: bool = True
    """Whether that is all, rather than what fitted into memory."""
    violation: ProofCounterexample | None


class Proof(SavedDocument):
    """What came of all scenarios that are done. While `finished_at` is None, it is under way at the
    `current` one."""

    file_name = "proof.json"
    written_by = "saga verify"

    finished_at: Moment | None = None
    current: str = ""
    current_states: int = 0
    current_depth: int = 0
    names: list[str]
    """Of all scenarios."""
    scenarios: list[ProofScenario] = Field(default_factory=list)
    answered: list[Transition] = Field(default_factory=list)
    took: list[tuple[Branch, int]] = Field(default_factory=list)
    """What reactions decided on, each with the number of different calls that did."""
    not_covered: list[str] = Field(default_factory=list)
    impure: list[str] = Field(default_factory=list)
    """Reactions that do not depend on their arguments alone: what came out otherwise when their
    calls were made again."""
    remarks: list[str] = Field(default_factory=list)
    code: dict[str, str] = Field(default_factory=dict)
    """What it was made with; see `saga.verify.sources`. Empty in those of before that was noted."""

    @property
    def broken(self) -> bool:
        """Whether a rule can be broken, whatever else was not looked at."""
        return bool(self.impure) or any(scenario.violation for scenario in self.scenarios)

    @property
    def ok(self) -> bool:
        """Whether all was looked at, and nothing is broken."""
        return self.finished_at is not None and not (self.broken or self.not_covered)


@dataclass(frozen=True, slots=True)
class Proven:
    """A proof, and the reports that it was made of."""

    proof: Proof
    reports: Sequence[ModelReport]


def prove(
    saga: Saga,
    tell: Callable[[Proof], None],
    *,
    scenarios: Sequence[Scenario] | None = None,
    source: str = "",
    states_max: int = STATES_MAX,
    clock: Callable[[], datetime] = utc_now,
) -> Proven:
    """Explore all scenarios; `tell` is called with what is known, again and again. Raises
    `VerifyError`.

    With only some of the `scenarios`, what these do not come to is not said to be not covered:
    another one may.
    """
    chosen = saga.scenarios if scenarios is None else scenarios
    proof = Proof(
        saga=saga.name,
        version=engine_version(),
        began_at=clock(),
        names=[scenario.name for scenario in chosen],
    )
    reports: list[ModelReport] = []
    for scenario in chosen:

        def progress(depth: int, states: int, name: str = scenario.name) -> None:
            now = {"current": name, "current_states": states, "current_depth": depth}
            tell(proof.model_copy(update=now))

        progress(0, 0)
        report = verify(
            model_of(saga, scenario.name, source=source), states_max=states_max, progress=progress
        )
        reports.append(report)
        proof.scenarios.append(_scenario(report))
    reports, unseen = verify_elsewhere(reports)
    proof.impure = list(dict.fromkeys(v.detail for report in reports for v in report.impure))
    proof.answered = sorted(
        {each for report in reports for each in report.answered}, key=lambda each: str(each)
    )
    beyond = (
        not_covered(saga, reports)
        if scenarios is None
        else (*unfinished(reports), *saga.unwatched())
    )
    proof.not_covered = [*beyond, *unseen]
    proof.took = sorted(branches_taken(calls for r in reports for calls in r.calls).items())
    proof.remarks = list(remarks(reports))
    proof.code = sources(saga)
    proof.finished_at = clock()
    tell(proof)
    return Proven(proof, reports)


def not_covered(saga: Saga, reports: Sequence[ModelReport]) -> Iterator[str]:
    """What none of these models, of all scenarios, has looked at: lines for people."""
    yield from unfinished(reports)
    yield from uncovered(
        saga,
        {step for report in reports for step in report.reacted},
        {type_ for report in reports for type_ in report.published},
        {question for report in reports for question in report.asked},
    )


def unfinished(reports: Sequence[ModelReport]) -> Iterator[str]:
    """The models that were not explored to the end, and how far that came: lines for people."""
    for report in reports:
        seen = report.exploration
        if not seen.whole:
            yield (
                f"{report.model.name} was not explored to its end: all of up to "
                f"{counted(seen.depth, 'step')} was tried, {counted(seen.states, 'state')}; "
                f"allow more with --max-states (some "
                f"{STATE_BYTES} bytes each), or look for a reaction that says something new each "
                f"time"
            )


def remarks(reports: Sequence[ModelReport]) -> Iterator[str]:
    """What the models leave out by their nature: no mistake of the saga."""
    for outside in sorted({name for report in reports for name in report.cut_short}):
        yield (
            f"a question that {outside} refuses again and again was followed up to {ASKED_MAX} "
            f"refusals only"
        )


def _scenario(report: ModelReport) -> ProofScenario:
    seen = report.exploration
    return ProofScenario(
        name=report.model.name,
        states=seen.states,
        states_at_rest=seen.states_at_rest,
        transitions=seen.transitions,
        repetitions=seen.repetitions,
        depth=seen.depth,
        seconds=seen.seconds,
        ends=sorted(report.ends),
        whole=seen.whole,
        violation=_counterexample(report.schedule) if report.schedule is not None else None,
    )


def _counterexample(schedule: Schedule) -> ProofCounterexample:
    return ProofCounterexample(
        rule=schedule.violation.rule,
        subject=schedule.subject,
        detail=schedule.violation.detail,
        start=schedule.start,
        steps=[
            ProofStep(
                sender=step.sender,
                receiver=step.receiver,
                what=step.what,
                remark=step.remark,
                results=list(step.results),
            )
            for step in schedule.steps
        ],
        open=list(schedule.open),
        test=as_test(schedule),
    )
