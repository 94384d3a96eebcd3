"""`saga recover`: a broker made again from what the services keep and the history knows.

`owed` finds what somebody has to deal with and has not, `broker` puts that back into its queues,
and the events into the history's stream.
"""


class RecoveryError(Exception):
    """Nothing can be recovered as things are. Names what is in the way, and the way out."""
