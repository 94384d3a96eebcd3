"""Connecting to the broker, with errors an operator can act on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time

import aio_pika
import aiormq
import yarl

from saga.errors import Explained
from saga.runtime.messaging.wire import Connection
from saga.runtime.urls import printable, text_of, unambiguous

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = 0.5

_ALSO = "also"
# OpenSSL's words and numbers.
_NO_TLS_THERE = "WRONG_VERSION_NUMBER"
_NO_CERTIFICATE = "ALERT_CERTIFICATE_REQUIRED"
_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


class BrokerError(Explained):
    """The broker cannot be used. The message names it and the way out."""


def named(url: str, name: str) -> str:
    """The URL of a connection that the broker lists under `name`."""
    return text_of(yarl.URL(url).update_query(name=name))


def addresses_of(url: str) -> list[str]:
    """A URL for each node of the cluster that the broker is: the URL's own, and those that its
    query names, as `?also=rabbit-2:5672,rabbit-3`. Raises ValueError for what is no URL, or could
    be read in another way."""
    parsed = yarl.URL(unambiguous(url))
    own = parsed.without_query_params(_ALSO)
    addresses = [own]
    for node in filter(None, parsed.query.get(_ALSO, "").split(",")):
        other = yarl.URL(f"//{node}")
        if not other.host:
            raise ValueError(f"{node!r} names no host")
        addresses.append(own.with_host(other.host).with_port(other.explicit_port))
    return [text_of(address) for address in addresses]


class OutOfReach(BrokerError):
    """No server answers there by now."""


async def connect(url: str, *, name: str, patience_seconds: float = 0.0) -> Connection:
    """A connection, which does not reconnect by itself.

    `amqps://` speaks TLS; `cafile`, `certfile` and `keyfile` in the URL's query name the files for
    it. Of a cluster (see `addresses_of`), any node will do. Tries for `patience_seconds` while the
    broker is out of reach. Raises `BrokerError`.
    """
    try:
        addresses = addresses_of(url)
    except ValueError as error:
        raise _no_url(url) from error
    deadline = time.monotonic() + patience_seconds
    said = ""
    while True:
        random.shuffle(addresses)  # so that connections spread over the nodes
        *others, last = addresses
        for address in others:
            with contextlib.suppress(BrokerError):  # A node that starts or stops says many things.
                return await _connect_to(address, name)
        try:
            return await _connect_to(last, name)
        except OutOfReach as error:
            if time.monotonic() >= deadline:
                raise
            why = f"{printable(last)}: {error.__cause__}"
            if why != said:
                log.info("waiting for RabbitMQ at %s", why)
                said = why
            await asyncio.sleep(RETRY_SECONDS)


async def _connect_to(url: str, name: str) -> Connection:
    """A connection to one node. Raises `BrokerError`."""
    context = _tls_context(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            return await aio_pika.connect(
                named(url, name),
                ssl_context=context,
                heartbeat=HEARTBEAT_SECONDS,
                connection_class=Connection,
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
        _check_tls(url, error)
        raise OutOfReach(
            f"cannot reach RabbitMQ at {printable(url)}: {str(error) or 'no answer'}; "
            f"start it, or name another broker in AMQP_URL"
        ) from error
    except ValueError as error:
        raise _no_url(url) from error


def _no_url(url: str) -> BrokerError:
    # The error may quote what it could not read, and a password is easily that.
    return BrokerError(
        f"AMQP_URL {printable(url)!r} is no AMQP URL; "
        f"write amqp://user:password@host:port/vhost, with special characters as %XX"
    )


def _tls_context(url: str) -> ssl.SSLContext | None:
    """What TLS takes that the URL asks for; None if it asks for none. Raises `BrokerError`."""
    try:
        parsed = yarl.URL(url)
    except ValueError:
        return None  # connecting will say so
    if parsed.scheme != "amqps":
        return None
    ca, cert, key = (parsed.query.get(name) for name in ("cafile", "certfile", "keyfile"))
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise BrokerError(
            f"cannot use {ca} as the certificates to trust: {error.strerror or error}; "
            f"name a PEM file in AMQP_CA_FILE"
        ) from error
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password="")  # Never ask the terminal for one.
        except OSError as error:
            raise BrokerError(
                f"cannot use {cert} and its key {key or cert} as our certificate: "
                f"{error.strerror or error}; name PEM files in AMQP_CERT_FILE and AMQP_KEY_FILE"
            ) from error
    return context


def _check_tls(url: str, error: BaseException) -> None:
    """Raise `BrokerError` for what waiting does not fix: no TLS there, or a certificate we do not
    trust."""
    cause = error.__cause__
    said = " ".join(map(str, error.args))
    where = f"RabbitMQ at {printable(url)}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        fix = (
            "write the host in AMQP_URL as the certificate has it"
            if cause.verify_code in _OTHER_NAME
            else "name the certificate of its authority in AMQP_CA_FILE"
        )
        raise BrokerError(
            f"{where} shows a certificate that is not trusted: "
            f"{cause.verify_message.rstrip('.')}; {fix}"
        ) from error
    if _NO_CERTIFICATE in said:
        raise BrokerError(
            f"{where} asks for a certificate of ours; name it in AMQP_CERT_FILE"
        ) from error
    if _NO_TLS_THERE in said:
        raise BrokerError(
            f"{where} does not speak TLS on that port; "
            f"name its TLS port, or write amqp:// in AMQP_URL"
        ) from error
