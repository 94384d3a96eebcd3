"""Subjects that are alike: states that differ only in which of them is which are one.

Two sagas of the same things are interchangeable: whatever can happen to one can happen to the
other. That is never assumed. Swapping them is learned from what the reactions do: for each step
that is tried, the step with the subjects swapped is tried as well, and what comes of the two says
what becomes of a field's value, and of a fact, when they are swapped. Where that is no one-to-one
mapping, a rule or a reaction tells the subjects apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from math import factorial

from saga.message import Message
from saga.runtime.kernel.step import Firing
from saga.verify.facts import (
    FIELD,
    FIELD_BITS,
    Action,
    ActionOutcome,
    Answered,
    Asked,
    Fact,
    Handled,
    Sent,
)
from saga.verify.machine import Broken, Machine

_CHUNK_BITS = 16
_CHUNK = (1 << _CHUNK_BITS) - 1


class NotInterchangeable(Exception):
    """Subjects about which the same was sent are not interchangeable."""


class Symmetry:
    """The subjects of a model that are alike, and what follows of it for its states."""

    def __init__(self, machine: Machine) -> None:
        self._swaps: list[_Swap] = []
        self.alike = 1
        """How many states are one, at most."""
        subjects = list(dict.fromkeys(message.subject for _, message in machine.model.sent))
        while subjects:
            one, *others = subjects
            alike = [one]
            for other in others:
                with suppress(NotInterchangeable):
                    self._swaps.append(_Swap(machine, alike[-1], other))
                    alike.append(other)
            self.alike *= factorial(len(alike))
            subjects = [subject for subject in others if subject not in alike]
        machine.on_outcomes = self._learn

    def _learn(self, action: Action, value: int, outcomes: Sequence[ActionOutcome]) -> None:
        for swap in self._swaps:
            swap.learn(action, value, outcomes)

    def images(self, state: int) -> Sequence[int]:
        """The state with each permutation of the subjects that are alike."""
        images = {state}
        waiting = [state]
        for each in waiting:
            for swap in self._swaps:
                image = swap.state(each)
                if image not in images:
                    images.add(image)
                    waiting.append(image)
        return waiting


class _Swap:
    """What becomes of values and facts when two subjects are swapped."""

    def __init__(self, machine: Machine, one: str, other: str) -> None:
        self._machine = machine
        self._names = {one: other, other: one}
        self._values: list[dict[int, int]] = [{0: 0} for _ in machine.names]
        """Keyed by field: of each value the one with the subjects swapped."""
        self._shifts = [field * FIELD_BITS for field in range(len(machine.names))]
        self._facts: dict[int, int] = {}
        self._chunks: dict[tuple[int, int], int] = {}
        stimuli = machine.model.stimuli
        self._stimuli = _partners(
            [(s.participant, s.at, s.at_rest, *self._named(s.command)) for s in stimuli],
            [(s.participant, s.at, s.at_rest, *_named(s.command)) for s in stimuli],
        )
        sent = _partners(
            [(to, *self._named(message)) for to, message in machine.model.sent],
            [(to, *_named(message)) for to, message in machine.model.sent],
        )
        facts = machine.sent_at_first()
        for number, partner in enumerate(sent):
            self._pair_facts(facts[number], facts[partner])
        for state in machine.starts.values():
            for field, shift in enumerate(self._shifts):
                self._pair_values(field, state >> shift & FIELD, state >> shift & FIELD)
            for bit in machine.bits(state):
                if bit not in self._facts:
                    self._pair_facts(bit, bit)

    def _named(self, message: Message) -> tuple[Hashable, ...]:
        """What a message says, with the subjects swapped."""
        kind, said = _named(message)
        each = "|".join(map(re.escape, self._names))
        return kind, re.sub(f'"({each})"', lambda found: f'"{self._names[found[1]]}"', said)

    def state(self, state: int) -> int:
        """The state with the subjects swapped."""
        swapped = 0
        for shift, values in zip(self._shifts, self._values, strict=True):
            swapped |= values[state >> shift & FIELD] << shift
        base = self._machine.base
        facts, place = state >> base, 0
        while facts:
            chunk = facts & _CHUNK
            if chunk:
                key = place, chunk
                found = self._chunks.get(key)
                if found is None:
                    found = self._chunks[key] = self._chunk(place, chunk) << base
                swapped |= found
            facts >>= _CHUNK_BITS
            place += _CHUNK_BITS
        return swapped

    def _chunk(self, place: int, chunk: int) -> int:
        return sum(1 << self._facts[place + bit] for bit in range(_CHUNK_BITS) if chunk >> bit & 1)

    def learn(self, action: Action, value: int, outcomes: Sequence[ActionOutcome]) -> None:
        """Try the step with the subjects swapped, and note what that says. Raises
        `NotInterchangeable`."""
        machine = self._machine
        field = action.whose
        partner = self._action(action, value)
        try:
            swapped = machine.outcomes_of(partner, self._values[field][value])
        except Broken as broken:
            raise NotInterchangeable from broken
        if [each.reply for each in outcomes] != [each.reply for each in swapped]:
            raise NotInterchangeable
        for one, other in zip(outcomes, swapped, strict=True):
            shift = action.shift
            self._pair_values(field, one.bits >> shift & FIELD, other.bits >> shift & FIELD)
            ours, theirs = [*machine.bits(one.bits)], [*machine.bits(other.bits)]
            # What happened has to be paired before what refers to it.
            for kind in (Sent, Handled, Asked, Answered):
                self._pair_kind(
                    [bit for bit in ours if isinstance(machine.fact(bit), kind)],
                    [bit for bit in theirs if isinstance(machine.fact(bit), kind)],
                )

    def _pair_kind(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        fact = self._machine.fact
        partners = _partners(
            [self._key(fact(bit), swap=True) for bit in ours],
            [self._key(fact(bit), swap=False) for bit in theirs],
        )
        for bit, partner in zip(ours, partners, strict=True):
            self._pair_facts(bit, theirs[partner])

    def _key(self, fact: Fact, *, swap: bool) -> tuple[Hashable, ...]:
        """What tells a fact from others that come of the same step."""

        def number(of: Fact) -> int | None:
            bit = self._machine.bit_of(of)
            return self._facts.get(bit) if swap and bit is not None else bit

        match fact:
            case Sent(envelope, _, receivers):
                return envelope.type, envelope.source, envelope.sequence, receivers
            case Handled(message, participant):
                return number(message), participant
            case Asked(message, participant, intent, count):
                return number(message), participant, type(intent), count
            case Answered(question, reply):
                return number(question), reply

    def _action(self, action: Action, value: int) -> Action:
        machine = self._machine
        about = action.about
        if isinstance(about, Sent | Asked | Answered):
            bit = machine.bit_of(about)
            if bit is None or bit not in self._facts:
                raise NotInterchangeable
            number = machine.actions_about(bit).index(action)
            return machine.actions_about(self._facts[bit])[number]
        if isinstance(about, Firing):
            return self._firing(action, about, value)
        return machine.stimuli[self._stimuli[machine.stimuli.index(action)]]

    def _firing(self, action: Action, firing: Firing, value: int) -> Action:
        key = self._names.get(firing.key, firing.key)
        field = action.whose
        for partner in self._machine.dues(field, self._values[field][value]):
            about = partner.about
            if isinstance(about, Firing) and (about.kind, about.key, about.due.at, partner.now) == (
                firing.kind,
                key,
                firing.due.at,
                action.now,
            ):
                return partner
        raise NotInterchangeable

    def _pair_values(self, field: int, one: int, other: int) -> None:
        if one not in self._values[field]:
            of_one, of_other = (
                Counter((about.kind, about.due.at) for about in self._dues(field, value))
                for value in (one, other)
            )
            if of_one != of_other:
                raise NotInterchangeable
        _pair(self._values[field], one, other)

    def _dues(self, field: int, value: int) -> Iterator[Firing]:
        if field < len(self._machine.participants):
            for action in self._machine.dues(field, value):
                if isinstance(action.about, Firing):
                    yield action.about

    def _pair_facts(self, one: int, other: int) -> None:
        _pair(self._facts, one, other)


def _pair(pairs: dict[int, int], one: int, other: int) -> None:
    if pairs.setdefault(one, other) != other or pairs.setdefault(other, one) != one:
        raise NotInterchangeable


def _named(message: Message) -> tuple[str, str]:
    return type(message).__name__, message.model_dump_json()


def _partners(swapped: Sequence[Hashable], all_: Sequence[Hashable]) -> list[int]:
    """The place of each among all, where each is once. Raises `NotInterchangeable`."""
    places = {each: place for place, each in enumerate(all_)}
    if len(places) != len(all_) or {*swapped} != places.keys():
        raise NotInterchangeable
    return [places[each] for each in swapped]
