"""The inbox knows messages by source and id."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("inbox", sa.Column("digest", sa.LargeBinary(), nullable=True))
