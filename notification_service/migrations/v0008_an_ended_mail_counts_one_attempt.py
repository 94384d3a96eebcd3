"""An ended mail counts one attempt, as those do that ended before attempts were numbered."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("UPDATE notifications SET tries = 1 WHERE tries = 0")
