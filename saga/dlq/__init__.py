"""`saga dlq`: dead letters, moved into a store of their own, where an operator deals with them.

`letters` says what a dead letter is, and `states` where it stands. `store` keeps them, in `tables`:
`arrivals` takes copies in, `selection` finds letters, `replays` and `audit` note what is done about
them, and `lookup` and `figures` are for those who only look. `collect` moves letters there from the
queues, `examine` tells what a replay would do, `replay` and `edit` send them again, and `desk` is
where a command finds all of it.
"""

from saga.errors import Explained


class DlqError(Explained):
    """Dead letters cannot be worked on as things are. Names what is in the way, and the way out."""


class SelectionChanged(DlqError):
    """What is selected are other letters than those that were confirmed. Nothing has changed."""

    def __init__(self, letters: int) -> None:
        super().__init__(
            f"these are other letters than those that were confirmed: {letters} by now; look again"
        )
        self.letters = letters
