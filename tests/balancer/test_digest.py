"""A location as it is for others to see."""

import pytest

from balancer.digest import CONTEXT, Context, make
from balancer.model import Instance

COUNTS = {0: (1000, 50, 3), 1: (500, 20, 2), 2: (9999, 9, 9)}
INSTANCES = [Instance(0, "a"), Instance(1, "b", weight=2.0)]


def test_sums() -> None:
    """Waiting prompt tokens and sequences of the instances given; their capacity by their weights."""
    made = make("ams", "m", 7, INSTANCES, 1e-4, COUNTS.__getitem__, 1.0, 100.0, waiting=50.0)
    assert ("ams", "m", 7, 1550.0, 2, 5, 500) == (
        made.location, made.model, made.ts, made.work, made.instances, made.running, made.kv_tokens,
    )  # fmt: skip
    assert pytest.approx(30_000) == made.capacity
    assert made.accepting


def test_the_guard_speaks() -> None:
    """0.4 of the TTFT target's work, or nobody there: it says that it takes nothing."""
    full = make("ams", "m", 0, INSTANCES, 1e-4, COUNTS.__getitem__, 1.0, waiting=0.4 * 30_000 - 1499)
    assert not full.accepting
    none = make("ams", "m", 0, [], 1e-4, COUNTS.__getitem__, 1.0)
    assert (0.0, 0, False) == (none.capacity, none.instances, none.accepting)


def test_context() -> None:
    """The mean follows what requests hold."""
    context = Context()
    assert CONTEXT == context.tokens
    for _ in range(1000):
        context.observe(100, 50)
    assert pytest.approx(125, rel=0.01) == context.tokens
