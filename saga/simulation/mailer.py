"""A mail server that remembers what it has taken."""

from __future__ import annotations

from collections import Counter
from email.message import EmailMessage

from notification_service.mail import MailRefused, MailRejected, MailUnconfirmed
from saga.simulation.loop import Process, SimulatedLoop
from saga.simulation.outside import Outside
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather


class SimulatedMailer(Outside):
    """See `notification_service.mail.Mailer`."""

    def __init__(self, loop: SimulatedLoop, weather: Weather, trace: Trace, world: Process) -> None:
        super().__init__(loop, weather, trace, world)
        self.taken: Counter[str] = Counter()
        """How often each mail was taken, by its Message-ID."""

    async def send(self, mail: EmailMessage) -> None:
        message_id = str(mail["Message-ID"])
        await self._ask(lambda: self._take(message_id), self._weather.rates.slow_mail)

    def _take(self, message_id: str) -> None:
        weather, rates = self._weather, self._weather.rates
        if weather.happens(rates.mail_refused):
            raise MailRefused("simulated: not now")
        if weather.happens(rates.mail_rejected):
            raise MailRejected("simulated: never")
        unconfirmed = weather.happens(rates.mail_unconfirmed)
        if not unconfirmed or weather.happens(0.5):
            self.taken[message_id] += 1
            self._trace.note("mail server", f"takes {message_id}")
        if unconfirmed:
            raise MailUnconfirmed("simulated: no answer")
