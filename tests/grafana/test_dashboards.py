"""The dashboards as they ship: what the generator makes, complete, and asking only for what there is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafana import generate
from telemetry import names
from tests.support.metrics import METRIC, known

GENERATED = generate.generated()
DASHBOARDS = {path.stem: json.loads(text) for path, text in GENERATED.items() if path.suffix == ".json"}
SHOWN = [
    pytest.param(panel, id=f"{name}: {panel['title']}") for name in DASHBOARDS for panel in DASHBOARDS[name]["panels"]
]
PANELS = [shown for shown in SHOWN if shown.values[0]["type"] != "row"]
TIMED = {metric.name for metric in (names.TTFT, names.DURATION, names.TPOT, names.OVERHEAD)}


def strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize(("path", "text"), [pytest.param(*item, id=item[0].name) for item in GENERATED.items()])
def test_files_are_generated(path: Path, text: str) -> None:
    """The files are what `python -m grafana.generate` writes."""
    assert text == path.read_text(encoding="utf-8"), "run python -m grafana.generate"


def test_no_other_dashboards() -> None:
    """Nothing lies beside them that no one generates."""
    assert {path for path in GENERATED if path.suffix == ".json"} == set((generate.HERE / "dashboards").iterdir())


@pytest.mark.parametrize("panel", PANELS)
def test_panels_are_complete(panel: Any) -> None:
    """Unit, title, description, a data source that can be chosen, a legend for more than one line."""
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["title"]
    assert re.search(r"[.?!]$", panel["description"])
    assert "${datasource}" == panel["datasource"]["uid"]
    assert panel["targets"]
    if panel["type"] != "stat":
        assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_queries_name_what_exists(panel: Any) -> None:
    """Metrics are those of `telemetry.names`; growth is over Grafana's own interval; every variable is one of ours."""
    for target in panel["targets"]:
        asked = target["expr"]
        assert set() == set(METRIC.findall(asked)) - known()
        assert set(re.findall(r"\[(.*?)\]", asked)) <= {"$__rate_interval"}
        assert set(re.findall(r"\$(\w+)", asked)) - {"1"} <= {"location", "model", "instance", "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS)
def test_latencies_have_exemplars(panel: Any) -> None:
    """A graph of what clients wait for leads to the traces behind it."""
    if panel["type"] == "timeseries" and panel["fieldConfig"]["defaults"]["unit"] == "s":
        asked = [target for target in panel["targets"] if any(name in target["expr"] for name in TIMED)]
        assert not asked or any(target["exemplar"] for target in asked)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards(name: str) -> None:
    """Each has an address of its own, says what it answers, and has panels that lie beside, not upon each other."""
    made = DASHBOARDS[name]
    assert f"headrace-{name}" == made["uid"]
    assert made["description"].endswith("?")
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    taken = set()
    for place in (panel["gridPos"] for panel in made["panels"]):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert set() == taken & cells
        taken |= cells


def test_variables_ask_for_what_exists() -> None:
    """The variables' own queries, too."""
    for made in DASHBOARDS.values():
        assert set() == set(METRIC.findall(" ".join(strings(made["templating"])))) - known()
