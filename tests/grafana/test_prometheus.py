"""A real Prometheus scrapes two locations through an incident: every panel and every rule has something to show."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from grafana import draw, generate, promql, slo
from grafana.live import Prometheus, Span, dashboards, filled, panels
from telemetry import names
from tests.support.http import eventually
from tests.support.incident import SECONDS, Incident, Ports, ports
from tests.support.prometheus import Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
SCRAPE = 1  # s
INTERVAL = f"{4 * SCRAPE}s"  # what Grafana takes for $__rate_interval where the step is no longer than a scrape
SILENT = {names.TUNER_ROLLBACKS.name}  # a weight is set back after two windows of 30 s in which waits grew, not sooner
QUERIES = [
    pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
    for name, made in dashboards().items()
    for panel in panels(made)
    for target in panel["targets"]
]
RULES = [
    rule
    for path in sorted((generate.HERE / "prometheus" / "rules").iterdir())
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


class Run(NamedTuple):
    """What happened, and who saw it."""

    prometheus: Prometheus
    span: Span


def config(folder: Path, targets: dict[str, Ports]) -> Path:
    """The config that ships, with these targets and in a hurry."""
    shipped = yaml.safe_load((generate.HERE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    shipped["global"] = {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": f"{SCRAPE}s"}
    shipped["rule_files"] = [str(generate.HERE / "prometheus" / path) for path in shipped["rule_files"]]
    (job,) = shipped["scrape_configs"]
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{ports.admin}"], "labels": {promql.SITE: site}} for site, ports in targets.items()
    ]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The incident, watched; then a few more scrapes."""
    folder = tmp_path_factory.mktemp("incident")
    with ExitStack() as stack:
        targets = ports()
        server = stack.enter_context(Server(config(folder, targets), folder / "data"))
        prometheus = Prometheus(server.url)
        incident = Incident(folder, stack, targets)
        eventually(lambda: 2 == sum(line.points[0][1] for line in prometheus.now("up")), "both are scraped", seconds=20)
        start = time.time()
        incident.run()
        time.sleep(3 * SCRAPE)
        yield Run(prometheus, Span(start, time.time(), SCRAPE))


@pytest.mark.parametrize("query", QUERIES)
def test_panels_have_data(run: Run, query: str) -> None:
    """Every query of every panel gives a number at some time."""
    lines = run.prometheus.over(filled(query, INTERVAL), run.span)
    assert bool(lines) != any(name in query for name in SILENT), query


@pytest.mark.parametrize("rule", [pytest.param(rule, id=rule["record"]) for rule in RULES if "record" in rule])
def test_recordings_have_data(run: Run, rule: Any) -> None:
    """Every recorded series is there, of both locations, and its rule gives the same."""
    assert {"ams", "lhr"} == {line.labels[promql.SITE] for line in run.prometheus.now(rule["record"])}
    assert {"ams", "lhr"} == {line.labels[promql.SITE] for line in run.prometheus.over(rule["expr"], run.span)}


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=f"{rule['alert']} {rule['labels']}") for rule in RULES if "alert" in rule]
)
def test_alerts_have_data(run: Run, rule: Any) -> None:
    """Every alert's query compares something, whether it is too much or not."""
    always = re.sub(r" (==|>) ", r" \1 bool ", rule["expr"])
    assert always != rule["expr"]
    assert run.prometheus.over(always, run.span)


def test_what_burns_is_told(run: Run) -> None:
    """In ams more failed, and more was late, than any budget allows: its alerts fire by all pairs of windows."""
    firing = run.prometheus.now('ALERTS{alertstate="firing"}')
    seen = {
        (line.labels["alertname"], line.labels["window"]) for line in firing if line.labels.get(promql.SITE) == "ams"
    }
    assert {(promise.alert, burn.long) for promise in (slo.FAILURES, slo.LATES) for burn in slo.BURNS} <= seen


@pytest.mark.parametrize("metric", [names.TTFT, names.DURATION, names.OVERHEAD], ids=lambda metric: metric.name)
def test_exemplars_name_traces(run: Run, metric: names.Metric) -> None:
    """Latencies lead to traces, by the name of which the data source is told."""
    exemplars = run.prometheus.exemplars(promql.exposed(metric, "bucket"), run.span)
    assert exemplars
    assert all(re.fullmatch("[0-9a-f]{32}", labels["trace_id"]) for labels in exemplars)


def test_pictures(run: Run, tmp_path: Path) -> None:
    """The dashboards can be drawn; HEADRACE_PICTURES=grafana keeps them where the README shows them."""
    folder = Path(os.environ.get("HEADRACE_PICTURES") or tmp_path)
    drawn = draw.save(folder, run.prometheus, run.span._replace(end=run.span.start + SECONDS + 2), INTERVAL)
    assert {f"{name}.png" for name in dashboards()} == {path.name for path in drawn}
    for path in drawn:
        assert 20_000 < path.stat().st_size < 250_000, path.name
