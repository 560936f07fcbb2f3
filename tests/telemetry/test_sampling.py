"""Which spans are exported, decided after the end."""

import pytest

from telemetry.sampling import Sampler
from tests.support.records import MS, START, attempt, record


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trace_flags": 1}, "trace"),
        ({"trace_flags": 0}, ""),
        ({"trace_flags": 2}, ""),
        ({"trace_flags": 0, "status": 502, "outcome": "upstream_error"}, "error"),
        ({"trace_flags": 0, "attempts": [attempt("gpu-2", outcome="reset"), attempt()]}, "retry"),
        ({"trace_flags": 0, "spill_to": "lhr"}, "spill"),
        ({"trace_flags": 0, "status": 429, "outcome": "shed"}, ""),
    ],
)
def test_why(changes: dict[str, object], expected: str) -> None:
    """The trace's own word first, then what is always worth seeing."""
    assert expected == Sampler().why(record(**changes))


def test_the_slowest_in_a_hundred() -> None:
    """Of streams that begin after 1 to 1000 ms those of the last hundredth are slow, once enough were seen."""
    sampler, slow = Sampler(), 0
    made = [record(trace_flags=0, first_token=START + (n * 7919 % 1000 + 1) * MS) for n in range(3000)]
    for one in made[:1000]:
        sampler.why(one)
    for one in made[1000:]:
        slow += "slow" == sampler.why(one)
    assert 10 <= slow <= 30


def test_nothing_is_slow_at_first() -> None:
    """Too few to tell."""
    sampler = Sampler()
    assert {""} == {sampler.why(record(trace_flags=0, first_token=START + n * MS)) for n in range(1, 100)}
