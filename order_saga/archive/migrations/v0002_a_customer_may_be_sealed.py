"""A customer's name may be sealed, which takes more characters."""

from alembic import op

from saga.runtime.kernel.migrations import widen_text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    widen_text(op.get_bind(), "order_views", "customer", 732)
