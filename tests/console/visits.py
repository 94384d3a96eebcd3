"""The addresses that tests of the whole console go through."""

from __future__ import annotations

PAGES = (
    "/",
    "/?at=2030-01-01T00:00:00Z",
    "/messages",
    "/sagas",
    "/letters",
    "/letters?by=letter",
    "/letters/replay",
    "/replays",
    "/stuck",
    "/due",
    "/books",
    "/proof",
    "/services",
    "/audit",
    "/decide",
    "/keys",
)
