"""A customer's name may be sealed, which takes more characters."""

from alembic import op

from saga.runtime.kernel.migrations import widen_text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    widen_text(op.get_bind(), "payments", "customer", 732)
