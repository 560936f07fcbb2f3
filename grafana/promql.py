"""Queries from the metrics' own definitions: names, labels and the dashboard's variables come out right by themselves.

Most metrics do not say which location they are of, and in some `location` is another one: the chosen one, a peer. So
Prometheus puts a label of its own, `site`, on all it scrapes from a location.
"""

from telemetry.names import Metric

SITE = "site"
RANGE = "$__rate_interval"
_VARIABLES = {"model": "model", "gen_ai_request_model": "model", "instance": "instance"}


def exposed(metric: Metric, part: str = "") -> str:
    """The name that /metrics shows; `part`: `bucket`, `sum` or `count` of a histogram."""
    part = part or ("total" if metric.kind == "counter" else "")
    return f"{metric.name}_{part}" if part else metric.name


def series(metric: Metric, *matchers: str, part: str = "") -> str:
    """A selector without variables."""
    return exposed(metric, part) + ("{" + ",".join(matchers) + "}" if matchers else "")


def shown(metric: Metric, *matchers: str, part: str = "") -> str:
    """A selector of what the dashboard's variables choose."""
    chosen = [f'{label}=~"${_VARIABLES[label]}"' for label in metric.labels if label in _VARIABLES]
    return series(metric, f'{SITE}=~"$location"', *chosen, *matchers, part=part)


def total(expression: str, *by: str) -> str:
    """The sum by these labels."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def over(function: str, selector: str, window: str, *by: str) -> str:
    """A range's rate or increase, summed."""
    return total(f"{function}({selector}[{window}])", *by)


def rate(metric: Metric, *by: str, where: tuple[str, ...] = (), part: str = "") -> str:
    """A counter's growth a second, summed."""
    return over("rate", shown(metric, *where, part=part), RANGE, *by)


def gauge(metric: Metric, *by: str, where: tuple[str, ...] = ()) -> str:
    """A gauge, summed."""
    return total(shown(metric, *where), *by)


def quantile(share: float, metric: Metric, *by: str, where: tuple[str, ...] = ()) -> str:
    """A histogram's quantile."""
    return f"histogram_quantile({share}, {rate(metric, 'le', *by, where=where, part='bucket')})"


def mean(metric: Metric, *by: str, where: tuple[str, ...] = ()) -> str:
    """A histogram's mean."""
    return f"{rate(metric, *by, where=where, part='sum')} / {rate(metric, *by, where=where, part='count')}"
