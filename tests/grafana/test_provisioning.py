"""What Grafana is provisioned with: both data sources, which lead to each other, and the dashboards."""

import re
from typing import Any

import yaml

from grafana import generate, promql
from telemetry import names
from tests.support.metrics import METRIC, known

FOLDER = generate.HERE / "provisioning"


def source(name: str) -> Any:
    """A data source's part of its file."""
    return yaml.safe_load((FOLDER / "datasources" / f"{name}.yaml").read_text(encoding="utf-8"))["datasources"][0]


def test_exemplars_lead_to_traces() -> None:
    """Prometheus's exemplars carry the trace id under the name by which Grafana asks Jaeger."""
    prometheus = source("prometheus")
    assert [("trace_id", source("jaeger")["uid"])] == [
        (to["name"], to["datasourceUid"]) for to in prometheus["jsonData"]["exemplarTraceIdDestinations"]
    ]


def test_traces_lead_to_metrics() -> None:
    """A span's location chooses the series; the queries name metrics that exist."""
    jaeger = source("jaeger")["jsonData"]["tracesToMetrics"]
    assert source("prometheus")["uid"] == jaeger["datasourceUid"]
    assert [(names.LOCATION, promql.SITE)] == [(tag["key"], tag["value"]) for tag in jaeger["tags"]]
    for query in jaeger["queries"]:
        assert set() == set(METRIC.findall(query["query"])) - known()
        assert "{$$__tags" in query["query"]
        assert "$" not in query["query"].replace("$$", ""), "Grafana would look into its environment"


def test_grafana_knows_the_scrape_interval() -> None:
    """The data source's interval is Prometheus's, so that rates have the samples they need."""
    scraped = yaml.safe_load((generate.HERE / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert scraped["global"]["scrape_interval"] == source("prometheus")["jsonData"]["timeInterval"]


def test_dashboards_are_found() -> None:
    """One provider, of files, in a folder that whoever starts Grafana names."""
    made = yaml.safe_load((FOLDER / "dashboards" / "headrace.yaml").read_text(encoding="utf-8"))["providers"]
    assert [("file", "${HEADRACE_DASHBOARDS}")] == [(one["type"], one["options"]["path"]) for one in made]


def test_compose() -> None:
    """What is mounted exists, versions are named, and the dashboards are where Grafana is told to look."""
    services = yaml.safe_load((generate.HERE / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert {"prometheus", "jaeger", "grafana"} == set(services)
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        for mount in service.get("volumes", []):
            assert not mount.startswith("./") or (generate.HERE / mount.split(":")[0]).is_dir(), mount
    grafana = services["grafana"]
    assert f"./dashboards:{grafana['environment']['HEADRACE_DASHBOARDS']}:ro" in grafana["volumes"]
    assert "--enable-feature=exemplar-storage" in services["prometheus"]["command"]
