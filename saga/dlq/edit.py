"""A letter corrected by hand: a copy under a new id goes to the origin queue, in its place."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from saga.choreography import Choreography, Participant
from saga.dlq.desk import DeadLetterDesk, ReadingDesk
from saga.dlq.examine import decoder_of
from saga.dlq.letters import DeadLetter, document_of
from saga.dlq.replay import alone
from saga.dlq.states import LetterState
from saga.envelope import Undecodable, derived_id
from saga.errors import InputError, NotFound
from saga.message import Event
from saga.personal.marks import personal_values
from saga.personal.seal import PREFIX, sealed
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.permissions import REPLAY
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import HISTORY_STREAM, reads
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.runtime.tasks import in_thread
from saga.wording import counted

ENVELOPE: Final = (
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "correlationid",
    "causationid",
    "priority",
    "sequence",
    "traceparent",
    "data",
)


@dataclass(frozen=True, slots=True)
class Edited:
    """What was sent in place of a letter."""

    letter: int
    copy_id: str
    queue: str
    diff: str
    recorded: bool
    """Whether it is in the history: events are, commands are not."""

    def to_json(self) -> dict[str, Any]:
        return {
            "letter": self.letter,
            "copy": self.copy_id,
            "queue": self.queue,
            "diff": self.diff,
            "recorded": self.recorded,
        }


def text_of(body: bytes) -> str:
    """A body as an operator edits it."""
    document = document_of(body)
    if document is None:
        return body.decode(errors="replace")
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def with_values(text: str, settings: Sequence[str]) -> str:
    """The text with `path=value` settings made, such as `data.lines.0.quantity=2`.

    A path that begins with no attribute of the envelope is one within its `data`. A value is JSON,
    or text if it is not that. Raises `InputError`.
    """
    document = document_of(text.encode())
    if document is None:
        raise InputError("the payload is no JSON object: --set finds nothing in it; use --file")
    for setting in settings:
        path, equals, value = setting.partition("=")
        steps = path.split(".")
        if not equals or not all(steps):
            raise InputError(f"--set takes path=value, such as data.nights=3: {setting!r}")
        if steps[0] not in ENVELOPE:
            steps.insert(0, "data")
        _set(document, steps, _value(value), setting)
    return text_of(json.dumps(document).encode())


@dataclass(frozen=True, slots=True)
class Correction:
    """The copy that an edit of a letter makes, before it is sent."""

    copy_id: str
    body: bytes
    diff: str
    recorded: bool
    """Whether it goes to the history as well: events do, commands do not."""


def editable(desk: ReadingDesk, number: int) -> DeadLetter:
    """A letter that can be edited as things are. Raises `InputError` for any other."""
    letter = desk.store.get(number)
    _must_be_dead(number, letter.state)
    _taker(desk.graph, letter)
    return letter


def corrected(graph: Choreography, letter: DeadLetter, after: str) -> Correction | None:
    """What is sent in place of a letter whose payload is to be `after`; None if that is as before.
    Raises `InputError` for what its participant cannot take."""
    before = text_of(letter.body)
    if after == before:
        return None
    body, copy_id = _copy(letter, after)
    participant = _taker(graph, letter)
    try:
        envelope = decoder_of(participant).decode(body)
    except Undecodable as error:
        raise InputError(
            f"{participant.name} cannot take the edited letter {letter.number}: {error}"
        ) from error
    if PREFIX in before and not all(map(sealed, personal_values(envelope.data))):
        raise InputError(
            f"the edited letter {letter.number} names a person in clear, and the history keeps it "
            f"for good: leave the sealed text as it is, or take one from another message"
        )
    sent = any(command.type == envelope.type for command in graph.commands)
    recorded = sent or isinstance(envelope.data, Event)
    return Correction(copy_id, body, _diff(before, after), recorded)


def _taker(graph: Choreography, letter: DeadLetter) -> Participant:
    """The participant that the copy goes to."""
    found = next((p for p in graph.participants if p.name == letter.participant), None)
    if found is None or not reads(found, letter.queue):
        raise InputError(
            f"letter {letter.number} is from {letter.queue}, which is no queue of "
            f"{letter.participant}"
        )
    return found


async def edit(
    desk: DeadLetterDesk, number: int, change: Callable[[str], str | None], *, why: str = ""
) -> Edited | None:
    """Change a dead letter's payload, and send the copy; None if `change` changed nothing.

    `change` gets the payload as text and returns it corrected. The copy has an id of its own, which
    follows from what is in it, and the original as its causation. It goes to the history and to the
    origin queue. Raises `InputError`, and nothing has changed then.
    """
    letter = await in_thread(editable, desk, number)
    # An operator takes longer than a heartbeat.
    after = await asyncio.to_thread(change, text_of(letter.body))
    made = None if after is None else corrected(desk.graph, letter, after)
    if made is None:
        return None
    copy_id, body, diff, recorded = made.copy_id, made.body, made.diff, made.recorded
    publisher = BrokerPublisher(desk.deployment.amqp_url_of(REPLAY), "saga dlq edit")
    async with alone(desk.store.path):  # No replay may send it meanwhile, nor another edit.
        try:
            await publisher.open()
            # It may have been replayed or discarded while the editor was open.
            begin = desk.store.begin_edit
            _must_be_dead(number, await in_thread(begin, number, copy_id, diff, body, why))
            if recorded:
                await publisher.publish("", posting_of(body, HISTORY_STREAM))
            await publisher.publish("", posting_of(body, letter.queue))
        finally:
            await publisher.close()
        await in_thread(desk.store.end_edit, number, copy_id, why)
    return Edited(number, copy_id, letter.queue, diff, recorded)


def _must_be_dead(number: int, state: LetterState | None) -> None:
    if state is not LetterState.DEAD:
        raise NotFound(f"letter {number} is {state or 'gone'}; only a dead one can be edited")


def _copy(letter: DeadLetter, text: str) -> tuple[bytes, str]:
    """The corrected copy and its id."""
    try:
        document = from_json(text)
    except ValueError as error:
        raise InputError(f"the edited letter {letter.number} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"the edited letter {letter.number} is JSON, but not an object")
    content = json.dumps(document, sort_keys=True).encode()
    copy_id = derived_id(letter.key, f"edit/{hashlib.sha256(content).hexdigest()}")
    document |= {
        "id": copy_id,
        "causationid": letter.key,
        "source": EDITOR_SOURCE,
        ADDRESSEE: letter.participant,
    }
    # It is no event of the sender's own sequence.
    document.pop("sequence", None)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), copy_id


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "original", "edited", lineterm="", n=1
    )
    return "\n".join(lines)


def _value(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return text


def _set(document: dict[str, Any], steps: Sequence[str], value: Any, setting: str) -> None:
    target: Any = document
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(target, list):
            if not step.isdecimal() or int(step) >= len(target):
                raise InputError(
                    f"--set {setting!r}: {'.'.join(steps[:depth])} has "
                    f"{counted(len(target), 'element')}, "
                    f"none of them {step!r}"
                )
            key: Any = int(step)
        elif isinstance(target, dict):
            key = step
            if not last and step not in target:
                raise InputError(f"--set {setting!r}: there is no {'.'.join(steps[: depth + 1])}")
        else:
            raise InputError(f"--set {setting!r}: {'.'.join(steps[:depth])} has nothing within it")
        if last:
            target[key] = value
        else:
            target = target[key]
