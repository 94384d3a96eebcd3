"""What a console says of dead letters that it could not collect, and of what was done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saga.console import letters
from saga.console.letters import WatchedLetters
from saga.console.pages.audit import _said
from saga.console.watched import Watched
from saga.deployment import Deployment, dead_letters_url_in
from tests.moving import SAGA


async def test_an_error_nobody_foresaw_is_not_taken_for_a_look_at_the_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls={},
        dead_letters_url=dead_letters_url_in(tmp_path),
    ).save(tmp_path)

    def fail(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(letters, "open_desk", fail)
    watched = WatchedLetters(Watched(tmp_path, SAGA))
    await watched.collected()

    assert watched.trouble == "KeyError: 'unforeseen'"
    assert watched.collected_at is None
    await watched.close()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"ok": False, "run": 3}, "ok: no; run: 3"),
        ({"ok": True}, "ok: yes"),
        ({"done": 0, "stopped": None, "letters": [], "note": ""}, ""),
        ({"handled": 1_000, "not examined": 7}, "handled: 1000; not examined: 7"),
    ],
)
def test_what_came_of_it_is_said_no_included(result: dict[str, Any], said: str) -> None:
    assert _said(result) == said
