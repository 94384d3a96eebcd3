"""The map as data: participants, reactions, messages and the ways between them."""

from __future__ import annotations

import inspect
from typing import Any

from saga.choreography import Participant, Reaction, State
from saga.graph.flow import Flow, Node, Step, label
from saga.graph.joins import Join, joins_of
from saga.message import Answer, Command, Event, Intent
from saga.retry import Retry
from saga.runtime.messaging.topology import dead_letter_queue, queues_of


def listing(flow: Flow) -> dict[str, Any]:
    """What `saga map --format json` prints."""
    return {
        "participants": [_participant(flow, p) for p in flow.choreography.participants],
        "events": [_event(flow, event) for event in flow.choreography.events],
        "commands": [
            {
                "type": command.type,
                "path": flow.path(command),
                "version": command.version,
                "intake": command.intake,
                "sent_by": [step.name for step in flow.publishers(command)],
                "taken_by": [step.name for step in flow.takers(command)],
            }
            for command in flow.commands
        ],
        "due": [
            {
                "type": command.type,
                "path": flow.path(command),
                "about": kind.__name__,
                "taken_by": [step.name for step in flow.takers(command)],
            }
            for command, kind in flow.dues.items()
        ],
        "intents": [
            {
                "name": intent.__name__,
                "path": flow.path(intent),
                "answer": intent.answer.__name__,
                "asked_by": [label(step) for step in flow.preceding[intent]],
                "taken_by": [label(step) for step in flow.following.get(intent, ())],
            }
            for intent in flow.intents
        ],
        "joins": [_join(join) for join in joins_of(flow)],
        "edges": [
            {"from": _id(tail), "to": _id(head), "path": flow.edge_path(tail, head)}
            for tail, head in flow.edges
        ],
    }


def retry_as_data(retry: Retry) -> dict[str, Any]:
    """A policy; times in seconds, `waits_ms` as they are on the broker."""
    return {
        "max_calls": retry.max_calls,
        "delay_seconds": retry.delay,
        "backoff": retry.backoff,
        "max_delay_seconds": retry.max_delay,
        "waits_ms": list(retry.waits_ms),
    }


def _participant(flow: Flow, participant: Participant) -> dict[str, Any]:
    return {
        "name": participant.name,
        "foreign": participant.foreign,
        "queues": [*queues_of(participant), dead_letter_queue(participant.name)],
        "states": [] if participant.foreign else [_state(kind) for kind in participant.states],
        "reactions": [
            _reaction(flow, step) for step in flow.steps if step.participant is participant
        ],
    }


def _state(kind: type[State]) -> dict[str, Any]:
    return {"name": kind.__name__, "fields": list(kind.__dataclass_fields__)}


def _reaction(flow: Flow, step: Step) -> dict[str, Any]:
    reaction: Reaction = step.reaction
    return {
        "name": step.name,
        "file": step.source.file,
        "line": step.source.line,
        "path": flow.path(step),
        "takes": _message(reaction.consumes),
        "publishes": [kind.type for kind in reaction.publishes],
        "sends": [kind.type for kind in reaction.sends],
        "asks": [kind.__name__ for kind in reaction.intends],
        "may_do_nothing": reaction.may_do_nothing,
        "retry": retry_as_data(step.retry) if step.retry else None,
    }


def _message(kind: type[Event | Command | Answer]) -> str:
    return kind.__name__ if issubclass(kind, Answer) else kind.type


def _event(flow: Flow, event: type[Event]) -> dict[str, Any]:
    return {
        "type": event.type,
        "version": event.version,
        "role": event.role,
        "path": flow.path(event),
        "terminal": event.role.terminal,
        "final": event.final,
        "private": event.private,
        "undoes": [undone.type for undone in event.undoes],
        "about": (inspect.getdoc(event) or "").partition("\n")[0],
        "published_by": [step.name for step in flow.publishers(event)],
        "taken_by": [step.name for step in flow.takers(event)],
    }


def _join(join: Join) -> dict[str, Any]:
    return {
        "participant": join.participant.name,
        "state": join.state.__name__,
        "completes": join.completes.type,
        "legs": [
            {
                "reaction": leg.step.name,
                "takes": _message(leg.step.reaction.consumes),
                "keeps": [kind.type for kind in leg.keeps],
            }
            for leg in join.legs
        ],
    }


def _id(node: Node) -> str:
    if isinstance(node, Step):
        return f"reaction:{node.name}"
    if issubclass(node, Intent):
        return f"intent:{node.__name__}"
    return f"{'event' if issubclass(node, Event) else 'command'}:{node.type}"
