"""What a model of a subject needs of the running system, beside its history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from saga.choreography import Choreography, State
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.future.present import SharedStates
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.step import StateId
from saga.verify import VerifyError
from saga.wording import counted

KEYS_MAX: Final = 500
"""States of one kind that are read for one subject."""


def read_shared(
    deployment: Deployment,
    graph: Choreography,
    keys: Mapping[tuple[str, type[State]], Iterable[str]],
) -> SharedStates:
    """The states about more than one subject as the participants' databases have them now, by
    participant and kind; blocks. Raises `DatabaseError`, and `VerifyError` for too many."""
    packages = {participant.name: participant.package for participant in graph.in_python}
    found: dict[tuple[str, StateId], State] = {}
    for (name, kind), wanted in keys.items():
        names = sorted(wanted)
        url = deployment.database_urls.get(name)
        table = tables_in(packages[name]).states.get(kind)
        if not names or url is None or table is None:
            continue
        if len(names) > KEYS_MAX:
            raise VerifyError(
                f"{counted(len(names), 'state')} {kind.__name__} of {name} are concerned; up to "
                f"{KEYS_MAX} "
                f"are looked at"
            )
        states = read_database(url, partial(table.load, keys=names))
        for key in names:
            found[name, (kind, key)] = states[key][0] if key in states else kind(key)
    return found
