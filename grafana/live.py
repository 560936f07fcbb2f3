"""The dashboards' queries, asked of a Prometheus that runs."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 30.0  # a query may take
EVERYTHING = {"location": ".*", "model": ".*", "instance": ".*"}


class Span(NamedTuple):
    """A stretch of time, Unix seconds, and how far apart its points are."""

    start: float
    end: float
    step: float


class Line(NamedTuple):
    """One series: its labels, and its points as time and value."""

    labels: Mapping[str, str]
    points: list[tuple[float, float]]


class QueryError(Exception):
    """Prometheus does not take the query."""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        """Raises ValueError unless `url` is http(s)://..."""
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"the URL must be http://HOST:PORT, got {url!r}")
        self._url = url.rstrip("/")

    def get(self, path: str, **parameters: str | float) -> Any:
        """An answer's data; raises QueryError, or OSError if nobody answers."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 (checked above)
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryError(f"{error.read().decode(errors='replace')[:500]}: {parameters}") from None

    def now(self, query: str) -> list[Line]:
        """What a query gives at this moment."""
        return [
            Line(row["metric"], [(float(row["value"][0]), float(row["value"][1]))])
            for row in self.get("query", query=query)["result"]
        ]

    def over(self, query: str, span: Span) -> list[Line]:
        """What it gave over time; points that are no number are left out, and lines without any."""
        found = self.get("query_range", query=query, start=span.start, end=span.end, step=span.step)["result"]
        lines = []
        for row in found:
            points = [(float(at), float(value)) for at, value in row["values"] if math.isfinite(float(value))]
            if points:
                lines.append(Line(row["metric"], points))
        return lines

    def exemplars(self, query: str, span: Span) -> list[Mapping[str, str]]:
        """The labels of the exemplars behind it."""
        found = self.get("query_exemplars", query=query, start=span.start, end=span.end)
        return [exemplar["labels"] for row in found for exemplar in row["exemplars"]]


def dashboards() -> dict[str, Any]:
    """Those that ship, by name."""
    folder = Path(__file__).parent / "dashboards"
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def panels(dashboard: Any) -> Iterator[Any]:
    """All but the rows' titles."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def filled(expression: str, interval: str, variables: Mapping[str, str] = EVERYTHING) -> str:
    """A panel's query with its variables' values; `interval`: what Grafana would take for $__rate_interval."""
    expression = expression.replace("$__rate_interval", interval)
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    return expression
