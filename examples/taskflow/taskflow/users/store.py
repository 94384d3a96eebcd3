"""Where users are kept."""

from __future__ import annotations

from saga import Tables

from taskflow.users.domain import User

TABLES = Tables.of(__file__, users=User)
