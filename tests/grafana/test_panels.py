"""What dashboards are made of, as Grafana reads it."""

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import panels
from grafana.panels import About, Panel, Query
from telemetry import names

ABOUT = About("Title", "s", "What it tells.")


def encoded(panel: Panel) -> Any:
    return json.loads(json.dumps(panel.build(), cls=JSONEncoder))


def test_graph() -> None:
    """Its queries have letters, legends and exemplars; it says what it is."""
    made = encoded(panels.graph(ABOUT, Query("a", "one", exemplar=True), Query("b", "two"), span=6, stacked=True))
    assert ("timeseries", "Title", "What it tells.") == (made["type"], made["title"], made["description"])
    assert [("A", "a", "one", True), ("B", "b", "two", False)] == [
        (t["refId"], t["expr"], t["legendFormat"], t["exemplar"]) for t in made["targets"]
    ]
    assert {"type": "prometheus", "uid": "${datasource}"} == made["datasource"] == made["targets"][0]["datasource"]
    defaults = made["fieldConfig"]["defaults"]
    assert ("s", "normal", 6) == (defaults["unit"], defaults["custom"]["stacking"]["mode"], made["gridPos"]["w"])


def test_figure() -> None:
    """One number; its colours begin where they are told to, and only those that are told."""
    steps = encoded(panels.figure(ABOUT, Query("a", ""), warn=1, alarm=5))["fieldConfig"]["defaults"]["thresholds"][
        "steps"
    ]
    assert [(None, "green"), (1, "orange"), (5, "red")] == [(step["value"], step["color"]) for step in steps]
    plain = encoded(panels.figure(ABOUT, Query("a", "")))["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [None] == [step["value"] for step in plain]


def test_states() -> None:
    """Values have names and colours."""
    made = encoded(panels.states(ABOUT, Query("a", "{{b}}"), {0: ("ready", "green"), 2: ("down", "red")}))
    assert "state-timeline" == made["type"]
    options = made["fieldConfig"]["defaults"]["mappings"][0]["options"]
    assert {"0": ("ready", "green"), "2": ("down", "red")} == {k: (v["text"], v["color"]) for k, v in options.items()}


def test_percentiles() -> None:
    """Three quantiles, the exemplars once."""
    assert [("p50", True), ("p95", False), ("p99", False)] == [
        (query.legend, query.exemplar) for query in panels.percentiles(names.TTFT)
    ]


def test_board() -> None:
    """Rows and panels have numbers of their own, a row's panels stand side by side, four variables choose."""
    two = [panels.graph(ABOUT, Query("a", ""), span=12), panels.graph(ABOUT, Query("b", ""), span=12)]
    made = json.loads(json.dumps(panels.board("uid", "Name", "Why?", {"Row": two}), cls=JSONEncoder))
    assert ("uid", "Headrace / Name", "Why?") == (made["uid"], made["title"], made["description"])
    assert [(1, "row", 0, 0), (2, "timeseries", 0, 1), (3, "timeseries", 12, 1)] == [
        (p["id"], p["type"], p["gridPos"]["x"], p["gridPos"]["y"]) for p in made["panels"]
    ]
    assert ["datasource", "location", "model", "instance"] == [v["name"] for v in made["templating"]["list"]]
