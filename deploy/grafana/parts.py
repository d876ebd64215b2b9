"""What the four dashboards are made of: queries, panels, variables, links, annotations.

Thin words over grafana-foundation-sdk, so that a dashboard reads as a table of contents. Read by the dashboards' files
beside this one. A query must return a series on a quiet, healthy relay too (no `> 0` filters, but for annotations): an
empty panel looks like a broken one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as forms
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECT = 'job=~"$job",instance=~"$instance"'
LISTENER = f'{SELECT},listener=~"$listener"'
RECEIVER = f'{SELECT},receiver=~"$receiver"'
EXPORTER = f'{SELECT},exporter=~"$exporter"'

DASHBOARDS = {
    "overview": ("samplicator-overview", "Samplicator / Overview"),
    "exporter": ("samplicator-exporter", "Samplicator / Exporter"),
    "receiver": ("samplicator-receiver", "Samplicator / Receiver"),
    "fleet": ("samplicator-fleet", "Samplicator / Fleet"),
}
"""Name of the file: uid and title."""

Query = tuple[str, str]
"""PromQL, and the legend."""


# ---- PromQL


def rate(metric: str, select: str, by: str = "") -> str:
    """Per second, summed by labels, or of all."""
    inner = f"rate({metric}{{{select}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(metric: str, share: float, by: str = "le") -> str:
    return f"histogram_quantile({share}, {rate(metric + '_bucket', SELECT, by)})"


# ---- panels


def _targets(panel: Any, queries: Sequence[Query], *, as_table: bool = False) -> Any:
    for place, (expr, legend) in enumerate(queries):
        target = (
            prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + place)).datasource(SOURCE)
        )
        panel = panel.with_target(target.format(PromQueryFormat.TABLE).instant() if as_table else target.range())
    return panel


def _panel(builder: Any, title: str, description: str, width: int, height: int) -> Any:
    return builder.title(title).description(description).datasource(SOURCE).span(width).height(height)


def _steps(*steps: tuple[float | None, str]) -> Any:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _limits(red_above: float | None, red_below: float | None) -> Any:
    if red_below is not None:
        return _steps((None, "red"), (red_below, "green"))
    return _steps((None, "green"), *([] if red_above is None else [(red_above, "red")]))


def _words(mappings: Sequence[tuple[str, str, str]]) -> list[Any]:
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=place)
        for place, (value, text, color) in enumerate(mappings)
    }
    return [models.ValueMap(options=options)] if options else []


def lines(title: str, unit: str, queries: Sequence[Query], description: str, *, width: int = 8, height: int = 8) -> Any:
    """Curves over time."""
    panel = _panel(timeseries.Panel(), title, description, width, height).unit(unit).min(0)
    legend = common.VizLegendOptions().display_mode(forms.LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(forms.TooltipDisplayMode.MULTI).sort(forms.SortOrder.DESCENDING)
    return _targets(
        panel.draw_style(forms.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(10)
        .show_points(forms.VisibilityMode.NEVER)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .legend(legend.placement(forms.LegendPlacement.BOTTOM).show_legend(True).calcs([]))
        .tooltip(tooltip),
        queries,
    )


def number(
    title: str,
    unit: str,
    expr: str,
    description: str,
    *,
    width: int = 4,
    red_above: float | None = None,
    red_below: float | None = None,
    mappings: Sequence[tuple[str, str, str]] = (),
) -> Any:
    """One value, large. mappings: (value, text, color) for a state."""
    panel = _panel(stat.Panel(), title, description, width, 4).unit(unit).mappings(_words(mappings))
    return _targets(
        panel.thresholds(_limits(red_above, red_below))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(forms.BigValueColorMode.VALUE)
        .graph_mode(forms.BigValueGraphMode.NONE if mappings else forms.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)),
        [(expr, "")],
    )


def bars(title: str, unit: str, queries: Sequence[Query], description: str, *, width: int = 12, height: int = 8) -> Any:
    """A bar for each series, by its last value."""
    panel = _panel(bargauge.Panel(), title, description, width, height).unit(unit).min(0)
    return _targets(
        panel.orientation(forms.VizOrientation.HORIZONTAL)
        .display_mode(forms.BarGaugeDisplayMode.BASIC)
        .thresholds(_steps((None, "blue")))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)),
        queries,
    )


def states(
    title: str,
    queries: Sequence[Query],
    description: str,
    *,
    mappings: Sequence[tuple[str, str, str]],
    width: int = 24,
    height: int = 6,
) -> Any:
    """A colored band for each series. mappings: (value, text, color)."""
    panel = _panel(statetimeline.Panel(), title, description, width, height).mappings(_words(mappings))
    legend = common.VizLegendOptions().display_mode(forms.LegendDisplayMode.LIST)
    return _targets(
        panel.show_value(forms.VisibilityMode.AUTO)
        .merge_values(True)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_steps((None, "text")))
        .legend(legend.placement(forms.LegendPlacement.BOTTOM).show_legend(False).calcs([])),
        queries,
    )


def rows_of(
    title: str,
    columns: Sequence[tuple[str, str, str]],
    description: str,
    *,
    labels: Sequence[tuple[str, str]],
    mappings: Sequence[tuple[str, str, str]] = (),
    link: tuple[str, str, str] | None = None,
    width: int = 24,
    height: int = 8,
) -> Any:
    """A table with the value of each query now. columns: (PromQL, heading, unit). labels: (label, heading), in order.
    mappings: of the values of the first column. link: (label, title, URL) of the cells with that label.
    """
    panel = _panel(table.Panel(), title, description, width, height)
    panel = _targets(panel, [(expr, "") for expr, _, _ in columns], as_table=True)
    names = ["Value"] if len(columns) == 1 else [f"Value #{chr(ord('A') + place)}" for place in range(len(columns))]
    values = {name: heading for name, (_, heading, _) in zip(names, columns, strict=True)}
    order = [label for label, _ in labels] + list(values)
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={})).with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(order)},
                "renameByName": {**dict(labels), **values},
            },
        )
    )
    for place, (_, heading, unit) in enumerate(columns):
        properties = [models.DynamicConfigValue(id_val="unit", value=unit)]
        if mappings and place == 0:
            properties.append(models.DynamicConfigValue(id_val="mappings", value=_words(mappings)))
            properties.append(models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
        panel = panel.override_by_name(heading, properties)
    if link is not None:
        label, text, url = link
        target = {"title": text, "url": url, "targetBlank": False}
        panel = panel.override_by_name(dict(labels)[label], [models.DynamicConfigValue(id_val="links", value=[target])])
    return panel


# ---- the dashboard around them


def variable(name: str, query: str, *, label: str = "", multi: bool = True) -> Any:
    """Chosen above the panels; everything at first."""
    every = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        dashboard.QueryVariable(name)
        .label(label or name.capitalize())
        .datasource(SOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi)
        .include_all(True)
        .all_value(".+")
        .current(every)
    )


TARGETS = (
    variable("job", "label_values(samplicator_build_info, job)"),
    variable("instance", 'label_values(samplicator_build_info{job=~"$job"}, instance)'),
)
BY_LISTENER = variable("listener", f"label_values(samplicator_receive_datagrams_total{{{SELECT}}}, listener)")
BY_RECEIVER = variable("receiver", f"label_values(samplicator_send_datagrams_total{{{SELECT}}}, receiver)")
BY_EXPORTER = variable("exporter", f"label_values(samplicator_exporter_datagrams_total{{{SELECT}}}, exporter)")


class Annotation(models.AnnotationQuery):
    """With the words for its text, which the SDK's class does not have (Grafana, Prometheus annotations)."""

    title = ""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "step": "15s", "titleFormat": self.title, "textFormat": "", "tagKeys": "job"}


class _Event:
    """Builds an annotation: something has happened where the query returns something."""

    def __init__(self, name: str, expr: str, title: str, color: str) -> None:
        self._made = Annotation(name=name, datasource=SOURCE, enable=True, hide=False, icon_color=color, expr=expr)
        self._made.title = title

    def build(self) -> models.AnnotationQuery:
        return self._made


WINDOW = "[1m]"
"""What an annotation looks back: two scrapes at least."""
EVENTS = (
    _Event(
        "Reloads",
        f"changes(samplicator_config_reloads_total{{{SELECT}}}{WINDOW}) > 0",
        "{{instance}}: reload",
        "blue",
    ),
    _Event(
        "Restarts",
        f"changes(process_start_time_seconds{{{SELECT}}}{WINDOW}) > 0 "
        f"and on (job, instance) samplicator_build_info{{{SELECT}}}",
        "{{instance}}: restart",
        "purple",
    ),
    _Event(
        "State changes",
        f"changes(samplicator_receiver_state{{{SELECT}}}{WINDOW}) > 0 "
        f"and on (job, instance, receiver, state) samplicator_receiver_state{{{SELECT}}} == 1",
        "{{instance}}: receiver {{receiver}} is {{state}}",
        "orange",
    ),
)

Row = tuple[str, Sequence[Any]]


def made(name: str, description: str, variables: Sequence[Any], rows: Sequence[Row]) -> models.Dashboard:
    """The dashboard: rows from top to bottom, panels from left to right, 24 columns."""
    uid, title = DASHBOARDS[name]
    whole = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["samplicator"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .annotations(list(EVENTS))
        .links(
            [
                dashboard.DashboardLink(other.rpartition(" ")[2])
                .type(models.DashboardLinkType.LINK)
                .url(f"/d/{where}")
                .keep_time(True)
                .include_vars(True)
                for where, other in DASHBOARDS.values()
                if where != uid
            ]
        )
    )
    for each in (*TARGETS, *variables):
        whole = whole.with_variable(each)
    for heading, panels in rows:
        whole = whole.with_row(dashboard.Row(heading))
        for panel in panels:
            whole = whole.with_panel(panel)
    result = whole.build()
    result.version = 1
    for place, panel in enumerate(result.panels or (), 1):
        panel.id_val = place
    return result
