"""The service that asks the payment provider."""

from __future__ import annotations

from saga import FileBookkeeper, Service, Settings, serve

from orchestrated.payment.domain import PARTICIPANT
from orchestrated.payment.store import TABLES
from orchestrated.provider import SLOW_SECONDS, Ledger, asks


class PaymentSettings(Settings):
    """Where the provider is."""

    sandbox_url: str | None = None
    """SANDBOX_URL: of the sandbox's ledger; by default a SQLite file in the data folder."""


def build(settings: PaymentSettings) -> Service:
    url = settings.sandbox_url or f"sqlite:///{settings.data_dir.absolute() / 'provider.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks(FileBookkeeper(url, Ledger), SLOW_SECONDS))


if __name__ == "__main__":
    serve(build, PaymentSettings)
