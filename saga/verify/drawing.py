"""A schedule as a sequence diagram for the terminal, and as a test to be pasted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from saga.verify.schedule import REMARKS, WORLD, Schedule, StepInWords

LANE_WIDTH = 12
_LANE = "│".center(LANE_WIDTH)


def diagram(schedule: Schedule) -> str:
    """Who takes what from whom, a line for each step, and below it what came of that."""
    return "\n".join(line.rstrip() for line in _diagram(schedule))


def _diagram(schedule: Schedule) -> Iterator[str]:
    yield f"{schedule.model.name}: {schedule.start}"
    yield ""
    yield from drawn(schedule.steps)
    yield ""
    yield f"broken: {schedule.violation.rule}: {schedule.subject}: {schedule.violation.detail}"
    for question in schedule.open:
        yield f"open: {question}: the participant that asked has died, or is slow to go on"
    for remark, meaning in REMARKS.items():
        if any(step.remark == remark for step in schedule.steps):
            yield f"{remark}: {meaning}"


def drawn(steps: Sequence[StepInWords]) -> Iterator[str]:
    """Steps as arrows between lanes, a line for each, and below it what came of that."""
    lanes = _lanes(steps)
    yield "    " + "".join(lane[: LANE_WIDTH - 1].center(LANE_WIDTH) for lane in lanes)
    for number, step in enumerate(steps, 1):
        remark = f"  ({step.remark})" if step.remark else ""
        yield f"{number:>3} {_arrow(lanes, step)}  {step.what}{remark}"
        for result in step.results:
            yield f"    {_LANE * len(lanes)}    {step.receiver}: {result}"


def _lanes(steps: Sequence[StepInWords]) -> Sequence[str]:
    """The world, then each participant, in the order of their first step."""
    return list(dict.fromkeys([WORLD, *(name for s in steps for name in (s.sender, s.receiver))]))


def _arrow(lanes: Sequence[str], step: StepInWords) -> str:
    """The lanes' lines, and an arrow from the sender's to the receiver's."""
    line = list(_LANE * len(lanes))
    start, end = (
        lanes.index(name) * LANE_WIDTH + _LANE.index("│") for name in (step.sender, step.receiver)
    )
    if start < end:
        line[start : end + 1] = "├" + "─" * (end - start - 2) + "▶│"
    elif end < start:
        line[end : start + 1] = "│◀" + "─" * (start - end - 2) + "┤"
    return "".join(line)


def as_test(schedule: Schedule) -> str:
    """A test that fails as long as the schedule breaks the rule."""
    module, _, expression = schedule.model.source.partition(":")
    name = expression.partition("(")[0]
    imports = f"from {module} import {name}\nfrom saga.verify import replay"
    if expression == name:  # a saga, not a function that makes a model
        imports = imports.replace("import replay", "import model_of, replay")
        expression = f"model_of({name}, {json.dumps(schedule.model.name)})"
    steps = [schedule.start, *(step.text for step in schedule.steps)]
    arguments = "".join(f"        {json.dumps(text, ensure_ascii=False)},\n" for text in steps)
    return f"""\
{imports}


def test_{schedule.violation.rule}() -> None:
    broken = replay(
        {expression},
{arguments}    )

    assert broken is None
"""
