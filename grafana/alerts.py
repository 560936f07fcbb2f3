"""Alerts by cause, beside those of `slo`: a page where nobody is served, else a ticket."""

from typing import NamedTuple

from grafana.promql import SITE, over, series
from grafana.slo import Rule
from telemetry import names
from telemetry.names import Metric


class Cause(NamedTuple):
    """One alert. `limit` is the comparison, apart so that a test can ask for the value alone."""

    alert: str
    value: str
    limit: str
    lasts: str
    severity: str
    summary: str
    description: str
    dashboard: str


def _p(share: float, metric: Metric) -> str:
    buckets = over("rate", series(metric, part="bucket"), "5m", SITE, "le")
    return f"histogram_quantile({share}, {buckets})"


def _grown(metric: Metric, *matchers: str) -> str:
    return over("increase", series(metric, *matchers), "15m", SITE)


def _service() -> list[Cause]:
    ready = series(names.STATE, 'state="ready"')
    return [
        Cause(
            "HeadraceDown", 'up{job="headrace"}', "== 0", "1m", "page",
            "{{ $labels.site }}: Headrace's admin address does not answer",
            "Its agent is gone, or all of it. Workers go on without an agent; `headrace status` and the log say more.",
            "headrace-overview",
        ),
        Cause(
            "HeadraceServesNot", f"sum by ({SITE}, model) ({ready})", "== 0", "1m", "page",
            "{{ $labels.site }}: no instance of {{ $labels.model }} is ready",
            "All are down or ejected. What another location can take goes there.",
            "headrace-balance",
        ),
        Cause(
            "HeadraceInstanceOut", f"max by ({SITE}, model, instance) ({ready})", "== 0", "15m", "ticket",
            "{{ $labels.site }}: {{ $labels.instance }} is out",
            "It is down or ejected since a quarter of an hour; /api/state tells its problem.",
            "headrace-balance",
        ),
        Cause(
            "HeadraceQueues", _p(0.95, names.QUEUE_WAIT), "> 5", "10m", "ticket",
            "{{ $labels.site }}: requests wait for {{ $value | humanizeDuration }}",
            "p95 of the time in the queue: the location needs more engines, or others that can take its work.",
            "headrace-overview",
        ),
        Cause(
            "HeadraceRetryBudgetSpent", over("rate", series(names.BUDGET_EXHAUSTED), "5m", SITE), "> 0", "5m", "ticket",
            "{{ $labels.site }}: failed attempts are no longer tried elsewhere",
            "Retries are a fifth of all requests: not one engine fails, but many.",
            "headrace-overview",
        ),
        Cause(
            "HeadracePeerLost", f"min by ({SITE}, location) ({names.PEER_UP.name})", "== 0", "5m", "ticket",
            "{{ $labels.site }} does not hear {{ $labels.location }}",
            "Nothing is sent there meanwhile. The mesh's failures tell why.",
            "headrace-spillover",
        ),
    ]  # fmt: skip


def _own() -> list[Cause]:
    lost = f"({_grown(names.DROPPED)} or 0 * {_grown(names.REQUESTS)}) / {_grown(names.REQUESTS)}"
    unsent, spans = _grown(names.SPANS, 'state=~"failed|dropped"'), _grown(names.SPANS)
    return [
        Cause(
            "HeadraceLoopLags", _p(0.99, names.LAG), "> 0.1", "10m", "ticket",
            "{{ $labels.site }}: workers are {{ $value | humanizeDuration }} late",
            "Their event loops have too much to do: more workers, or more cores.",
            "headrace-overview",
        ),
        Cause(
            "HeadraceConfigRejected", f"min by ({SITE}) ({names.RELOAD_SUCCESS.name})", "== 0", "5m", "ticket",
            "{{ $labels.site }}: the last reload failed",
            "The config before it is in force. `headrace check` tells every problem.",
            "headrace-overview",
        ),
        Cause(
            "HeadraceRecordsLost", lost, "> 0.01", "5m", "ticket",
            "{{ $labels.site }}: records of requests are lost",
            "{{ $value | humanizePercentage }} of them: metrics, traces and the tuner do not see all that happens.",
            "headrace-overview",
        ),
        Cause(
            "HeadraceSpansLost", f"({unsent} or 0 * {spans}) / {spans}", "> 0.01", "15m", "ticket",
            "{{ $labels.site }}: spans do not reach the backend",
            "{{ $value | humanizePercentage }} of them: it is away, or too slow.",
            "headrace-overview",
        ),
    ]  # fmt: skip


def causes() -> list[Cause]:
    """All of them."""
    return [*_service(), *_own()]


def alerts() -> list[Rule]:
    """As Prometheus has them."""
    return [
        {
            "alert": cause.alert,
            "expr": f"{cause.value} {cause.limit}",
            "for": cause.lasts,
            "labels": {"severity": cause.severity},
            "annotations": {
                "summary": cause.summary, "description": cause.description, "dashboard": cause.dashboard,
            },
        }
        for cause in causes()
    ]  # fmt: skip
