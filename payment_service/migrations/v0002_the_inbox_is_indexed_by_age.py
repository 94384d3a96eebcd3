"""The inbox is indexed by age."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("inbox_by_age", "inbox", ["at"])
