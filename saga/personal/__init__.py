"""Personal data: marked where it is declared, sealed where it enters, opened at the last moment.

A key for each person is in a store of its own. Once that key is gone, what was sealed under it
cannot be read any more, wherever copies of it are.
"""

from saga.personal.marks import Personal, personal_fields
from saga.personal.seal import Forgotten, Unsealable, sealed, shown

__all__ = ["Forgotten", "Personal", "Unsealable", "personal_fields", "sealed", "shown"]
