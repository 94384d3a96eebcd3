"""The console: a system in a browser. Pages are documents with addresses of their own, made here by
the functions that the command line calls; scripts only bring them up to date."""

from __future__ import annotations

from typing import Final

PORT: Final = 8600
"""Where a console serves, if it is not told otherwise."""
NAME: Final = "console"
"""What its part of the audit trail is called."""
