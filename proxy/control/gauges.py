"""What an engine's /metrics says of its load, and what kind of engine speaks so. Pure."""

import math

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from proxy.config import Kind


class Load(msgspec.Struct, frozen=True):
    """An engine's own view of itself."""

    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0  # 0 to 1


MOST_REQUESTS = 1_000_000  # what is above is nonsense, and must not go on as such
# for each kind: names of the gauges of requests running, requests waiting, share of the KV cache in use
_NAMES: dict[Kind, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "vllm": (
        ("vllm:num_requests_running",), ("vllm:num_requests_waiting",), ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    "sglang": (("sglang:num_running_reqs",), ("sglang:num_queue_reqs",), ("sglang:token_usage",)),
    "llamacpp": (
        ("llamacpp:requests_processing",), ("llamacpp:requests_deferred",), ("llamacpp:kv_cache_usage_ratio",),
    ),
}  # fmt: skip


def parse(text: str) -> tuple[Kind | None, Load]:
    """The kind of engine and its load; (None, nothing) for metrics of something else. Raises ValueError for no metrics.

    Data-parallel engines show one value a rank: requests are summed, shares of the KV cache averaged.
    """
    kind = next((kind for kind in _NAMES if f"\n{kind}:" in f"\n{text}"), None)
    if kind is None:
        _values(text)
        return None, Load()
    running, waiting, kv_use = _NAMES[kind]
    wanted = (*running, *waiting, *kv_use)
    # the parser takes 20 ms for all that a vLLM tells, in which the agent would do nothing else
    values = _values("\n".join(line for line in text.split("\n") if line.startswith(wanted)) + "\n")
    used = _first(values, kv_use)
    share = min(1.0, sum(used) / len(used)) if used else 0.0
    return kind, Load(_requests(_first(values, running)), _requests(_first(values, waiting)), share)


def _values(text: str) -> dict[str, list[float]]:
    """The values of all samples by name; raises ValueError for no metrics."""
    values: dict[str, list[float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values.setdefault(sample.name, []).append(sample.value)
    except (LookupError, TypeError, AttributeError) as error:  # what the parser makes of some garbage
        raise ValueError("not metrics") from error
    return values


def _first(values: dict[str, list[float]], names: tuple[str, ...]) -> list[float]:
    """The sane values of the first of these gauges that has any."""
    for name in names:
        sane = [value for value in values.get(name, []) if math.isfinite(value) and value >= 0]
        if sane:
            return sane
    return []


def _requests(values: list[float]) -> int:
    return int(min(MOST_REQUESTS, sum(values)))


class Foreign:
    """Traffic that is not ours, as an average over about 10 s of what an engine reports beyond our own requests."""

    SECONDS = 10.0

    def __init__(self) -> None:
        self._requests = 0.0
        self._at = 0

    def observe(self, reported: int, own: int, now: int) -> float:
        """Takes one scrape (requests; `now` in ns); the average of foreign requests."""
        elapsed = (now - self._at) / 1e9 if self._at else 0.0
        self._at = now
        gain = 1 - math.exp(-elapsed / self.SECONDS)
        self._requests += gain * (max(0, reported - own) - self._requests)
        return self._requests
