"""Alerts by cause."""

import pytest

from grafana import alerts
from grafana.alerts import Cause
from grafana.generate import HERE
from tests.support.metrics import METRIC, known

CAUSES = [pytest.param(cause, id=cause.alert) for cause in alerts.causes()]


@pytest.mark.parametrize("cause", CAUSES)
def test_causes(cause: Cause) -> None:
    """Each asks for what exists, says whom to wake, where it is, and which dashboard shows more."""
    assert set() == set(METRIC.findall(cause.value)) - known()
    assert cause.severity in ("page", "ticket")
    assert "{{ $labels.site }}" in cause.summary
    assert cause.description.endswith(".")
    assert (HERE / "dashboards" / f"{cause.dashboard.removeprefix('headrace-')}.json").exists()


def test_rules() -> None:
    """Prometheus's form: value and limit make the query."""
    first, cause = alerts.alerts()[0], alerts.causes()[0]
    assert ("HeadraceDown", 'up{job="headrace"} == 0') == (first["alert"], first["expr"])
    assert cause.lasts == first["for"]
    assert len({rule["alert"] for rule in alerts.alerts()}) == len(alerts.causes())
