"""What commands do not show: whom messages name in clear, from before names were sealed.

What is found to be hidden (`saga.commands.discretion`) is masked in all that the command prints
(`saga.commands.console`, `print_json`). Copies for programs (`history export`, `dlq export`) and
what an editor is given stay whole.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from saga.personal.masks import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterable


_NOTHING: Final = Hidden()
_HIDDEN: Final[ContextVar[Hidden]] = ContextVar("hidden", default=_NOTHING)


def hidden() -> Hidden:
    """What the command that runs does not show."""
    return _HIDDEN.get()


def begin() -> None:
    """A command begins, and has nothing to hide yet."""
    _HIDDEN.set(_NOTHING)


def hide(values: Iterable[str]) -> None:
    """Mask these values in all that the command prints from now on."""
    _HIDDEN.set(hidden().and_of(values))
