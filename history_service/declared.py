"""What the archive is given by the sagas that declare a view: first of all, tables.

The archive's own tables join them in one database, and in one line of migrations.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from history_service.order_table import order_views

METADATA: Final = sa.MetaData()

for _table in (order_views,):
    _table.to_metadata(METADATA)
