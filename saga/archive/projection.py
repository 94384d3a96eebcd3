"""What the archive folds the events of one saga into, beside keeping them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from saga.archive.subjects import SubjectRules
from saga.archive.view import SubjectView
from saga.choreography import Choreography


@dataclass(frozen=True)
class Projection:
    """The table of subjects, and the view that the saga declares, if it declares one.

    Made once the domains of all participants are there: it reads what their signatures name.
    """

    choreography: Choreography
    view: SubjectView[Any] | None = None  # Of whatever state: it goes with its own table.

    @cached_property
    def rules(self) -> SubjectRules:
        """What the signatures tell of a subject by its events."""
        return SubjectRules(self.choreography)
