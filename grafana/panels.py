"""What dashboards are made of: panels with unit, title and description, the variables, the frame."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model

from grafana import promql
from telemetry import names
from telemetry.names import Metric

SOURCE = model.DataSourceRef("prometheus", "${datasource}")
ROW_WIDTH, HEIGHT = 24, 8
PERCENTILES = (0.5, 0.95, 0.99)
NOTHING_YET = "nothing yet"
Panel = timeseries.Panel | stat.Panel | statetimeline.Panel


class Query(NamedTuple):
    """One query of a panel; `exemplar`: with the traces behind it."""

    expression: str
    legend: str
    exemplar: bool = False


class About(NamedTuple):
    """What a panel says of itself; `unit` is Grafana's name of it."""

    title: str
    unit: str
    description: str


def percentiles(metric: Metric, where: tuple[str, ...] = ()) -> list[Query]:
    """A histogram's p50, p95 and p99; the exemplars come once, with the first."""
    return [
        Query(promql.quantile(share, metric, where=where), f"p{share * 100:g}", share == PERCENTILES[0])
        for share in PERCENTILES
    ]


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    made = []
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE)
        made.append(target.expr(query.expression).legend_format(query.legend).range().exemplar(query.exemplar))
    return made


def graph(about: About, *queries: Query, span: int = 8, stacked: bool = False) -> timeseries.Panel:
    """Lines over time; stacked where they add up to something."""
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    panel = timeseries.Panel().title(about.title).unit(about.unit).description(about.description).datasource(SOURCE)
    panel.targets([*_targets(queries)]).span(span).height(HEIGHT).min(0).no_value(NOTHING_YET)
    panel.legend(legend.placement(kinds.LegendPlacement.BOTTOM).show_legend(True)).tooltip(tooltip)
    panel.line_width(1).fill_opacity(30 if stacked else 6).show_points(kinds.VisibilityMode.NEVER)
    return panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)) if stacked else panel


def figure(about: About, query: Query, *, warn: float = 0, alarm: float = 0, span: int = 4) -> stat.Panel:
    """One number with its history behind it; it changes colour from `warn` and from `alarm` on."""
    steps = [model.Threshold(None, "green")]
    steps += [model.Threshold(value, colour) for value, colour in ((warn, "orange"), (alarm, "red")) if value]
    panel = stat.Panel().title(about.title).unit(about.unit).description(about.description).datasource(SOURCE)
    panel.targets([*_targets([query])]).span(span).height(4).no_value(NOTHING_YET)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).graph_mode(kinds.BigValueGraphMode.AREA)
    return panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))


def states(about: About, query: Query, meaning: Mapping[int, tuple[str, str]], span: int = 8) -> statetimeline.Panel:
    """A band for each series; `meaning`: what a value is called, and its colour."""
    options = {
        str(value): model.ValueMappingResult(text, colour, index=index)
        for index, (value, (text, colour)) in enumerate(meaning.items())
    }
    panel = statetimeline.Panel().title(about.title).unit(about.unit).description(about.description)
    panel.datasource(SOURCE).targets([*_targets([query])]).span(span).height(HEIGHT).no_value(NOTHING_YET)
    return panel.mappings([model.ValueMap(options)]).show_value(kinds.VisibilityMode.NEVER).fill_opacity(80)


def _choice(name: str, label: str, query: str, description: str) -> dashboard.QueryVariable:
    every = model.VariableOption(selected=True, text="All", value="$__all")
    variable = dashboard.QueryVariable(name).label(label).description(description).datasource(SOURCE).query(query)
    variable.multi(True).include_all(True).all_value(".*").current(every)
    return variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    here = f'{promql.SITE}=~"$location"'
    models = promql.series(names.WEIGHT, here)
    instances = promql.series(names.WEIGHT, here, 'model=~"$model"')
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return [
        source.description("The Prometheus that scrapes Headrace"),
        _choice("location", "Location", f"label_values({names.CONFIG_INFO.name}, {promql.SITE})", "Whose requests"),
        _choice("model", "Model", f"label_values({models}, model)", "By the name that clients ask for"),
        _choice("instance", "Instance", f"label_values({instances}, instance)", "An engine, by its name in the config"),
    ]


def board(uid: str, title: str, description: str, rows: Mapping[str, Sequence[Panel]]) -> model.Dashboard:
    """A dashboard of titled rows. Panels are numbered in their order."""
    made = dashboard.Dashboard(f"Headrace / {title}").uid(uid).description(description).tags(["headrace"])
    made.time("now-1h", "now").refresh("30s").tooltip(model.DashboardCursorSync.CROSSHAIR)
    made.variables([*_variables()])
    others = dashboard.DashboardLink("Headrace").type(model.DashboardLinkType.DASHBOARDS).tags(["headrace"])
    made.link(others.include_vars(True).keep_time(True).as_dropdown(False))
    number = 0
    for name, panels in rows.items():
        number += 1
        made.with_row(dashboard.Row(name).id(number))
        for panel in panels:
            number += 1
            made.with_panel(panel.id(number))
    return made.build()
