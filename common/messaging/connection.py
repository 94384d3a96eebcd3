"""Connecting to the broker, with errors a person can act on."""

from __future__ import annotations

import asyncio
import logging
import time

import aio_pika
import aiormq
import yarl
from aio_pika.abc import AbstractConnection

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = 0.5


class BrokerError(Exception):
    """The broker cannot be used. The message names it and the way out."""


def printable(url: str) -> str:
    """An AMQP URL without its password."""
    parsed = yarl.URL(url)
    return str(parsed.with_password("***") if parsed.password else parsed)


def named(url: str, name: str) -> str:
    """The URL of a connection that the broker lists under `name`."""
    return str(yarl.URL(url).update_query(name=name))


async def connect(url: str, *, name: str, patience_seconds: float = 0.0) -> AbstractConnection:
    """A connection, which does not reconnect by itself.

    Tries for `patience_seconds` while the broker is out of reach. Raises `BrokerError`.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return await asyncio.wait_for(
                aio_pika.connect(named(url, name), heartbeat=HEARTBEAT_SECONDS),
                CONNECT_TIMEOUT_SECONDS,
            )
        except (
            aiormq.exceptions.AuthenticationError,
            aiormq.exceptions.ProbableAuthenticationError,
        ) as error:
            raise BrokerError(
                f"RabbitMQ at {printable(url)} refused the user or the password; "
                f"correct them in AMQP_URL"
            ) from error
        except (
            aiormq.exceptions.ConnectionNotAllowed,
            aiormq.exceptions.ConnectionClosed,
            aiormq.exceptions.ProtocolSyntaxError,  # A closing frame where none was expected.
        ) as error:
            raise BrokerError(
                f"RabbitMQ at {printable(url)} refused the connection: {error}; does the virtual "
                f"host in AMQP_URL exist, and may the user access it?"
            ) from error
        except (OSError, TimeoutError, aiormq.exceptions.AMQPError) as error:
            if time.monotonic() >= deadline:
                raise BrokerError(
                    f"cannot reach RabbitMQ at {printable(url)}: {str(error) or 'no answer'}; "
                    f"start it, or name another broker in AMQP_URL"
                ) from error
            log.info("waiting for RabbitMQ at %s: %s", printable(url), error)
            await asyncio.sleep(RETRY_SECONDS)
        except ValueError as error:
            raise BrokerError(
                f"AMQP_URL {printable(url)!r} is no AMQP URL: {error}; "
                f"write amqp://user:password@host:port/vhost"
            ) from error
