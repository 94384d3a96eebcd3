"""Pages are filtered within an index: what this did is done by the view of orders now."""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Nothing."""
