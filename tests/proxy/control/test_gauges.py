"""Load gauges of engines: what vLLM, SGLang and llama.cpp say, and what garbage says."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from proxy.control import gauges
from proxy.control.gauges import MOST_REQUESTS, Foreign, Load, parse

SECOND = 1_000_000_000
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 8.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="llama"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.42
# TYPE process_open_fds gauge
process_open_fds 60.0
"""
SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="llama"} 5.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="llama"} 2.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="llama"} 0.28
"""
LLAMACPP = """\
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 4
# TYPE llamacpp:kv_cache_usage_ratio gauge
llamacpp:kv_cache_usage_ratio 0.5
"""


@pytest.mark.parametrize(
    ("text", "kind", "load"),
    [
        (VLLM, "vllm", Load(8, 3, 0.42)),
        (VLLM.replace("kv_cache", "gpu_cache"), "vllm", Load(8, 3, 0.42)),
        (SGLANG, "sglang", Load(5, 2, 0.28)),
        (LLAMACPP, "llamacpp", Load(1, 4, 0.5)),
        ("# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total 5\n", "vllm", Load()),
        ("# TYPE process_open_fds gauge\nprocess_open_fds 60.0\n", None, Load()),
        ("", None, Load()),
    ],
)
def test_kinds(text: str, kind: str | None, load: Load) -> None:
    """The prefix tells the kind, its gauges the load; what is absent is 0."""
    assert (kind, load) == parse(text)


def test_only_the_gauges_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine's hundreds of lines the slow parser gets those three that are looked at."""
    given_texts: list[str] = []

    def parsed(text: str) -> Iterable[Metric]:
        given_texts.append(text)
        return text_string_to_metric_families(text)

    monkeypatch.setattr(gauges, "text_string_to_metric_families", parsed)
    histogram = "".join(f'vllm:e2e_bucket{{le="{n}"}} {n}\n' for n in range(500))
    assert ("vllm", Load(8, 3, 0.42)) == parse(histogram + VLLM + histogram)
    assert [3] == [len(text.splitlines()) for text in given_texts]


def test_names_that_only_begin_alike() -> None:
    """A metric whose name goes on is another one."""
    more = 'vllm:num_requests_waiting_by_reason{reason="capacity"} 50\n'
    assert ("vllm", Load(8, 3, 0.42)) == parse(more + VLLM)


def test_data_parallel_ranks() -> None:
    """Requests of all ranks together, the KV cache on average."""
    second = VLLM.replace('engine="0"', 'engine="1"').replace("0.42", "0.62").replace(" 8.0", " 2.0")
    merged = VLLM + "\n".join(line for line in second.splitlines() if not line.startswith("#")) + "\n"
    kind, load = parse(merged)
    assert ("vllm", 10, 6) == (kind, load.running, load.waiting)
    assert 0.52 == pytest.approx(load.kv_use)


@pytest.mark.parametrize(
    ("value", "running", "kv_use"),
    [("NaN", 0, 0.0), ("-3", 0, 0.0), ("+Inf", 0, 0.0), ("1e300", MOST_REQUESTS, 1.0), ("2.5", 2, 1.0)],
)
def test_insane_values(value: str, running: int, kv_use: float) -> None:
    """What cannot be is 0, what is too large is cut."""
    kind, load = parse(f"vllm:num_requests_running {value}\nvllm:kv_cache_usage_perc {value}\n")
    assert ("vllm", running, kv_use) == (kind, load.running, load.kv_use)


@pytest.mark.parametrize("text", ["<html>no</html>", '{"error": "no metrics"}', "vllm:num_requests_running many\n"])
def test_other_things_than_metrics(text: str) -> None:
    """A page or an error is refused with ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.one_of(st.text(max_size=200), st.text('vllm:num_requests_running{}=",# TYPE 019.eN\n\\', max_size=200)))
def test_only_value_error_escapes(text: str) -> None:
    """Whatever an engine sends, the probe goes on."""
    try:
        kind, load = parse(text)
    except ValueError:
        return
    assert load.running >= 0
    assert 0.0 <= load.kv_use <= 1.0
    assert kind is not None or Load() == load


def test_foreign_traffic_is_averaged() -> None:
    """Of 10 requests 4 are ours: the average goes to 6 with a time constant of 10 s."""
    foreign = Foreign()
    assert 0.0 == foreign.observe(10, 4, SECOND)
    assert 6 * (1 - math.exp(-1)) == pytest.approx(foreign.observe(10, 4, 11 * SECOND))
    assert 6.0 == pytest.approx(foreign.observe(10, 4, 200 * SECOND))


def test_own_requests_that_the_engine_does_not_know_yet() -> None:
    """More of ours than the engine reports is no foreign traffic, and no debt either."""
    foreign = Foreign()
    foreign.observe(0, 5, SECOND)
    assert 0.0 == foreign.observe(0, 5, 3 * SECOND)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 10 * SECOND)), max_size=30))
def test_foreign_stays_within_what_was_seen(scrapes: list[tuple[int, int, int]]) -> None:
    """The average is never negative and never above the largest excess."""
    foreign, now = Foreign(), SECOND
    for reported, own, elapsed in scrapes:
        now += elapsed
        assert 0.0 <= foreign.observe(reported, own, now) <= max(max(0, r - o) for r, o, _ in scrapes) + 1e-9
