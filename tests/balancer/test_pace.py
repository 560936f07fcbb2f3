"""Patience with an instance is by its own pace."""

from hypothesis import given
from hypothesis import strategies as st

from balancer.pace import GRACE, LEAST, SECOND, Pace


def test_nobody_is_judged_before_anything_is_known() -> None:
    pace = Pace()
    assert pace.patience(0, 1.0, [0, 1, 2]) is None
    pace.observe(1, 1.0, SECOND)
    assert pace.patience(0, 1.0, [0, 1, 2]) == pace.patience(1, 1.0, []) == 2 * SECOND + GRACE
    assert pace.patience(0, 1.0, [0]) is None


def test_noticed_within_twice_the_prediction_and_a_second() -> None:
    """Of an instance that keeps its predictions, looked at four times a second."""
    pace = Pace()
    pace.observe(0, 0.5, SECOND // 2)
    for ttft in (0.0, 0.01, 0.3, 5.0):
        patience = pace.patience(0, ttft, [])
        assert patience is not None
        assert patience + SECOND // 4 <= 2 * ttft * SECOND + SECOND


def test_a_slow_engine_is_not_taken_for_a_broken_one() -> None:
    """A CPU: 20 s for what an a100 does in 70 ms."""
    pace = Pace()
    pace.observe(0, 0.07, 20 * SECOND)
    for _ in range(30):
        patience = pace.patience(0, 0.07, [])
        assert patience is not None
        assert patience > 20 * SECOND
        pace.observe(0, 0.07, 15 * SECOND)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**12)), min_size=1))
def test_patience_is_finite_and_never_less_than_its_least(seen: list[tuple[float, int]]) -> None:
    pace = Pace()
    for ttft, elapsed in seen:
        pace.observe(0, ttft, elapsed)
        patience = pace.patience(0, ttft, [])
        assert patience is not None
        assert patience >= 2 * LEAST + GRACE


def test_who_is_gone_is_forgotten() -> None:
    pace = Pace()
    pace.observe(0, 1.0, SECOND)
    pace.observe(1, 1.0, SECOND)
    pace.forget({1})
    assert pace.patience(0, 1.0, []) is None
    assert pace.patience(1, 1.0, []) is not None
