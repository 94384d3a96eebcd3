"""A mail may be on its way again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("notifications", sa.Column("resent_at", sa.BigInteger(), nullable=True))
