"""What one decision costs, among 10 and among 10,000 instances. Figures only; nothing here can fail by time."""

from random import Random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from balancer.ledger import Ledger
from balancer.model import Ask, Fleet, Instance, Table
from balancer.router import Router


@pytest.mark.parametrize("count", [10, 10_000])
def test_decision(benchmark: BenchmarkFixture, count: int) -> None:
    """Router.route with two choices on a fleet with some load."""
    random = Random(1)
    router = Router(Ledger([0] * 3 * count), random)
    instances = tuple(Instance(i, f"http://10.0.0.{i}:8000", weight=1 + i % 3) for i in range(count))
    router.update(Table(1, {"m": Fleet(instances)}), 0)
    ask = Ask("m", 2000)
    for _ in range(2 * count):
        decision = router.route(ask, 0, admit=False)
        router.open(ask, decision, 0)  # type: ignore[arg-type]
    decision = benchmark.pedantic(router.route, (ask, 1), {"admit": False}, rounds=50, iterations=400, warmup_rounds=5)
    assert len(decision.candidates) == 2
