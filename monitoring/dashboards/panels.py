"""What the dashboards are made of: panels that say what they show, and what is much of it.

Each has a unit, a description, thresholds, and a word for when there is nothing to show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote

from grafana_foundation_sdk.builders import bargauge, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import common as widgets
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common, dashboard

METRICS: Final = common.DataSourceRef(type_val="prometheus", uid="${metrics}")
TRACE_STORE: Final = "tempo"
"""The plugin that shows traces."""
TAG: Final = "saga"
CHOSEN: Final = 'saga=~"$saga"'
"""Matches the sagas that are chosen."""
HEIGHT: Final = 8
WIDTH: Final = 24

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stat.Panel, bargauge.Panel)


@dataclass(frozen=True, slots=True)
class Query:
    """What Prometheus is asked, and how its answers are called: `{{label}}` is a label's value."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """From `warning` on a value is yellow, from `bad` on red; with neither it is only a figure."""

    warning: float | None = None
    bad: float | None = None

    @property
    def steps(self) -> list[dashboard.Threshold]:
        plain = self.warning is None and self.bad is None
        found = [dashboard.Threshold(value=None, color=BLUE if plain else GREEN)]
        for value, color in ((self.warning, YELLOW), (self.bad, RED)):
            if value is not None:
                found.append(dashboard.Threshold(value=value, color=color))
        return found


FIGURE: Final = Limits()
NONE_IS_RIGHT: Final = Limits(bad=1)


def graph(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    limits: Limits = FIGURE,
    nothing: str = "none",
    stacked: bool = False,
    traces: bool = False,
    width: int = 8,
) -> timeseries.Panel:
    """Values over time, the limits as dashed lines. With `traces`, exemplars lead to traces."""
    panel = (
        timeseries.Panel()
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(False)
        .tooltip(widgets.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .legend(
            widgets.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    if stacked:
        panel.stacking(widgets.StackingConfig().mode(common.StackingMode.NORMAL))
    if len(limits.steps) > 1:
        panel.thresholds_style(
            widgets.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    if traces:
        panel.data_links([_traces_of_that_time()])
    _describe(panel, title, unit, description, limits, nothing, width)
    return _ask(panel, queries, exemplars=traces)


def figure(
    title: str,
    unit: str,
    description: str,
    query: Query,
    *,
    limits: Limits = FIGURE,
    nothing: str = "none",
    width: int = 4,
) -> stat.Panel:
    """One number as it is now, in the colour of its limits, over a sketch of how it was."""
    panel = (
        stat.Panel()
        .color_mode(common.BigValueColorMode.BACKGROUND)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(widgets.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    _describe(panel, title, unit, description, limits, nothing, width)
    panel.height(4)
    return _ask(panel, [query])


def bars(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    limits: Limits = FIGURE,
    nothing: str = "none",
    width: int = 8,
) -> bargauge.Panel:
    """Numbers as they are now, side by side."""
    panel = (
        bargauge.Panel()
        .min(0)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .reduce_options(widgets.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    _describe(panel, title, unit, description, limits, nothing, width)
    return _ask(panel, queries, instant=True)


def page(
    title: str, uid: str, description: str, *variables: builders.QueryVariable
) -> builders.Dashboard:
    """An empty dashboard that knows where metrics and traces are, which sagas are to be shown, and
    its siblings."""
    found = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("metrics").label("Metrics").type("prometheus"))
        .with_variable(builders.DatasourceVariable("traces").label("Traces").type(TRACE_STORE))
        .with_variable(choice("saga", "Saga", "label_values(saga_build_info, saga)"))
        .link(
            builders.DashboardLink("Saga")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
        )
    )
    for variable in variables:
        found.with_variable(variable)
    return found


def choice(name: str, label: str, query: str) -> builders.QueryVariable:
    """A variable with what a query finds, of which one chooses some, or all."""
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(METRICS)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def rows(
    found: builders.Dashboard,
    **panels: Sequence[timeseries.Panel | stat.Panel | bargauge.Panel],
) -> builders.Dashboard:
    """Add panels under headings; an underscore is a space there."""
    for heading, row in panels.items():
        found.with_row(builders.Row(heading.replace("_", " ")))
        for panel in row:
            found.with_panel(panel)
    return found


def _describe(
    panel: AnyPanel,
    title: str,
    unit: str,
    description: str,
    limits: Limits,
    nothing: str,
    width: int,
) -> None:
    panel.title(title).unit(unit).description(description).no_value(nothing)
    panel.datasource(METRICS).height(HEIGHT).span(width)
    panel.thresholds(
        builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(limits.steps)
    )


def _ask(
    panel: AnyPanel, queries: Sequence[Query], *, exemplars: bool = False, instant: bool = False
) -> AnyPanel:
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        target = (
            prometheus.Dataquery()
            .datasource(METRICS)
            .expr(query.expression)
            .legend_format(query.legend or "__auto")
            .ref_id(letter)
        )
        if exemplars:
            target.exemplar(True)
        panel.with_target(target.instant() if instant else target.range())
    return panel


def _traces_of_that_time() -> builders.DashboardLink:
    panes = {
        "traces": {
            "datasource": "${traces}",
            "queries": [{"refId": "A", "queryType": "traceqlSearch", "filters": []}],
            "range": {"from": "${__from}", "to": "${__to}"},
        }
    }
    variables = "${}"  # Grafana's, so they stay as they are
    address = quote(json.dumps(panes, separators=(",", ":")), safe=variables)
    return (
        builders.DashboardLink("Traces of this time")
        .type(dashboard.DashboardLinkType.LINK)
        .url(f"/explore?schemaVersion=1&panes={address}")
    )
