"""What clients are promised, and when breaking it is an alarm: burn rates over two windows each (Google's SRE workbook,
chapter 5).

    failures    99.9 % of requests do not fail by our fault or the engines'
    late        99 % of streams have their first token within a second, the default of `balancing.ttft_target`

A burn rate of 1 spends the whole budget in the SLO's 30 days; 14.4 spends 2 % of it in an hour. The long window says that it
matters, the short one that it still goes on. With next to no traffic a single failure is a large share, hence the guard.
"""

from typing import NamedTuple

from grafana.promql import SITE, over, series
from telemetry import names

Rule = dict[str, object]

# Codes of errors that are not the client's. Left out: spill_refused, for its origin serves that request itself.
FAILED = "overloaded|upstream_error|no_instance|timeout|internal_error|out_of_resources"
FAILED_REQUESTS = series(names.DURATION, f'error_type=~"{FAILED}"', part="count")
JUDGED_REQUESTS = series(names.DURATION, f'error_type=~"|{FAILED}"', part="count")
LATE = 1.0  # s, one of the buckets
EARLY = series(names.TTFT, f'le=~"{LATE:g}|{LATE}"', part="bucket")  # Prometheus 3 writes 1.0, 2 what it is told
STREAMS = series(names.TTFT, part="count")
LEAST = 200  # requests in the long window below which nothing is judged
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


class Burn(NamedTuple):
    """One pair of windows: how fast the budget goes, and what that is worth."""

    rate: float
    long: str
    short: str
    severity: str


BURNS = (
    Burn(14.4, "1h", "5m", "page"),
    Burn(6, "6h", "30m", "page"),
    Burn(3, "1d", "2h", "ticket"),
    Burn(1, "3d", "6h", "ticket"),
)


class Promise(NamedTuple):
    """One SLO."""

    name: str  # in recorded series
    alert: str
    budget: float
    what: str


FAILURES = Promise("headrace_failures", "HeadraceFailsRequests", 0.001, "requests fail")
LATES = Promise("headrace_late_first_tokens", "HeadraceIsLate", 0.01, "first tokens come after more than a second")


def failure_ratio(window: str) -> str:
    """The share of a location's requests that fail; 0 where none does, nothing where nobody asks."""
    failed, judged = (over("rate", selector, window, SITE) for selector in (FAILED_REQUESTS, JUDGED_REQUESTS))
    return f"({failed} or 0 * {judged})\n/ {judged}"


def late_ratio(window: str) -> str:
    """The share of a location's streams whose first token is late."""
    early, streams = (over("rate", selector, window, SITE) for selector in (EARLY, STREAMS))
    return f"1 - {early}\n/ {streams}"


def recorded(promise: Promise, window: str) -> str:
    """The series of a promise's broken share."""
    return f"{SITE}:{promise.name}:ratio_rate{window}"


def traffic(promise: Promise, window: str) -> str:
    """The series of how many requests were judged by it."""
    return f"{SITE}:{promise.name}_judged:increase{window}"


def recording() -> list[Rule]:
    """The shares over all windows, and the traffic over the long ones."""
    rules: list[Rule] = []
    for promise, ratio, judged in ((FAILURES, failure_ratio, JUDGED_REQUESTS), (LATES, late_ratio, STREAMS)):
        rules += ({"record": recorded(promise, window), "expr": ratio(window)} for window in WINDOWS)
        for burn in BURNS:
            grown = over("increase", judged, burn.long, SITE)
            rules.append({"record": traffic(promise, burn.long), "expr": grown})
    return rules


def alerts() -> list[Rule]:
    """One for each promise and pair of windows."""
    return [_alert(promise, burn) for promise in (FAILURES, LATES) for burn in BURNS]


def _alert(promise: Promise, burn: Burn) -> Rule:
    limit = f"{burn.rate:g} * {promise.budget:g}"
    return {
        "alert": promise.alert,
        "expr": (
            f"{recorded(promise, burn.long)} > {limit}\n"
            f"and {recorded(promise, burn.short)} > {limit}\n"
            f"and {traffic(promise, burn.long)} > {LEAST}"
        ),
        "labels": {"severity": burn.severity, "window": burn.long},
        "annotations": {
            "summary": f"{{{{ $labels.{SITE} }}}}: {promise.what}, {burn.rate:g} x the rate that is allowed",
            "description": (
                f"{{{{ $value | humanizePercentage }}}} over {burn.long}, where {promise.budget:.1%} are allowed, "
                f"and it goes on (over {burn.short})."
            ),
            "dashboard": "headrace-overview",
        },
    }  # fmt: skip
