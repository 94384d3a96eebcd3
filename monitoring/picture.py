"""Draw the dashboards from their own JSON and a Prometheus that has data, one SVG file each.

    .venv/bin/python -m monitoring.picture http://127.0.0.1:9090 --minutes 5 docs/dashboards

For the documents, and for a look where there is no Grafana: same panels, queries, units, limits and
places. Grafana draws them in more detail.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from monitoring.dashboards.__main__ import FOLDER
from saga.text import in_xml

POINTS: Final = 60
"""Per line."""
LINES_MAX: Final = 5
"""Named in a legend; the others are drawn and counted."""
COLUMN, ROW, GAP, HEAD = 50, 30, 6, 34
WIDTH: Final = 24 * COLUMN
INK, PAPER, CARD, FAINT = "#d8d9da", "#111217", "#1b1c21", "#6e7078"
COLOURS: Final = {
    "green": "#3d9a50",
    "yellow": "#c99a14",
    "red": "#c4334a",
    "blue": "#3568b5",
}
PALETTE: Final = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42",
    "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its name, and its values over time, None where there is none."""

    name: str
    values: tuple[float | None, ...]

    @property
    def last(self) -> float | None:
        return next((value for value in reversed(self.values) if value is not None), None)

    @property
    def most(self) -> float:
        return max((value for value in self.values if value is not None), default=0.0)


class Source:
    """Asks Prometheus what Grafana would ask, over the `seconds` until `end`."""

    def __init__(self, api: httpx.Client, *, end: float, seconds: float) -> None:
        self._api = api
        self._step = seconds / POINTS
        self._end = end
        self._start = end - seconds
        self._variables = {
            "__rate_interval": f"{max(4, round(4 * self._step))}s",
            "__range": f"{round(seconds)}s",
            **dict.fromkeys(("saga", "participant", "vhost"), ".*"),
        }

    def lines(self, panel: dict[str, Any]) -> list[Line]:
        """The panel's series, in the order of its queries."""
        return [line for target in panel["targets"] for line in self._ask(target)]

    def _ask(self, target: dict[str, Any]) -> list[Line]:
        expression = target["expr"]
        for name, value in self._variables.items():
            expression = re.sub(rf"\${name}\b", value, expression)
        asked = {"query": expression, "start": self._start, "end": self._end, "step": self._step}
        if target.get("instant"):
            asked = {"query": expression, "start": self._end, "end": self._end, "step": 1}
        answer = self._api.get("/api/v1/query_range", params=asked)
        answer.raise_for_status()
        return [self._line(target, series) for series in answer.json()["data"]["result"]]

    def _line(self, target: dict[str, Any], series: dict[str, Any]) -> Line:
        def label(found: re.Match[str]) -> str:
            return str(series["metric"].get(found[1], ""))

        name = re.sub(r"{{(\w+)}}", label, target["legendFormat"]).strip()
        values: list[float | None] = [None] * (POINTS + 1)
        for at, text in series["values"]:
            value = float(text)
            place = round((float(at) - self._start) / self._step)
            values[min(place, POINTS)] = value if math.isfinite(value) else None
        return Line("" if name == "__auto" else name, tuple(values))


def picture(dashboard: dict[str, Any], source: Source) -> str:
    """The dashboard as an SVG document."""
    panels = dashboard["panels"]
    height = HEAD + max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * ROW + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        f'<text x="10" y="23" font-size="17">{in_xml(dashboard["title"])}</text>',
    ]
    for panel in panels:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN, HEAD + place["y"] * ROW
        width, tall = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        drawn = _row(panel) if panel["type"] == "row" else _card(panel, source, width, tall)
        parts.append(f'<g transform="translate({x + GAP // 2} {y})">{drawn}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _row(panel: dict[str, Any]) -> str:
    return f'<text x="6" y="17" font-size="13" fill="{INK}">{in_xml(panel["title"])}</text>'


def _card(panel: dict[str, Any], source: Source, width: int, height: int) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    lines = [line for line in source.lines(panel) if line.last is not None]
    if not lines:
        body = (
            f'<text x="{width / 2}" y="{height / 2 + 6}" text-anchor="middle" fill="{FAINT}" '
            f'font-size="16">{in_xml(defaults["noValue"])}</text>'
        )
    elif panel["type"] == "stat":
        body = _figure(lines[0], defaults, width, height)
    elif panel["type"] == "bargauge":
        body = _bars(lines, defaults, width, height)
    else:
        body = _graph(lines, panel, width, height)
    return (
        f"<title>{in_xml(panel['description'])}</title>"
        f'<rect width="{width}" height="{height}" rx="3" fill="{CARD}"/>{body}'
        f'<text x="8" y="16" font-weight="bold">{in_xml(panel["title"])}</text>'
    )


def _figure(line: Line, defaults: dict[str, Any], width: int, height: int) -> str:
    value = line.last or 0.0
    top = line.most or 1.0
    sketch = _path(line.values, (0, height * 0.55, width, height * 0.4), top)
    return (
        f'<rect width="{width}" height="{height}" rx="3" fill="{_colour(value, defaults)}"/>'
        f'<path d="{sketch}" fill="none" stroke="white" stroke-opacity="0.35"/>'
        f'<text x="{width / 2}" y="{height / 2 + 16}" text-anchor="middle" font-size="26" '
        f'fill="white">{_text(value, defaults["unit"])}</text>'
    )


def _bars(lines: Sequence[Line], defaults: dict[str, Any], width: int, height: int) -> str:
    shown = lines[:8]
    top = max(line.last or 0.0 for line in shown) or 1.0
    each = (height - 30) / len(shown)
    parts: list[str] = []
    for number, line in enumerate(shown):
        value = line.last or 0.0
        y = 26 + number * each
        length = max(1.0, (width - 210) * value / top)
        parts.append(
            f'<text x="8" y="{y + each / 2 + 4:.0f}">{in_xml(line.name)}</text>'
            f'<rect x="150" y="{y + 3:.0f}" width="{length:.0f}" height="{max(4, each - 6):.0f}" '
            f'fill="{_colour(value, defaults)}"/>'
            f'<text x="{156 + length:.0f}" y="{y + each / 2 + 4:.0f}">'
            f"{_text(value, defaults['unit'])}</text>"
        )
    return "".join(parts)


def _graph(lines: Sequence[Line], panel: dict[str, Any], width: int, height: int) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    named = sorted(lines, key=lambda line: -line.most)[:LINES_MAX]
    drawn = _stack(lines) if stacked else list(lines)
    limits = [step for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    most = max(line.most for line in drawn)
    if most == 0 and limits:
        most = limits[0]["value"]  # so that one sees how far away it is
    top = _nice(most, 1024 if defaults["unit"] == "bytes" else 10)
    area = (58.0, 28.0, width - 68.0, height - 48.0 - 14 * len(named))
    left, above, wide, tall = area
    parts: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = above + tall * (1 - share)
        parts.append(
            f'<path d="M{left:.0f} {y:.0f}h{wide:.0f}" stroke="{FAINT}" stroke-opacity="0.3"/>'
            f'<text x="{left - 6:.0f}" y="{y + 4:.0f}" text-anchor="end" fill="{FAINT}">'
            f"{_text(top * share, defaults['unit'])}</text>"
        )
    for step in limits:
        if step["value"] <= top:
            y = above + tall * (1 - step["value"] / top)
            parts.append(
                f'<path d="M{left:.0f} {y:.1f}h{wide:.0f}" stroke="{COLOURS[step["color"]]}" '
                f'stroke-dasharray="5 4"/>'
            )
    for number, line in enumerate(drawn):
        colour = PALETTE[number % len(PALETTE)]
        parts.append(
            f'<path d="{_path(line.values, area, top)}" fill="none" stroke="{colour}" '
            f'stroke-width="1.4"/>'
        )
    for number, line in enumerate(named):
        colour = PALETTE[list(lines).index(line) % len(PALETTE)]
        y = above + tall + 20 + 14 * number
        more = f" (and {len(lines) - len(named)} more)" if number == len(named) - 1 else ""
        more = more if len(lines) > len(named) else ""
        said = f"{line.name}: {_text(line.last or 0.0, defaults['unit'])}{more}"
        parts.append(
            f'<rect x="{left:.0f}" y="{y - 5:.0f}" width="12" height="3" fill="{colour}"/>'
            f'<text x="{left + 18:.0f}" y="{y:.0f}">{in_xml(said)}</text>'
        )
    return "".join(parts)


def _stack(lines: Sequence[Line]) -> list[Line]:
    """Each line on top of the ones before it."""
    below = [0.0] * (POINTS + 1)
    found: list[Line] = []
    for line in lines:
        below = [sum_ + (value or 0.0) for sum_, value in zip(below, line.values, strict=True)]
        found.append(Line(line.name, tuple(below)))
    return found


def _path(
    values: Sequence[float | None], area: tuple[float, float, float, float], top: float
) -> str:
    left, above, wide, tall = area
    parts: list[str] = []
    pen = "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        x = left + wide * number / POINTS
        y = above + tall * (1 - max(0.0, value) / top)
        parts.append(f"{pen}{x:.0f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def _nice(top: float, base: int) -> float:
    """The next round number, which an axis may end at."""
    if top <= 0:
        return 1.0
    power: float = float(base) ** math.floor(math.log(top, base))
    steps = (1.0, 2.0, 2.5, 5.0, 10.0) if base == 10 else [2.0**n for n in range(11)]
    return next(step * power for step in steps if step * power >= top * 0.999)


def _colour(value: float, defaults: dict[str, Any]) -> str:
    steps = defaults["thresholds"]["steps"]
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return COLOURS[reached[-1]["color"]]


def _text(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes":
            power = min(4, int(math.log2(value) // 10)) if value >= 1 else 0
            return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
        case "s" if value >= 1 or value == 0:
            return f"{value:.3g} s"
        case "s" if value >= 0.001:
            return f"{value * 1e3:.3g} ms"
        case "s":
            return f"{value * 1e6:.3g} µs"
        case _:
            number = f"{value / 1000:.3g} K" if value >= 10_000 else f"{value:.4g}"
            return number + {"reqps": " /s", "mps": " /s", "ops": " /s"}.get(unit, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--minutes", type=float, default=5.0, help="how much time they show")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=arguments.prometheus, timeout=30, trust_env=False) as api:
        source = Source(api, end=time.time(), seconds=arguments.minutes * 60)
        for path in sorted(FOLDER.glob("*.json")):
            drawn = picture(json.loads(path.read_text(encoding="utf-8")), source)
            (arguments.folder / f"{path.stem}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
