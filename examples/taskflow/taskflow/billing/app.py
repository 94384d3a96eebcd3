"""The service that has users pay."""

from __future__ import annotations

from saga import FileBookkeeper, Service, Settings, serve

from taskflow.billing.domain import PARTICIPANT
from taskflow.billing.store import TABLES
from taskflow.outside import BankBooks, asks_bank, decides


class BillingSettings(Settings):
    """Where the bank is."""

    bank_url: str | None = None
    """BANK_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: BillingSettings) -> Service:
    url = settings.bank_url or f"sqlite:///{settings.data_dir.absolute() / 'bank.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks_bank(FileBookkeeper(url, BankBooks, decides)))


if __name__ == "__main__":
    serve(build, BillingSettings)
