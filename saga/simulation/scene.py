"""What all runs share: the services, their databases, and the broker's topology."""

from __future__ import annotations

import importlib

from common.choreography import Choreography
from common.messaging.topology import topology_of
from common.service import Service
from common.settings import Settings
from notification_service import app as notification_app
from notification_service.mail import Mailer, Writer, address_book
from payment_service import app as payment_app
from saga import discovery
from saga.simulation.database import Store
from saga.simulation.provider import SimulatedProvider


class Scene:
    """Made once, as that takes longer than a run."""

    def __init__(self) -> None:
        self.participants = discovery.participants()
        self.choreography = Choreography(self.participants.values())
        self.topology = topology_of(self.choreography)
        self.apps = {
            package: importlib.import_module(f"{package}.app") for package in self.participants
        }
        self.stores = {
            participant.name: Store(importlib.import_module(f"{package}.store").TABLES)
            for package, participant in self.participants.items()
        }
        """By participant."""
        self._writer = Writer("orders@shop.example", address_book("{customer}@shop.example"))

    def service(self, package: str, provider: SimulatedProvider, mailer: Mailer) -> Service:
        """The service of a package; where it asks the outside, that is simulated."""
        if package == payment_app.__package__:
            return payment_app.build_with(provider)
        if package == notification_app.__package__:
            return notification_app.build_with(self._writer, mailer)
        service: Service = self.apps[package].build(Settings.model_construct())
        return service

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
