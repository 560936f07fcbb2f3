"""The retry budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.budget import RetryBudget

SECOND = 1_000_000_000


def spend(budget: RetryBudget, now: int) -> int:
    """Take until the budget says no."""
    taken = 0
    while taken < 100_000 and budget.take(now):
        taken += 1
    return taken


def test_floor_alone_allows_a_window_of_retries() -> None:
    """Without any request, ten a second over ten seconds."""
    assert spend(RetryBudget(), 5 * SECOND) == 100


def test_requests_earn_their_share() -> None:
    """Each request adds a fifth of a retry."""
    budget = RetryBudget(share=0.2, floor_per_second=0)
    budget.arrived += 50
    assert spend(budget, SECOND) == 10


def test_window_slides() -> None:
    """Requests and retries older than ten seconds count no more."""
    budget = RetryBudget(share=0.2, floor_per_second=1)
    budget.arrived += 50
    budget.look(0)
    assert spend(budget, 9 * SECOND) == 20
    assert spend(budget, 10 * SECOND) == 0
    assert spend(budget, 19 * SECOND) == 10


@pytest.mark.parametrize(("share", "floor"), [(-0.1, 1), (0.1, -1)])
def test_negative_budget_is_refused(share: float, floor: float) -> None:
    """A budget below nothing is a mistake."""
    with pytest.raises(ValueError, match="at least 0"):
        RetryBudget(share, floor)


@given(st.lists(st.tuples(st.integers(0, 3 * SECOND), st.booleans()), max_size=300))
def test_never_more_than_the_window_allows(steps: list[tuple[int, bool]]) -> None:
    """At every moment the last nine full seconds' retries are within floor and share of eleven seconds' requests."""
    budget = RetryBudget(share=0.5, floor_per_second=0.2)
    now, requests, retries = 0, [], []
    for gap, is_request in steps:
        now += gap
        if is_request:
            budget.arrived += 1
            budget.look(now)
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
        recent = [t for t in retries if now - t < 9 * SECOND]
        assert len(recent) <= 2 + 0.5 * sum(now - t < 20 * SECOND for t in requests) + 1e-6
