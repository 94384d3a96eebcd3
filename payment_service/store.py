"""Where payments are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from payment_service.domain import Payment, PaymentStatus
from saga.personal.seal import SEALED_MAX_CHARACTERS
from saga.runtime.kernel.tables import StateTable, Tables, Word

_metadata = sa.MetaData()

payments = sa.Table(
    "payments",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", Word(PaymentStatus), nullable=False),
    sa.Column("customer", sa.String(SEALED_MAX_CHARACTERS), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("amount_cents", sa.BigInteger, nullable=False),
)

PAYMENTS = StateTable(Payment, payments)
TABLES = Tables(_metadata, PAYMENTS, migrations=Path(__file__).with_name("migrations"))
