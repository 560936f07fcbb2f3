"""A real Prometheus scrapes two locations through an incident: every panel and every rule has something to show."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from grafana import generate, pending, promql
from grafana.live import Prometheus, Span, dashboards, filled, panels
from tests.support.http import eventually
from tests.support.incident import Incident
from tests.support.prometheus import Server

pytestmark = pytest.mark.e2e
SCRAPE = 1  # s
INTERVAL = f"{4 * SCRAPE}s"  # what Grafana takes for $__rate_interval where the step is no longer than a scrape
SILENT = {metric.name for metric in pending.ALL}  # metrics that nothing can show yet: the tuner is not in the proxy
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


def config(folder: Path, targets: dict[str, str]) -> Path:
    """The config that ships, with these targets and in a hurry."""
    shipped = yaml.safe_load((generate.HERE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    shipped["global"] = {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": f"{SCRAPE}s"}
    shipped["rule_files"] = [str(generate.HERE / "prometheus" / path) for path in shipped["rule_files"]]
    (job,) = shipped["scrape_configs"]
    job["static_configs"] = [
        {"targets": [admin.removeprefix("http://")], "labels": {promql.SITE: site}} for site, admin in targets.items()
    ]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(shipped), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The incident, watched; then a few more scrapes."""
    folder = tmp_path_factory.mktemp("incident")
    with ExitStack() as stack:
        incident = Incident(folder, stack)
        targets = {name: location.admin for name, location in incident.locations.items()}
        server = stack.enter_context(Server(config(folder, targets), folder / "data"))
        prometheus = Prometheus(server.url)
        eventually(lambda: 2 == sum(line.points[0][1] for line in prometheus.now("up")), "both are scraped", seconds=20)
        start = time.time()
        incident.run()
        time.sleep(3 * SCRAPE)
        yield Run(prometheus, Span(start, time.time(), SCRAPE))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("query", QUERIES)
def test_panels_have_data(run: Run, query: str) -> None:
    """Every query of every panel gives a number at some time."""
    lines = run.prometheus.over(filled(query, INTERVAL), run.span)
    assert bool(lines) != any(name in query for name in SILENT), query
