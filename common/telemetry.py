"""Logs on standard error."""

from __future__ import annotations

import logging


def configure_logging(participant: str, level: str) -> None:
    """Log to standard error, one line each."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s {participant} %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # aio-pika reports each lost connection on several loggers; ours say what follows from it.
    for noisy in ("aio_pika", "aiormq", "httpx", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
