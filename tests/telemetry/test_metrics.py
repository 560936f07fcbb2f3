"""Metrics: every name is there, every record is counted once, labels stay bounded."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from telemetry import names
from telemetry.metrics import MOST_VALUES, OTHER, Bounded, Metrics, Sample, percentile
from telemetry.record import Record
from tests.support.records import MS, START, attempt, record, refusal

ROOT = Path(__file__).parents[2]
KEY = re.compile(r'"(headrace_[a-z_]+_total)\|([^"]*)"')
CHAT = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "llama", "location": "ams"}


class Scraped:
    """A registry with metrics, and what a scrape of it says."""

    def __init__(self, gauges: Iterable[Sample] = ()) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, lambda: gauges)

    def observe(self, *records: Record) -> "Scraped":
        for one in records:
            self.metrics.observe(one)
        return self

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Value by name and labels, as a Prometheus would read the text."""
        families = text_string_to_metric_families(generate_latest(self.registry).decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels.items())))

    def openmetrics(self) -> str:
        generate: Callable[[CollectorRegistry], bytes] = generate_openmetrics
        return generate(self.registry).decode()


def test_every_metric_is_exposed() -> None:
    """All names stand in a scrape of their kind, with their help, even before anything happened."""
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(Scraped().registry).decode())}
    expected = {metric.name: (metric.kind, metric.help) for metric in names.ALL}
    found = {name: (f.type, f.documentation) for name, f in families.items()}
    assert expected == found


def test_names_are_sound() -> None:
    """Ours begin with headrace_, labels are bare words, histograms alone have buckets, and those rise."""
    for metric in names.ALL:
        assert re.fullmatch(r"(headrace|gen_ai_server)_[a-z_]+", metric.name), metric.name
        assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
        assert (metric.kind == "histogram") == bool(metric.buckets), metric.name
        assert sorted(set(metric.buckets)) == list(metric.buckets)


def counter_keys() -> set[tuple[str, str]]:
    """Every counter key, or its beginning, that stands in the workers' sources: metric and label values."""
    sources = [path.read_text() for package in ("proxy", "balancer") for path in (ROOT / package).rglob("*.py")]
    return {found for source in sources for found in KEY.findall(source)}


def test_workers_count_what_has_a_name() -> None:
    """A key without a metric would be dropped in silence; a metric without a key would stay at nothing."""
    assert {f"{metric.name}_total" for metric in names.COUNTED} == {name for name, _ in counter_keys()}


def test_keys_fill_the_labels() -> None:
    """A key gives a value for each label, colons between them."""
    labels = {f"{metric.name}_total": len(metric.labels) for metric in names.COUNTED}
    for name, values in counter_keys():
        assert labels[name] == len(values.split(":")), (name, values)


def test_every_name_stands_once() -> None:
    """No two metrics share a name."""
    assert len(names.ALL) == len({metric.name for metric in names.ALL})


def test_stream() -> None:
    """One stream: counted by route and outcome, its times observed, its tokens counted."""
    scraped = Scraped().observe(record())
    chat = {**CHAT, "error_type": ""}
    at = {**chat, "instance": "gpu-1"}
    assert 1 == scraped.value("headrace_requests_total", route="/v1/chat/completions", code="200", outcome="ok")
    assert 0.5 == pytest.approx(scraped.value("gen_ai_server_request_duration_seconds_sum", **chat))
    assert 0.1 == pytest.approx(scraped.value("gen_ai_server_time_to_first_token_seconds_sum", **at))
    assert 0.01 == pytest.approx(scraped.value("gen_ai_server_time_per_output_token_seconds_sum", **at))
    of = {"model": "llama", "tenant_class": "normal"}
    tokens = [scraped.value("headrace_tokens_total", direction=d, **of) for d in ("input", "output", "cached")]
    assert [210, 41, 16] == tokens
    assert 2.05 == pytest.approx(scraped.value("headrace_estimate_error_ratio_sum", model="llama"))
    assert 1 == scraped.value("headrace_decisions_total", policy="p2c", reason="p2c", location="ams")
    assert 0.001 == pytest.approx(scraped.value("headrace_overhead_seconds_sum", phase="before_upstream"))
    assert None is scraped.value("headrace_queue_wait_seconds_count", priority="normal")


def test_time_in_the_queue_is_not_overhead() -> None:
    """A request that waited 30 ms: the wait has its own histogram and is no overhead."""
    times = {"queued": START + MS, "routed": START + 31 * MS, "sent": START + 32 * MS}
    scraped = Scraped().observe(record(**times))
    assert 0.03 == pytest.approx(scraped.value("headrace_queue_wait_seconds_sum", priority="normal"))
    assert 0.002 == pytest.approx(scraped.value("headrace_overhead_seconds_sum", phase="before_upstream"))


def test_time_to_connect_is_not_overhead() -> None:
    """Connecting is the network's time; a retried request says nothing of ours."""
    scraped = Scraped().observe(record(sent=START + 9 * MS, attempts=[attempt(connect_ns=8 * MS)]))
    assert 0.001 == pytest.approx(scraped.value("headrace_overhead_seconds_sum", phase="before_upstream"))
    retried = Scraped().observe(record(attempts=[attempt("gpu-2", outcome="reset"), attempt()]))
    assert None is retried.value("headrace_overhead_seconds_count", phase="before_upstream")


def test_request_that_waited_in_vain() -> None:
    """Shed from the queue: its whole wait is observed, nothing else of an engine."""
    shed = record(
        queued=START + MS, routed=0, sent=0, first_byte=0, first_token=0, last_byte=0, done=START + 11 * MS, attempts=[],
        reason="", outcome="shed", status=429, error="overloaded", output_tokens=0,
    )  # fmt: skip
    scraped = Scraped().observe(shed)
    assert 0.01 == pytest.approx(scraped.value("headrace_queue_wait_seconds_sum", priority="normal"))
    name = "gen_ai_server_request_duration_seconds_count"
    assert 1 == scraped.value(name, **CHAT, error_type="overloaded")


def test_answer_in_one_piece() -> None:
    """Without a stream there is no time to first token, and none per token."""
    name = "gen_ai_server_time_to_first_token_seconds_count"
    assert name not in {key[0] for key in Scraped().observe(record(stream=False, first_token=0)).samples()}


def test_refusal() -> None:
    """A request that was bad is counted, and has no model's times."""
    scraped = Scraped().observe(refusal())
    route = "/v1/chat/completions"
    assert 1 == scraped.value("headrace_requests_total", route=route, code="400", outcome="bad_request")
    assert [] == [key for key in scraped.samples() if key[0] == "gen_ai_server_request_duration_seconds_count"]


def test_exemplars() -> None:
    """OpenMetrics names a trace at the latencies, so that a slow bucket leads to a request."""
    trace = record().trace_id
    lines = [line for line in Scraped().observe(record()).openmetrics().splitlines() if " # {" in line]
    named = {line.partition("{")[0] for line in lines if f'trace_id="{trace}"' in line}
    expected = {f"{metric.name}_bucket" for metric in (names.DURATION, names.TTFT, names.OVERHEAD)}
    assert expected == named


@pytest.mark.parametrize(
    ("key", "name", "labels"),
    [
        ("headrace_parse_rejects_total|obs_fold", "headrace_parse_rejects_total", {"rule": "obs_fold"}),
        ("headrace_retries_total|refused", "headrace_retries_total", {"reason": "refused"}),
        (
            "headrace_stream_interruptions_total|engine:reset",
            "headrace_stream_interruptions_total",
            {"side": "engine", "reason": "reset"},
        ),
        (
            "headrace_stream_interruptions_total|client",
            "headrace_stream_interruptions_total",
            {"side": "client", "reason": ""},
        ),
        ("headrace_records_dropped_total|a:b", "headrace_records_dropped_total", {"reason": "a:b"}),
    ],
)
def test_counters_of_the_workers(key: str, name: str, labels: dict[str, str]) -> None:
    """A worker's counter is added to the metric and labels that its key names."""
    scraped = Scraped()
    scraped.metrics.count(key, 2)
    scraped.metrics.count(key, 3)
    assert 5 == scraped.value(name, **labels)


@pytest.mark.parametrize("key", ["", "headrace_news_total|x", "headrace_requests_total|x", "headrace_retries|x"])
def test_unknown_counters_are_ignored(key: str) -> None:
    """A key that no counter of the workers has changes nothing."""
    scraped = Scraped()
    before = {key for key, value in scraped.samples().items() if value}
    scraped.metrics.count(key, 1)
    assert before == {key for key, value in scraped.samples().items() if value}


def test_counters_never_fall() -> None:
    """An increment below 1 is ignored."""
    scraped = Scraped()
    scraped.metrics.count("headrace_retries_total|reset", -1)
    assert None is scraped.value("headrace_retries_total", reason="reset")


def test_lag() -> None:
    """A worker's lag by its number; a clock's step back is 0."""
    scraped = Scraped()
    scraped.metrics.lag(1, 0.003)
    scraped.metrics.lag(1, -5.0)
    assert 2 == scraped.value("headrace_event_loop_lag_seconds_count", worker="1")
    assert 0.003 == pytest.approx(scraped.value("headrace_event_loop_lag_seconds_sum", worker="1"))


def test_gauges_are_collected_at_a_scrape() -> None:
    """What the caller says is there when it is asked, with the metric's labels."""
    scraped = Scraped(
        [Sample(names.OUTSTANDING, ("llama", "gpu-1", "prefill"), 12), Sample(names.QUEUE_DEPTH, ("normal",), 3)]
    )
    assert 3 == scraped.value("headrace_queue_depth", priority="normal")
    labels = {"model": "llama", "instance": "gpu-1", "phase": "prefill"}
    assert 12 == scraped.value("headrace_instance_outstanding_tokens", **labels)


def test_moving_average_of_first_tokens() -> None:
    """It begins with the first request's time and goes a tenth of the way with each further one."""
    metrics = Scraped().metrics
    assert None is metrics.ttft_ewma("llama", "gpu-1")
    metrics.observe(record())
    assert 0.1 == pytest.approx(metrics.ttft_ewma("llama", "gpu-1"))
    metrics.observe(record(first_token=START + 200 * MS))
    assert 0.11 == pytest.approx(metrics.ttft_ewma("llama", "gpu-1"))


def test_values_of_a_label_are_bounded() -> None:
    """From the 1,001st value on they are one; those known before go on under their own name."""
    scraped = Scraped()
    for n in range(MOST_VALUES + 5):
        scraped.metrics.count(f"headrace_parse_rejects_total|rule{n}", 1)
    scraped.metrics.count("headrace_parse_rejects_total|rule0", 1)
    assert 5 == scraped.value("headrace_parse_rejects_total", rule=OTHER)
    assert 2 == scraped.value("headrace_parse_rejects_total", rule="rule0")
    rules = [key for key in scraped.samples() if key[0] == "headrace_parse_rejects_total"]
    assert MOST_VALUES + 1 == len(rules)


def test_each_label_is_bounded_by_itself() -> None:
    """One label's flood does not swallow another's values."""
    seen: list[tuple[str, ...]] = []

    class Parent:
        def labels(self, *values: str) -> object:
            seen.append(values)
            return object()

    bounded = Bounded(Parent())
    for n in range(MOST_VALUES + 1):
        bounded.of("steady", str(n))
    assert ("steady", OTHER) == seen[-1]
    assert bounded.of("steady", "3") is bounded.of("steady", "3")


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([3.0], 0.99, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 1.0, 2.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    """The smallest value that so large a share of all does not exceed."""
    assert expected == percentile(values, share)
