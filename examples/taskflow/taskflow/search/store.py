"""The index: it is found by its words in `app`."""

from __future__ import annotations

from saga import Tables

from taskflow.search.domain import Entry

TABLES = Tables.of(__file__, entries=Entry)
