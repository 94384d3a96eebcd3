"""Watching what goes between the services and the broker, and what kernels take of it.

It knows what is sent and what is committed, and nothing of how the kernel does its work.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from saga.choreography import Participant
from saga.envelope import Attributes, MessageKey, Undecodable
from saga.message import Priority
from saga.retry import Retry
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.work import Work
from saga.runtime.messaging.dead_letters import ERROR_TYPE, REASON, Reason, attempts_in
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, undivided, wait_queue
from saga.simulation.broker import PublishedMessage
from saga.simulation.database import SimulatedStore
from saga.simulation.loop import SimulatedProcess
from saga.simulation.server import SimulatedReplica
from saga.simulation.unruly import describe

INFRASTRUCTURE_ERRORS: Final = (
    "OperationalError",
    "VersionConflict",
    "ConnectionError",
    "TimeoutError",
    "KeyStoreAway",
    "SealingAway",
)
"""Failures of infrastructure, which must not use up a message's tries."""

UNCOUNTED_MAX: Final = 3
"""Events that an outbox may count too few: a sweep may find some before they are handed over."""
_attributes_of = lru_cache(maxsize=1_024)(Attributes.of)
"""Each message is published once, and delivered several times."""
Trouble = Callable[[str, str], None]
"""Called with a rule and what broke it."""


@dataclass(slots=True)
class _Taking:
    """What one process has in its hands."""

    waiting: dict[tuple[object, int], tuple[MessageKey, Priority]] = field(default_factory=dict)
    """Keyed by channel and tag: what it was given and has not begun."""
    begun: set[MessageKey] = field(default_factory=set)
    delivered: set[MessageKey] = field(default_factory=set)
    """What the broker has ever given it."""
    group: Sequence[tuple[Work, bool]] = ()
    """The last one, each with whether it is an answer."""
    places: dict[Priority, int] = field(default_factory=dict)
    """Keyed by a priority of which messages have waited since: the places there were in groups, as
    many as there may have been."""
    taken: Counter[tuple[Priority, Priority]] = field(default_factory=Counter)
    """How many messages of which priority were taken meanwhile."""
    unconfirmed: set[str] = field(default_factory=set)
    """Events that it knows to be committed, and that the broker has never taken."""


class Watch:
    """Watches one run, and says at once what is wrong."""

    def __init__(
        self,
        servers: Mapping[str, SimulatedReplica],
        stores: Mapping[str, SimulatedStore],
        trouble: Trouble,
    ) -> None:
        self._servers = servers
        """Keyed by name of their process."""
        self._stores = stores
        self._trouble = trouble
        self.on_message: Callable[[SimulatedProcess, str, str], None] = lambda _, __, ___: None
        """Called with each process that gets a message, its queue and its subject."""
        self.waits_before: Callable[[str], bool] = lambda _: False
        """Whether a message of a queue may wait, or be refused, before a kernel gets it."""
        self.same: Callable[[bytes], bytes] = lambda body: body
        """What a body has in common with a copy of it in which more is sealed."""
        self._priorities: dict[str, Priority] = {}
        """Keyed by id of a message."""
        self._delivered: defaultdict[tuple[SimulatedProcess, bytes], Counter[int]]
        self._delivered = defaultdict(Counter)
        """How often a process has got a message that had failed so often before, by its body."""
        self._copies: defaultdict[tuple[SimulatedProcess, bytes, int], set[bytes]]
        self._copies = defaultdict(set)
        """The different copies it has set aside of those, by their properties."""
        self._taken: set[str] = set()
        """Ids of what the broker has ever taken."""
        self._taking: defaultdict[SimulatedProcess, _Taking] = defaultdict(_Taking)

    def given(self, id: str, priority: Priority) -> None:
        """A client gives a command under this id."""
        self._priorities[id] = priority

    # --- on the way to a service -----------------------------------------------------------------

    def delivered(
        self,
        process: SimulatedProcess,
        channel: object,
        tag: int,
        queue: str,
        message: PublishedMessage,
    ) -> None:
        """A process gets a message."""
        tries = attempts_in(message.properties.headers or {})
        self._delivered[process, self.same(message.body)][tries] += 1
        try:
            about = _attributes_of(message.body)
        except Undecodable:
            return
        priority = Priority(undivided(queue).rpartition(".")[2])
        self._priorities.setdefault(about.id, priority)
        self._taking[process].delivered.add(about.key)
        if not self.waits_before(queue):
            self._taking[process].waiting[channel, tag] = about.key, priority
        self.on_message(process, queue, about.subject)

    def channel_lost(self, process: SimulatedProcess, channel: object) -> None:
        """What came on it will come again."""
        waiting = self._taking[process].waiting
        for place in [place for place in waiting if place[0] is channel]:
            del waiting[place]

    # --- in the service --------------------------------------------------------------------------

    def group_begun(self, process: SimulatedProcess, group: Sequence[Work]) -> None:
        """A kernel decides on a group, for the first time or again."""
        taking = self._taking[process]
        works = [(work, work.asked) for work in group]
        if all(work in taking.group for work in works):
            return  # Nothing was taken: it is that group again, or a part of it.
        taking.group = works
        server = self._servers[process.name]
        keys = {work.envelope.key for work in group}
        known = {key for key, _ in taking.waiting.values()}
        fresh = [work for work in group if not work.asked and work.envelope.key in known]
        # A copy of what was begun, and an answer, have waited in the same line and take a place.
        delivered = [work for work in group if work.envelope.key in taking.delivered]
        for place in [place for place, (key, _) in taking.waiting.items() if key in keys]:
            del taking.waiting[place]
        taking.begun |= keys
        if fresh:
            self._look_at_backlog(server, taking, fresh)
        self._look_at_lanes(server, taking, delivered)

    def _look_at_backlog(
        self, server: SimulatedReplica, taking: _Taking, fresh: Sequence[Work]
    ) -> None:
        """No more is taken from the broker while it does not keep up with what is published."""
        busy = server.limits.backlog_busy
        if len(taking.unconfirmed) <= busy + UNCOUNTED_MAX or server.outbox is None:
            return
        # What another replica has taken over is its own.
        store = self._stores[server.service.participant.name]
        mine = taking.unconfirmed & store.waiting_of(server.outbox.owner)
        if len(mine) > busy + UNCOUNTED_MAX:
            self._trouble(
                "taken_while_busy",
                f"{server.name} takes {describe_all(fresh)} although {len(mine)} of its events "
                f"wait for the broker, more than {busy}",
            )

    def _look_at_lanes(
        self,
        server: SimulatedReplica,
        taking: _Taking,
        delivered: Sequence[Work],
    ) -> None:
        """Urgent messages go ahead of normal ones, which get a share all the same. Of the group,
        `delivered` came from the broker."""
        left = {priority for key, priority in taking.waiting.values() if key not in taking.begun}
        for priority in Priority:
            if priority not in left:
                taking.places.pop(priority, None)
                for other in Priority:
                    del taking.taken[priority, other]
                continue
            taking.places[priority] = taking.places.get(priority, 0) + server.limits.group_max
            for work in delivered:
                taking.taken[priority, work.envelope.priority] += 1
        share = server.limits.normal_share
        if Priority.HIGH in left:
            places = taking.places[Priority.HIGH]
            normal = taking.taken[Priority.HIGH, Priority.NORMAL]
            if normal > math.ceil(places / share):
                self._trouble(
                    "urgent_waits",
                    f"{server.name} takes {describe_all(delivered)}; {normal} of {places} places "
                    f"went to normal messages while urgent ones waited",
                )
        if Priority.NORMAL in left:
            places = taking.taken[Priority.NORMAL, Priority.HIGH]
            normal = taking.taken[Priority.NORMAL, Priority.NORMAL]
            if normal < (places + normal) // share - 1:
                self._trouble(
                    "normal_starves",
                    f"{server.name} takes {describe_all(delivered)}; {normal} of {places + normal} "
                    f"places went to normal messages that waited",
                )

    def committed(self, process: SimulatedProcess, rows: Iterable[Outgoing]) -> None:
        """A kernel gets to know that events are committed."""
        # A sweep may have found and published them before.
        ids = {row.event_id for row in rows}
        self._taking[process].unconfirmed |= ids - self._taken

    # --- on the way to the broker ----------------------------------------------------------------

    def published(self, process: SimulatedProcess, message: PublishedMessage) -> None:
        """A message of a service arrives at the broker."""
        server = self._servers[process.name]
        if message.exchange == EVENTS_EXCHANGE:
            self._check_event(server, message)
        else:
            self._check_copy(process, server.service.participant, message)

    def taken(self, message: PublishedMessage) -> None:
        """The broker takes a message."""
        id = message.properties.message_id or ""
        self._taken.add(id)
        for taking in self._taking.values():
            taking.unconfirmed.discard(id)

    def _check_event(self, server: SimulatedReplica, message: PublishedMessage) -> None:
        """An event must have been committed before it is published, and is as urgent as what led to
        it."""
        event_id = message.properties.message_id or ""
        if not self._stores[server.service.participant.name].has_committed(event_id, message.body):
            self._trouble(
                "published_uncommitted",
                f"{message.routing_key} {event_id} of {server.name} was published, "
                f"and never committed so",
            )
        about = _attributes_of(message.body)
        self._priorities.setdefault(about.id, about.priority)
        cause = self._priorities.get(about.causationid or "", about.priority)
        if cause is not about.priority or message.routing_key != about.routing_key:
            self._trouble(
                "priority_changed",
                f"{message.routing_key} {event_id} of {server.name} says that its priority is "
                f"{about.priority}; what led to it was {cause}",
            )

    def _check_copy(
        self, process: SimulatedProcess, participant: Participant, message: PublishedMessage
    ) -> None:
        """What is set aside must be a copy of what was delivered, with one try more, and not for
        something that no message can help; and it waits as the reaction's policy says."""
        headers = message.properties.headers or {}
        tries = attempts_in(headers)
        same = self.same(message.body)
        copies = self._copies[process, same, tries]
        copies.add(message.raw)
        if len(copies) > self._delivered[process, same][tries - 1]:
            self._trouble(
                "tries_not_counted", f"{describe(message)} was set aside after try {tries}"
            )
        error = str(headers.get(ERROR_TYPE))
        if error in INFRASTRUCTURE_ERRORS:
            self._trouble(
                "infrastructure_blamed", f"{describe(message)} was set aside for {error!r}"
            )
        retry = policy_for(participant, message.properties.type)
        failed = headers.get(REASON) == Reason.FAILED
        expected = exchange_after(retry, tries, error) if failed else DEAD_EXCHANGE
        if message.exchange != expected:
            self._trouble(
                "retried_otherwise",
                f"{describe(message)} of {participant.name} went to {message.exchange} after try "
                f"{tries}, which ended with {error}; by its policy it goes to {expected}",
            )


def policy_for(participant: Participant, type_: str | None) -> Retry:
    """The policy for messages of a type."""
    kinds = (kind for kind in participant.by_message if getattr(kind, "type", None) == type_)
    return participant.retry_of(next(kinds, None))


def exchange_after(retry: Retry, tries: int, error: str) -> str:
    """Where a message goes whose so many tries ended with an error of that name."""
    again = tries < retry.max_calls and error in set(_names_of(retry.transient))
    return wait_queue(retry.waits_ms[tries - 1]) if again else DEAD_EXCHANGE


def _names_of(kinds: Iterable[type[Any]]) -> Iterable[str]:
    for kind in kinds:
        yield kind.__name__
        yield from _names_of(kind.__subclasses__())


def describe_all(group: Sequence[Work]) -> str:
    """A group's messages for the trace."""
    return ", ".join(f"{work.envelope.type} ({work.envelope.priority})" for work in group)
