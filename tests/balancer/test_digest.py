"""A location as it is for others to see."""

import math

import pytest

from balancer.digest import A100, CONTEXT, Context, Speed, make
from balancer.model import Instance
from balancer.spill import OVERHEAD

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


def test_speed() -> None:
    """An a100 until streams tell; then scaled by what they took beside what an a100 would have taken."""
    speed = Speed()
    assert A100 == speed.coefficients
    t0, c, kv_c = A100
    for _ in range(1000):
        speed.observe(OVERHEAD + 3 * (math.hypot(t0, c * 20) + kv_c * 20 * 1500), 20, 1500)
    assert pytest.approx([3 * t0, 3 * c, 3 * kv_c], rel=0.01) == list(speed.coefficients)
    for tpot in (0.0, -1.0, 1e9):
        speed.observe(tpot, 1, 1500)
    made = make("ams", "m", 0, INSTANCES, 1e-4, COUNTS.__getitem__, 1.0, coefficients=(1.0, 2.0, 3.0))
    assert (1.0, 2.0, 3.0) == (made.t0, made.c, made.kv_c)
