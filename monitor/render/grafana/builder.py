"""A board of panels → Grafana's JSON, by Grafana's own builders. This is the only file that knows them.

The classic form of dashboards (v1), since files and ConfigMaps of it are read by every Grafana; the builders say that v2 is the coming one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitor.render.grafana.panels import Board, Kind, Limits, Panel
from server.metrics import catalogue

TAG = "tidegate"
SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
FIRING = 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
Drawn: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel | heatmap.Panel | table.Panel

SIZES: Mapping[Kind, tuple[int, int]] = {
    Kind.LINES: (8, 8),
    Kind.STACK: (8, 8),
    Kind.STAT: (4, 4),
    Kind.STATES: (8, 8),
    Kind.HEATMAP: (8, 8),
    Kind.TABLE: (24, 8),
}
"""Width, of 24, and height."""
_UNASKED = (
    *(("templating", name) for name in ("auto", "auto_min", "auto_count")),
    *((place, "placement") for place in ("links", "annotations")),
)
"""What the builders write unasked: settings of another type of variable, and a place in a menu where nobody would look for links."""
_LABEL_OF: Mapping[str, str] = {"gpu": catalogue.GPU_AVAILABLE.name}
"""Variables whose values aren't labels of the models' readiness."""


def board_json(board: Board, watched: Iterable[Panel]) -> str:
    """The dashboard as text, the rules' panels in its last row. Equal boards give equal text."""
    written = json.loads(JSONEncoder().encode(_board(board, watched).build()))
    for place, name in _UNASKED:
        for each in written[place]["list"] if place != "links" else written[place]:
            each.pop(name, None)
    return json.dumps(written, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _board(board: Board, watched: Iterable[Panel]) -> builders.Dashboard:
    made = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.tells)
        .tags([TAG])
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .annotation(_alerts())
        .link(_to_others())
    )
    for name in board.variables:
        made = made.with_variable(_variable(name))
    rows = [*board.rows, ("What alerts", tuple(watched))]
    number = 0
    for title, panels in rows:
        if panels:
            number += 1
            made = made.with_row(builders.Row(title).id(number))
        for panel in panels:
            number += 1
            made = made.with_panel(_panel(panel).id(number))
    return made


def _panel(panel: Panel) -> Drawn:
    """What every kind of panel has; the kind's own function draws the rest."""
    width, height = SIZES[panel.kind]
    drawn = _DRAW[panel.kind](panel)
    drawn.title(panel.title).description(_description(panel)).datasource(SOURCE).unit(panel.unit).span(width).height(height)
    drawn.thresholds(_thresholds(panel.limits or Limits(())))
    for index, (expr, legend) in enumerate(panel.asks):
        drawn.with_target(_target(panel.kind, expr, legend).ref_id(chr(ord("A") + index)))
    if panel.to:
        drawn.data_links([_to(panel)])
    return drawn


def _description(panel: Panel) -> str:
    missing = panel.missing
    return f"{panel.tells} No data from this server version for: {', '.join(missing)}." if missing else panel.tells


def _thresholds(limits: Limits) -> builders.ThresholdsConfig:
    steps = [dashboard.Threshold(None, limits.base), *(dashboard.Threshold(value, colour) for value, colour in limits.steps)]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _target(kind: Kind, expr: str, legend: str) -> Dataquery:
    query = Dataquery().datasource(SOURCE).expr(expr).legend_format(legend)
    if kind is Kind.TABLE:
        return query.instant().format(PromQueryFormat.TABLE)
    return query.range().format(PromQueryFormat.HEATMAP if kind is Kind.HEATMAP else PromQueryFormat.TIME_SERIES)


def _lines(panel: Panel) -> Drawn:
    drawn = (
        timeseries.Panel()
        .draw_style(common.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if panel.limits is not None:
        drawn.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    if panel.kind is Kind.STACK:
        drawn.fill_opacity(40).stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    return drawn


def _legend() -> common_builders.VizLegendOptions:
    return (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _stat(panel: Panel) -> Drawn:
    return (
        stat.Panel()
        .color_mode(common.BigValueColorMode.VALUE if panel.limits else common.BigValueColorMode.NONE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    )


def _states(panel: Panel) -> Drawn:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .fill_opacity(70)
        .legend(_legend())
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    )


def _heatmap(panel: Panel) -> Drawn:
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    return heatmap.Panel().calculate(False).color(colours).y_axis(heatmap.YAxisConfig().unit(panel.unit)).cell_gap(1)


def _table(panel: Panel) -> Drawn:
    _, legend = panel.asks[0]
    hidden = {"excludeByName": {"Time": True}, "renameByName": {"Value": legend}, "indexByName": {}}
    return table.Panel().with_transformation(dashboard.DataTransformerConfig("organize", options=hidden))


_DRAW: Mapping[Kind, Callable[[Panel], Drawn]] = {
    Kind.LINES: _lines,
    Kind.STACK: _lines,
    Kind.STAT: _stat,
    Kind.STATES: _states,
    Kind.HEATMAP: _heatmap,
    Kind.TABLE: _table,
}


def _variable(name: str) -> builders.QueryVariable:
    """Every value of a label, all of them chosen."""
    query: dict[str, Any] = {"query": f"label_values({_LABEL_OF.get(name, catalogue.MODEL_READY.name)}, {name})", "refId": name}
    return (
        builders.QueryVariable(name)
        .label("GPU" if name == "gpu" else name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .current(dashboard.VariableOption(text=["All"], value=["$__all"]))
    )


def _alerts() -> builders.AnnotationQuery:
    """Every alert that fires, where it began and as long as it lasts."""
    return (
        builders.AnnotationQuery()
        .name("Alerts")
        .enable(True)
        .icon_color("red")
        .datasource(SOURCE)
        .target(Dataquery().ref_id("alerts").expr(FIRING).interval("15s"))
        .title_format("{{alertname}}")
        .text_format("{{severity}} {{model}} {{instance}}")
    )


def _to_others() -> builders.DashboardLink:
    """The other dashboards, for the same models and the same time."""
    return (
        builders.DashboardLink("tidegate")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .icon("external link")
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )


def _to(panel: Panel) -> builders.DashboardLink:
    """Where a click leads: the model whose line or cell it was."""
    model = "${__data.fields.model}" if panel.kind is Kind.TABLE else "${__field.labels.model}"
    return builders.DashboardLink(f"{panel.to} dashboard").url(f"/d/tidegate-{panel.to}?var-model={model}&${{__url_time_range}}")
