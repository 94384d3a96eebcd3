"""A customer's name may be sealed, which takes more characters."""

from alembic import op

from saga.runtime.kernel.migrations import widen_text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    widen_text(op.get_bind(), "orders", "customer", 732)
