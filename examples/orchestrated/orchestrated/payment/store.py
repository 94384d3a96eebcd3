"""Where payments are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import Phase, StateTable, Tables, Word

from orchestrated.payment.domain import Payment

_metadata = sa.MetaData()
payments = sa.Table(
    "payments",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("customer", sa.String(128), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("amount_cents", sa.BigInteger, nullable=False),
)
TABLES = Tables(_metadata, StateTable(Payment, payments))
