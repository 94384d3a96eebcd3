"""Where it is kept which mails were sent."""

from __future__ import annotations

from saga import Tables

from taskflow.mail.domain import Notice, Welcome

TABLES = Tables.of(__file__, welcomes=Welcome, notices=Notice)
