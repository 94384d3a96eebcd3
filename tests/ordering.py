"""Whether what one publisher said about one saga was handled in the order it was published in.

A participant's events about a subject are numbered as it decided on them, and each names its cause.
So the causes, in the order of those numbers, are what it has handled that led to something. They
must be in the order of the history stream, except what waited for another try, or was published
more than once because the broker was lost before it had confirmed it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from saga.choreography import Choreography
from saga.reconcile import broker
from saga.reconcile.history import History
from saga.runtime.messaging.connection import connect


class Recorder(History):
    """Keeps the decodable events of the stream as they were published."""

    def __init__(self, graph: Choreography) -> None:
        super().__init__(graph)
        self.published: list[tuple[str, bytes]] = []

    def take(self, routing_key: str, message_id: str | None, at: Any, body: bytes) -> None:
        undecodable = self.undecodable
        super().take(routing_key, message_id, at, body)
        if self.undecodable == undecodable:
            self.published.append((routing_key, body))


async def overtaken(url: str, graph: Choreography) -> tuple[list[str], int]:
    """Pairs of messages that were handled in the other order, a line each; and how many pairs were
    compared."""
    recorder = Recorder(graph)
    connection = await connect(url, name="tests")
    async with connection:
        await broker.read_history(connection, recorder, written_to=True)
    return compare(recorder.published)


def compare(published: list[tuple[str, bytes]]) -> tuple[list[str], int]:
    events = [(key.rpartition(".")[2], json.loads(body)) for key, body in published]
    times = Counter(event["id"] for _, event in events)
    place = {event["id"]: number for number, (_, event) in enumerate(events)}
    known = {event["id"]: (lane, event) for lane, event in events}
    by_saga: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for _, event in known.values():
        by_saga[event["source"], event["correlationid"]].append(event)
    wrong: list[str] = []
    pairs = 0
    for (taker, subject), said in by_saga.items():
        said.sort(key=lambda event: int(event["sequence"]))
        last: dict[tuple[str, str], str] = {}
        for event in said:
            cause = str(event.get("causationid"))
            if cause not in place or times[cause] > 1 or event.get("attempt"):
                continue
            lane, caused_by = known[cause]
            before = last.get((caused_by["source"], lane))
            if before is not None and before != cause:
                pairs += 1
                if place[before] > place[cause]:
                    wrong.append(
                        f"{taker} handled {known[before][1]['type']} before {caused_by['type']} "
                        f"of {subject}, which {caused_by['source']} published in the other order"
                    )
            last[caused_by["source"], lane] = cause
    return wrong, pairs
