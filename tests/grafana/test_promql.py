"""Queries: names and labels are the metrics' own, what a dashboard's variables choose comes by itself."""

from grafana import promql
from telemetry import names
from telemetry.names import Metric

ASKED = Metric("asked", "counter", "", ("model", "why"))
WAIT = Metric("wait_seconds", "histogram", "", ("gen_ai_request_model", "instance"))


def test_exposed() -> None:
    """Counters end in _total, as /metrics shows them; a histogram's parts in theirs."""
    assert ["asked_total", "wait_seconds", "wait_seconds_bucket"] == [
        promql.exposed(ASKED), promql.exposed(WAIT), promql.exposed(WAIT, "bucket"),
    ]  # fmt: skip


def test_series() -> None:
    """A selector for rules has only what it is given."""
    assert ("asked_total", 'asked_total{why="x"}') == (promql.series(ASKED), promql.series(ASKED, 'why="x"'))


def test_variables() -> None:
    """A dashboard's selector follows the location, and model and instance where the metric knows them."""
    assert 'asked_total{site=~"$location",model=~"$model",why="x"}' == promql.shown(ASKED, 'why="x"')
    assert 'wait_seconds{site=~"$location",gen_ai_request_model=~"$model",instance=~"$instance"}' == promql.shown(WAIT)


def test_rate() -> None:
    """Growth over the interval that Grafana finds right, summed."""
    assert 'sum(rate(asked_total{site=~"$location",model=~"$model"}[$__rate_interval]))' == promql.rate(ASKED)
    assert "sum by (why, model) (rate(" == promql.rate(ASKED, "why", "model")[:26]


def test_gauge() -> None:
    """A gauge is summed as it is."""
    assert 'sum by (priority) (headrace_queue_depth{site=~"$location"})' == promql.gauge(names.QUEUE_DEPTH, "priority")


def test_quantile_and_mean() -> None:
    """Of a histogram's buckets; of its sum and count, by the same labels."""
    chosen = '{site=~"$location",gen_ai_request_model=~"$model",instance=~"$instance"}[$__rate_interval]'
    assert f"histogram_quantile(0.9, sum by (le, a) (rate(wait_seconds_bucket{chosen})))" == promql.quantile(
        0.9, WAIT, "a"
    )
    parts = (f"sum by (a) (rate(wait_seconds_{part}{chosen}))" for part in ("sum", "count"))
    assert " / ".join(parts) == promql.mean(WAIT, "a")
