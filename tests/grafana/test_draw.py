"""Dashboards as pictures. tests/grafana/test_prometheus.py draws them from a real Prometheus."""

import math
import sys
from pathlib import Path

import pytest

from grafana import draw
from grafana.live import Line, Prometheus, Span, dashboards

SPAN = Span(1000.0, 1100.0, 10.0)


class Fake(Prometheus):
    """Has the same two lines for every query, the second with a gap; or none."""

    def __init__(self, empty: bool = False) -> None:
        super().__init__("http://unused")
        self.empty = empty

    def over(self, query: str, span: Span) -> list[Line]:
        points = [(at, float(index % 2)) for index, at in enumerate(range(1000, 1100, 10))]
        return [] if self.empty else [Line({"instance": "b"}, points), Line({"instance": "a"}, points[:3] + points[6:])]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0"), (0.0123, "s", "12.3 ms"), (2.5, "s", "2.5 s"), (4e-6, "s", "4 us"), (0.125, "percentunit", "12.5 %"),
        (1234, "short", "1.23k"), (12, "reqps", "12/s"), (2.5e6, "suffix: tok/s", "2.5M tok/s"), (0.5, "short", "0.5"),
    ],
)  # fmt: skip
def test_number(value: float, unit: str, text: str) -> None:
    """Values are written in their unit."""
    assert text == draw.number(value, unit)


def test_legend() -> None:
    """Labels take their places."""
    assert "ams/a100 p50" == draw.legend("{{site}}/{{instance}} p50", {"site": "ams", "instance": "a100"})


def test_asked() -> None:
    """Lines come by name, so that colours stay the same; times count from the start; no name is the panel's."""
    panel = {"title": "T", "targets": [{"expr": "x", "legendFormat": "{{instance}}"}]}
    found = draw.asked(panel, Fake(), SPAN, "1m")
    assert ["a", "b"] == [name for name, _ in found]
    assert 0.0 == found[0][1].points[0][0]
    panel["targets"] = [{"expr": "x", "legendFormat": ""}]
    assert "T" == draw.asked(panel, Fake(), SPAN, "1m")[0][0]


def test_gaps() -> None:
    """Where points are missing the line breaks."""
    times, values = draw._gaps(Line({}, [(0.0, 1.0), (10.0, 2.0), (50.0, 3.0)]), SPAN)
    assert [0.0, 10.0, 50.0, 50.0] == times
    assert [False, False, True, False] == [math.isnan(value) for value in values]


@pytest.mark.parametrize("empty", [False, True])
def test_draw(empty: bool) -> None:
    """Each panel has its title and either its graph or a word that there is nothing."""
    for dashboard in dashboards().values():
        figure = draw.draw(dashboard, Fake(empty), SPAN, "1m")
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        panels = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
        assert set(panels) <= set(texts)
        assert (len(panels) if empty else 0) == texts.count("nothing yet")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws all of them into the folder it is given."""
    monkeypatch.setattr(draw, "Prometheus", lambda url: Fake())
    monkeypatch.setattr(sys, "argv", ["draw", "--folder", str(tmp_path), "--seconds", "60"])
    draw.main()
    assert {"overview.png", "balance.png", "spillover.png"} == {path.name for path in tmp_path.iterdir()}
