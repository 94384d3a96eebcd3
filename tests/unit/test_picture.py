"""The pictures of the dashboards are drawn from what Prometheus says, and from nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from monitoring.dashboards.__main__ import FOLDER
from monitoring.picture import POINTS, Source, picture

SECONDS = 60.0
END = 1_000_000.0
DASHBOARDS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.json"))]


def source(result: list[dict[str, Any]]) -> Source:
    """A Prometheus that answers everything with that."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = request.url.params["query"]
        assert "$" not in asked
        assert float(request.url.params["end"]) == END
        return httpx.Response(200, json={"data": {"result": result}})

    api = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://prometheus")
    return Source(api, end=END, seconds=SECONDS)


def steady(value: str) -> list[dict[str, Any]]:
    step = SECONDS / POINTS
    values = [[END - SECONDS + number * step, value] for number in range(POINTS + 1)]
    return [{"metric": {"participant": "order"}, "values": values}]


@pytest.mark.parametrize("path", DASHBOARDS)
def test_without_data_each_panel_says_so(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    drawn = picture(dashboard, source([]))

    words = [panel["fieldConfig"]["defaults"]["noValue"] for panel in panels(dashboard)]
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(drawn).iter(TEXT)]  # noqa: S314 - just drawn
    assert sorted(text for text in texts if text in words) == sorted(words)
    assert "<path" not in drawn


@pytest.mark.parametrize("path", DASHBOARDS)
def test_what_is_no_number_is_not_drawn(path: Path) -> None:
    drawn = picture(json.loads(path.read_text()), source(steady("NaN")))

    assert "<path" not in drawn


def test_a_value_is_written_in_its_unit_and_coloured_by_its_limits() -> None:
    dashboard = json.loads((FOLDER / "saga-overview.json").read_text())
    late = next(panel for panel in panels(dashboard) if panel["title"] == "Late, last hour")
    alone = {"title": "", "panels": [late]}

    assert ">0.05 %<" in picture(alone, source(steady("0.0005")))
    assert ">5 %<" in (bad := picture(alone, source(steady("0.05"))))
    assert colours(bad) - colours(picture(alone, source(steady("0.0005"))))


TEXT = "{http://www.w3.org/2000/svg}text"


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def colours(drawn: str) -> set[str]:
    return set(re.findall(r'fill="(#\w+)"', drawn))
