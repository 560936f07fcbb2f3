"""A Prometheus asked over HTTP, here by a fake that has one answer for each path."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from grafana.live import Line, Prometheus, QueryError, Span, dashboards, filled, panels

SPAN = Span(100.0, 110.0, 1.0)
asked: list[tuple[str, dict[str, list[str]]]] = []
ANSWERS: dict[str, Any] = {
    "query": {"result": [{"metric": {"a": "b"}, "value": [100, "1.5"]}]},
    "query_range": {
        "result": [
            {"metric": {"a": "b"}, "values": [[100, "NaN"], [101, "2"], [102, "+Inf"]]},
            {"metric": {"a": "c"}, "values": [[100, "NaN"]]},
        ]
    },
    "query_exemplars": [{"seriesLabels": {}, "exemplars": [{"labels": {"trace_id": "ab"}, "value": "1"}]}],
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked.append((parts.path, parse_qs(parts.query)))
        known = ANSWERS.get(parts.path.rpartition("/")[2])
        body = json.dumps({"data": known} if known is not None else {"error": "no such thing"}).encode()
        self.send_response(200 if known is not None else 422)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Prometheus(f"http://127.0.0.1:{server.server_address[1]}/")
        server.shutdown()
        thread.join()


def test_now(prometheus: Prometheus) -> None:
    """One point a series."""
    assert [Line({"a": "b"}, [(100.0, 1.5)])] == prometheus.now("up == 1")
    assert [("/api/v1/query", {"query": ["up == 1"]})] == asked


def test_over(prometheus: Prometheus) -> None:
    """Points that are no number do not count, nor do lines that have no others."""
    assert [Line({"a": "b"}, [(101.0, 2.0)])] == prometheus.over("up", SPAN)
    assert [("/api/v1/query_range", {"query": ["up"], "start": ["100.0"], "end": ["110.0"], "step": ["1.0"]})] == asked


def test_exemplars(prometheus: Prometheus) -> None:
    """Their labels."""
    assert [{"trace_id": "ab"}] == prometheus.exemplars("up", SPAN)


def test_a_bad_query(prometheus: Prometheus) -> None:
    """Says what Prometheus said, and what was asked."""
    with pytest.raises(QueryError, match=r"no such thing.*'query': 'x'"):
        prometheus.get("nothing", query="x")


def test_a_bad_url() -> None:
    """Nothing but HTTP."""
    with pytest.raises(ValueError, match="must be http"):
        Prometheus("file:///etc/passwd")


def test_filled() -> None:
    """Every variable of every shipped query has a value; a capture group is none."""
    assert 'rate(a{site=~"ams"}[1m])' == filled(
        'rate(a{site=~"$location"}[$__rate_interval])', "1m", {"location": "ams"}
    )
    for made in dashboards().values():
        for panel in panels(made):
            for target in panel["targets"]:
                assert "$" not in filled(target["expr"], "1m").replace('"$1"', "")


def test_dashboards() -> None:
    """The three that ship."""
    assert ["balance", "overview", "spillover"] == list(dashboards())
