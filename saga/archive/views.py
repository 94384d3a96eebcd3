"""What the archive is given by the saga that is declared."""

from __future__ import annotations

from functools import lru_cache

from saga.archive.projection import Projection
from saga.choreography import Choreography
from saga.discovery import saga


@lru_cache(maxsize=8)
def projection_of(choreography: Choreography) -> Projection:
    """What the events of this choreography are folded into: the view is the declared saga's, if it
    is about any of these events. Raises `SagaError`."""
    view = saga().view
    return Projection(choreography, view if view and view.belongs_to(choreography) else None)
