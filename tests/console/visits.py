"""The addresses that tests of the whole console go through."""

from __future__ import annotations

PAGES = (
    "/",
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
    "/keys",
)
