"""`saga recover`: a broker rebuilt from what the services keep and the history knows.

`evidence` reads the books, `owed` finds in them what a participant has to deal with and has not,
and `broker` puts that back into its queues, and the events into the history's stream.
"""

from saga.errors import Explained


class RecoveryError(Explained):
    """Nothing can be recovered as things are. Names what is in the way, and the way out."""
