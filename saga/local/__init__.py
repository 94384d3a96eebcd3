"""A whole system on this machine: broker, databases, a process for each service."""

from saga.errors import Explained


class SystemFault(Explained):
    """Something of the system cannot run. One line that names it and the way out."""
