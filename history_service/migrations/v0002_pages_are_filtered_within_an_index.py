"""Pages are filtered within an index."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name, first in (("orders_by_time", []), ("orders_by_status", ["status"])):
        op.drop_index(name, "order_views")
        columns = ["first_event_at", "order_id", "total_cents", "currency", "priority"]
        op.create_index(name, "order_views", [*first, *columns], unique=False)
