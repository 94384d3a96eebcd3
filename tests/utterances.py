"""Any message that the toy words allow."""

from __future__ import annotations

import string
from datetime import UTC, timedelta
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from saga.limits import TIME_END, TIME_MIN
from saga.message import Event, Priority
from saga.text import is_plain
from tests.words import (
    COUNT_MAX,
    LIMIT_MAX_SECONDS,
    SIZE_MAX,
    Agreed,
    Begin,
    Begun,
    Cancelled,
    Completed,
    Denied,
    Held,
    Noted,
    Part,
    Reason,
    Refused,
    Released,
    Voided,
    total_of,
)

_first = string.ascii_letters + string.digits

things = st.uuids()
names = st.builds(
    str.__add__, st.sampled_from(_first), st.text(alphabet=_first + "._-", max_size=63)
)
whos = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=128)
reasons = st.sampled_from(list(Reason))
moments = st.datetimes(
    TIME_MIN.replace(tzinfo=None),
    (TIME_END - timedelta(seconds=1)).replace(tzinfo=None),
    timezones=st.just(UTC),
)
_part = st.builds(Part, name=names, count=st.integers(1, COUNT_MAX), size=st.integers(1, SIZE_MAX))
some_parts: SearchStrategy[tuple[Part, ...]] = st.lists(_part, min_size=1, max_size=5).map(tuple)
parts: SearchStrategy[tuple[Part, ...]] = st.lists(_part, max_size=5).map(tuple)

begins = st.builds(
    Begin,
    thing=things,
    who=whos.filter(is_plain),
    parts=some_parts,
    priority=st.sampled_from(Priority),
    limit_seconds=st.integers(1, LIMIT_MAX_SECONDS),
)


@st.composite
def _begun(draw: st.DrawFn) -> Begun:
    parts = draw(some_parts)
    return Begun(
        thing=draw(things),
        who=draw(whos),
        parts=parts,
        total=total_of(parts),
        priority=draw(st.sampled_from(Priority)),
        deadline=draw(moments),
    )


EVENTS: Final[dict[type[Event], SearchStrategy[Event]]] = {
    Begun: _begun(),
    Completed: st.builds(Completed, thing=things, who=whos),
    Cancelled: st.builds(Cancelled, thing=things, who=whos, reason=reasons),
    Held: st.builds(Held, thing=things, who=whos, parts=some_parts),
    Refused: st.builds(Refused, thing=things, reason=reasons, name=names),
    Released: st.builds(Released, thing=things, parts=parts),
    Agreed: st.builds(Agreed, thing=things),
    Denied: st.builds(Denied, thing=things),
    Voided: st.builds(Voided, thing=things),
    Noted: st.builds(Noted, thing=things),
}
events: Final[SearchStrategy[Event]] = st.one_of(*EVENTS.values())
