"""OpenTelemetry's own variables: whatever they say, a program starts, or ends in one line."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk import environment_variables

from saga.runtime import tracing
from saga.runtime.settings import SettingsError

VARIABLES = sorted(
    value
    for value in vars(environment_variables).values()
    if isinstance(value, str) and value.startswith("OTEL_") and value != tracing.ENDPOINT
)
SECRET = "hush"


@pytest.fixture(autouse=True)
def tracing_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:1/")
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.0)
    yield
    tracing.stop()


def start() -> str:
    """Why it cannot; nothing if it can."""
    try:
        tracing.start("test")
    except SettingsError as error:
        return str(error)
    finally:
        tracing.stop()
    return ""


def test_a_queue_that_is_shorter_than_a_batch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")

    refusal = start()

    assert "max_queue_size" in refusal
    assert "OTEL_BSP_MAX_QUEUE_SIZE" in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize("value", ["abc", "-1", "0", "", SECRET + " no header"])
def test_no_value_of_any_variable_ends_in_a_traceback(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            refusal = start()
        assert name in refusal or not refusal
        assert "\n" not in refusal
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_token_in_a_header_that_cannot_be_read_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Authorization: Bearer {SECRET}")
    caplog.set_level(logging.WARNING)

    assert start() == ""

    assert "OTEL_EXPORTER_OTLP_HEADERS" in caplog.text
    assert SECRET not in caplog.text


def test_the_test_knows_opentelemetry_s_variables() -> None:
    assert len(VARIABLES) > 30
    assert importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
