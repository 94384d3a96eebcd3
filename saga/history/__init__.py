"""`saga trace`, `saga stuck`, `saga show`, `saga history`: what the kept events tell.

`archive` reads what the history service keeps.
"""

from saga.errors import Explained


class HistoryError(Explained):
    """The history cannot answer. Names what is in the way, and the way out."""
