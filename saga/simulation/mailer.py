"""A mail server that remembers what it has taken."""

from __future__ import annotations

import asyncio
from collections import Counter
from email.message import EmailMessage

from notification_service.mail import MailRefused, MailUnconfirmed
from saga.simulation.loop import Process, SimulatedLoop, current_process, settle
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather

SLOW_SECONDS = 20.0
"""What a slow answer may take."""


class SimulatedMailer:
    """See `notification_service.mail.Mailer`."""

    def __init__(self, loop: SimulatedLoop, weather: Weather, trace: Trace, world: Process) -> None:
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._world = world
        self.taken: Counter[str] = Counter()
        """How often each mail was taken, by its Message-ID."""

    async def send(self, mail: EmailMessage) -> None:
        answer: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_later(
            self._weather.latency(),
            self._take,
            str(mail["Message-ID"]),
            answer,
            current_process(),
            context=self._world.context,
        )
        await answer

    def _take(self, message_id: str, answer: asyncio.Future[None], sender: Process) -> None:
        """The mail is there; whether its sender still lives is nothing to the server."""
        weather, rates = self._weather, self._weather.rates
        result: Exception | None = None
        if weather.happens(rates.mail_refused):
            result = MailRefused("simulated: not now")
        else:
            if weather.happens(rates.mail_unconfirmed):
                result = MailUnconfirmed("simulated: no answer")
            if result is None or weather.happens(0.5):
                self.taken[message_id] += 1
                self._trace.note("mail server", f"takes {message_id}")
        slow = weather.happens(rates.slow_mail)
        seconds = weather.seconds(SLOW_SECONDS) if slow else weather.latency()
        self._loop.call_later(seconds, settle, answer, result, context=sender.context)
