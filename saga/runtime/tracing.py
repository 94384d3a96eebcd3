"""One trace per saga, through OpenTelemetry.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set; OpenTelemetry's SDK is not even imported then. Its
other variables are as it documents them: sampler, limits, names, headers. No provider is registered
for the whole process, so libraries that would record spans of their own stay silent.

A trace's id follows from what the saga is about (`saga.envelope.trace_id_of`), so it is the same
for its HTTP requests, its timers, its retries and its replays. What an event carries is the context
of the reaction that decided on it, *captured* when the event was written to the outbox; the span of
publishing it, which may be another process's after a crash, is *linked* to that.

Names and attributes are those of the semantic conventions for HTTP and messaging:
https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from pydantic_core import from_json

from saga.envelope import Envelope, trace_id_of, w3c_trace
from saga.runtime.messaging.frames import Delivery, Posting, Properties, properties_in
from saga.runtime.settings import SettingsError
from saga.version import DISTRIBUTION, engine_version

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Link, Span, SpanKind

log = logging.getLogger(__name__)

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
FLUSH_SECONDS: Final = 3.0
"""How long a process that ends may take to hand over what it has recorded."""

_QUOTES_HEADERS: Final = "opentelemetry.util.re"
"""The logger that quotes a header it cannot read, which may hold a token."""
_STATUS: Final = "http.response.status_code"
_NOTHING: Final = nullcontext()

Attributes = Mapping[str, str | int]


class Tracing:
    """Makes the spans of one process. Safe to use from any thread."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        """`processor` gets the spans, and is closed in the end."""
        # Only where tracing is on: this takes a tenth of a second, and memory.
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        subject: ContextVar[str | None] = ContextVar("subject", default=None)

        class Ids(RandomIdGenerator):
            """A root's trace id is its subject's."""

            def generate_trace_id(self) -> int:
                about = subject.get()
                return int(trace_id_of(about), 16) if about else random.getrandbits(128)

        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME") or service,
                "service.namespace": "saga",
                "service.version": engine_version(),
                "service.instance.id": str(uuid4()),
            }
        )
        self._subject = subject
        self._context = context
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=resource, id_generator=Ids(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(DISTRIBUTION, engine_version())

    def close(self) -> None:
        """Hand over what was recorded, for `FLUSH_SECONDS` at most; then nothing more is."""
        # In a thread of its own: the SDK's time limits do not hold while no collector takes the
        # spans.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)

    # --- what the kernel does ------------------------------------------------------------------

    def here(self) -> Context:
        """Where a span that is started later, or in another thread, belongs."""
        return self._context.get_current()

    def reaction(
        self, participant: str, reaction: str, envelope: Envelope[Any], parent: Context
    ) -> Span:
        """A reaction to a message, up to its commit. One that is never ended is never told of."""
        attributes = {
            "saga.participant": participant,
            "saga.reaction": reaction,
            **_about(envelope),
        }
        name = f"{participant}.{reaction}"
        if self._trace.get_current_span(parent).get_span_context().is_valid:
            return self._start(name, self._trace.SpanKind.INTERNAL, attributes, parent)
        return self._root(name, self._trace.SpanKind.INTERNAL, attributes, envelope.subject)

    def end(self, span: Span, error: Exception | None = None) -> None:
        """The reaction's decision is committed, or will not be, because of `error`."""
        if error is not None:
            self._fail(span, error)
        span.end()

    def traceparent_of(self, span: Span) -> str:
        """The span's context, as W3C Trace Context writes it down."""
        context = span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @contextmanager
    def asking(self, question: str, reaction: Span) -> Iterator[None]:
        """A call to the outside that a reaction has decided on."""
        parent = self._trace.set_span_in_context(reaction)
        span = self._start(question, self._trace.SpanKind.CLIENT, {}, parent)
        with self._current(span):
            yield

    # --- what comes in and goes out ------------------------------------------------------------

    @contextmanager
    def request(self, route: str, subject: str, caller: str | None, status: int) -> Iterator[None]:
        """An HTTP request about a saga, `POST /trips` for instance, with its status if nothing is
        raised. The trace is the saga's; the caller's is linked."""
        method, _, path = route.partition(" ")
        attributes = {"http.request.method": method, "http.route": path, "saga.subject": subject}
        links = self._links(caller)
        span = self._root(route, self._trace.SpanKind.SERVER, attributes, subject, links)
        with self._current(span):
            yield
            span.set_attribute(_STATUS, status)

    @contextmanager
    def process(
        self,
        queue: str,
        delivery: Delivery,
        subject: str,
        creator: str | None,
        attempts: int,
    ) -> Iterator[None]:
        """A delivery that has failed so often before, from its decoding to its being settled.
        `creator` is the context in which the message was created."""
        exchange, key = delivery.exchange, delivery.routing_key
        destination = f"{exchange}:{key}:{queue}" if exchange else queue
        attributes = {
            **_messaging("process", destination, key, delivery.body, delivery.properties),
            "messaging.operation.type": "process",
            "saga.attempts": attempts,
        }
        kind, links = self._trace.SpanKind.CONSUMER, self._links(creator)
        name = f"process {destination}"
        if creator is not None and creator[3:35] == trace_id_of(subject):
            span = self._start(name, kind, attributes, self._extract(creator), links)
        else:  # Its sender has a trace of its own.
            span = self._root(name, kind, attributes, subject, links)
        with self._current(span):
            yield

    @contextmanager
    def send(self, exchange: str, posting: Posting) -> Iterator[None]:
        """Publishing a message, up to the broker's confirm."""
        creator, key = _creator_of(posting.body), posting.routing_key
        destination = f"{exchange}:{key}" if exchange else key
        attributes = {
            **_messaging(
                "publish", destination, key, posting.body, properties_in(posting.properties)
            ),
            "messaging.operation.type": "send",
        }
        links = self._links(creator)
        parent = self.here()
        if not self._trace.get_current_span(parent).get_span_context().is_valid:
            parent = self._extract(creator)
        span = self._start(
            f"publish {destination}", self._trace.SpanKind.CLIENT, attributes, parent, links
        )
        with self._current(span):
            yield

    def fail(self, error: BaseException) -> None:
        """The current span ends with this error, although nothing is raised."""
        self._fail(self._trace.get_current_span(), error)

    # --- parts ---------------------------------------------------------------------------------

    def _start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parent: Context,
        links: list[Link] | None = None,
    ) -> Span:
        return self._tracer.start_span(
            name, parent, kind=kind, attributes=dict(attributes), links=links
        )

    def _root(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        subject: str,
        links: list[Link] | None = None,
    ) -> Span:
        token = self._subject.set(subject)
        try:
            return self._start(name, kind, attributes, self._context.Context(), links)
        finally:
            self._subject.reset(token)

    @contextmanager
    def _current(self, span: Span) -> Iterator[None]:
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            self._fail(span, error)
            raise
        finally:
            self._context.detach(token)
            span.end()

    def _fail(self, span: Span, error: BaseException) -> None:
        status = getattr(error, "status", None)  # an HTTP answer: an error only if it is ours
        if isinstance(status, int):
            span.set_attribute(_STATUS, status)
            if status < 500:
                return
        kind = type(error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        span.set_status(self._trace.StatusCode.ERROR, str(error))

    def _extract(self, traceparent: str | None) -> Context:
        carrier = {"traceparent": traceparent} if traceparent else {}
        return self._propagator.extract(carrier, self._context.Context())

    def _links(self, traceparent: str | None) -> list[Link]:
        linked = self._trace.get_current_span(self._extract(traceparent)).get_span_context()
        return [self._trace.Link(linked)] if linked.is_valid else []


active: Tracing | None = None
"""This process's tracing, if it is on."""


def start(service: str) -> None:
    """Turn tracing on if the environment says so. Once in a process. Raises `SettingsError` for
    variables that OpenTelemetry cannot use."""
    global active
    if active is None and os.environ.get(ENDPOINT):
        with _settings_checked():
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            tracing = Tracing(service, BatchSpanProcessor(OTLPSpanExporter()))
        active = tracing


class _Complaints(logging.Handler):
    """Keeps what OpenTelemetry logs about its variables."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _settings_checked() -> Iterator[None]:
    """Raises `SettingsError` for a variable that OpenTelemetry refuses, by whatever exception, or
    logs an error about, with a traceback; what it only warns of is a warning of ours."""
    complaints = _Complaints()
    theirs = logging.getLogger("opentelemetry")
    theirs.addHandler(complaints)
    propagated, theirs.propagate = theirs.propagate, False
    try:
        yield
    except Exception as error:  # Several kinds, and of modules that it calls private.
        raise _unusable(str(error) or type(error).__name__) from error
    finally:
        theirs.propagate = propagated
        theirs.removeHandler(complaints)
    for record in complaints.records:
        if record.levelno >= logging.ERROR:
            raise _unusable(record.getMessage())
        if record.name == _QUOTES_HEADERS:
            log.warning("OTEL_EXPORTER_OTLP_HEADERS: a header is not name=value, URL-encoded")
        else:
            log.warning("OpenTelemetry: %s", record.getMessage())


def _unusable(why: str) -> SettingsError:
    variables = sorted(name for name in os.environ if name.startswith("OTEL_"))
    return SettingsError(
        f"OpenTelemetry cannot be set up: {why}; correct what is wrong of {', '.join(variables)}"
    )


def stop() -> None:
    """Turn it off, and hand over what was recorded. Blocks for `FLUSH_SECONDS` at most."""
    global active
    if active is not None:
        active.close()
        active = None


def request(
    route: str, subject: str, caller: str | None, *, status: int
) -> AbstractContextManager[None]:
    """See `Tracing.request`; does nothing where tracing is off."""
    return _NOTHING if active is None else active.request(route, subject, caller, status)


def process(
    queue: str,
    delivery: Delivery,
    subject: str,
    creator: str | None = None,
    attempts: int = 0,
) -> AbstractContextManager[None]:
    """See `Tracing.process`; does nothing where tracing is off."""
    if active is None:
        return _NOTHING
    return active.process(queue, delivery, subject, creator, attempts)


def asking(question: str, reaction: Span | None) -> AbstractContextManager[None]:
    """See `Tracing.asking`; does nothing where the reaction was not recorded."""
    if active is None or reaction is None:
        return _NOTHING
    return active.asking(question, reaction)


def send(exchange: str, posting: Posting) -> AbstractContextManager[None]:
    """See `Tracing.send`; does nothing where tracing is off."""
    return _NOTHING if active is None else active.send(exchange, posting)


def _about(envelope: Envelope[Any]) -> Attributes:
    return {"saga.subject": envelope.subject, "saga.message.type": envelope.type}


def _creator_of(body: bytes) -> str | None:
    """The context that a message carries, if it is one of ours."""
    try:
        document = from_json(body)
    except ValueError:
        return None
    return w3c_trace(document.get("traceparent")) if isinstance(document, dict) else None


def _messaging(
    operation: str, destination: str, key: str, body: bytes, properties: Properties
) -> Attributes:
    attributes: dict[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.destination.name": destination,
        "messaging.message.body.size": len(body),
    }
    if key:
        attributes["messaging.rabbitmq.destination.routing_key"] = key
    if properties.message_id:
        attributes["messaging.message.id"] = properties.message_id
    if properties.correlation_id:
        attributes["messaging.message.conversation_id"] = properties.correlation_id
    return attributes
