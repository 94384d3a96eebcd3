"""What no scenario has come to: `saga verify` does not say fine about it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from saga.declaration import Saga
from saga.verify.model import unapplied


def uncovered(
    saga: Saga,
    reacted: Collection[tuple[str, str]],
    published: Collection[str],
    asked: Collection[tuple[str, str]],
) -> Iterator[str]:
    """What was not looked at when just these reactions were run, these events published, and these
    intents committed by their participants: lines for people."""
    if not saga.scenarios:
        yield f"{saga.name} has no scenario: nothing was tried"
    yield from saga.unwatched()
    if saga.scenarios:
        for invariant in unapplied(saga):
            yield f"{invariant.name} is judged in no scenario: none has all that it reads"
        for participant in saga.participants:
            for reaction in participant.reactions:
                if (participant.name, reaction.name) not in reacted:
                    yield f"no scenario comes to {participant.name}.{reaction.name}"
            for intent in dict.fromkeys(i for r in participant.reactions for i in r.intends):
                if (participant.name, intent.__name__) not in asked:
                    yield f"no scenario has {participant.name} ask {intent.__name__}"
        for message in saga.choreography.recorded:
            if message.type not in published:
                yield f"{message.type} is published in no scenario"
