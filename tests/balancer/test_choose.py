"""The alias table, the draw, the score."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.choose import DUE, FULL, MARKED, OPEN, AliasTable, PowerOfChoices, View
from balancer.health import Health
from balancer.ledger import Ledger
from balancer.model import Balancing, Fleet, Instance, Outcome

SECOND = 1_000_000_000


def view(*instances: Instance, seed: int = 1) -> tuple[View, Ledger, Health]:
    """A view of these instances, with a ledger and health of its own."""
    ledger, health = Ledger([0] * 3 * (len(instances) + 1)), Health(Random(seed))
    made = View(Fleet(instances), ledger, health, Random(seed))
    made.configure(Balancing())
    return made, ledger, health


def load(ledger: Ledger, cell: int, prompt: int, expected: int = 0) -> None:
    """Put one request there."""
    ledger.acquire(cell, prompt, expected, lambda emitted: 0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30))
def test_alias_table_is_exactly_proportional(weights: list[float]) -> None:
    """The shares of the columns add up to each index's weight."""
    table, count = AliasTable(weights), len(weights)
    mass = [0.0] * count
    for column in range(count):
        share = min(1.0, table.share[column])
        mass[column] += share / count
        mass[table.alias[column]] += (1 - share) / count
    assert mass == pytest.approx([w / sum(weights) for w in weights], rel=1e-6)


def test_alias_table_draws_in_proportion() -> None:
    """Chi-square over 40,000 draws, 5 degrees of freedom; a weight of nothing is never drawn."""
    weights, random, draws = [8.0, 1.0, 0.0, 0.5, 3.0, 3.5, 0.1], Random(7), 40_000
    table = AliasTable(weights)
    seen = [0] * len(weights)
    for _ in range(draws):
        seen[table.draw(random)] += 1
    expected = [w / sum(weights) * draws for w in weights]
    assert seen[2] == 0
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True) if e) < 20


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [float("inf")], [float("nan")]])
def test_alias_table_wants_weights(weights: list[float]) -> None:
    """None, only zeros, negative or endless ones cannot be drawn from."""
    with pytest.raises(ValueError, match="weights"):
        AliasTable(weights)


@given(st.integers(1, 30), st.integers(1, 4), st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)), st.integers())
def test_draw_is_distinct_ready_and_untried(
    count: int, choices: int, unready: set[int], tried: set[int], seed: int
) -> None:
    """As many as asked for, if there are so many; never one that was tried or is not ready."""
    instances = [Instance(i, f"i{i}", weight=1 + i % 5, ready=i not in unready) for i in range(count)]
    seen, _, _ = view(*instances, seed=seed)
    drawn = [i.cell for i in seen.draw(choices, 0, tried)]
    able = set(range(count)) - unready - tried
    assert len(drawn) == len(set(drawn)) == min(choices, len(able))
    assert set(drawn) <= able


def test_retry_is_no_trial_unless_nothing_else_is_left() -> None:
    """A request that failed once goes to the tried and true."""
    seen, _, health = view(*[Instance(i, f"i{i}") for i in range(3)])
    for _ in range(3):
        health.report(1, Outcome.RESET, SECOND)
    later = health.notes[1].until
    assert [2] == [i.cell for i in seen.draw(2, later, {0})]
    assert [1] == [i.cell for i in seen.draw(2, later, {0, 2})]
    assert [] == [i.cell for i in seen.draw(2, later - 1, {0, 2})]


def test_score_is_the_formula() -> None:
    """Every term once, in seconds."""
    instance = Instance(0, "a", weight=2.0, kv_use=0.5, background=400, scraped=SECOND)
    seen, ledger, health = view(instance)
    load(ledger, 0, 1000, 300)
    health.report(0, Outcome.RESET, SECOND)
    candidate = seen.measure(instance, 200, 100, SECOND).candidate
    assert candidate.score == pytest.approx(70e-6 * (1000 + 200 + 0.5 * (300 + 100) + 400 + 20_000) / 2 + 0.15)
    assert candidate[2:] == (1000, 300, 400, 20_000, 0.5, 2.0)


def test_old_scrape_is_not_looked_at() -> None:
    """After two seconds KV use and foreign traffic count as nothing."""
    instance = Instance(0, "a", kv_use=0.99, background=400, scraped=SECOND)
    seen, _, _ = view(instance)
    assert seen.measure(instance, 100, 0, 3 * SECOND).candidate.kv_use == 0.95
    old = seen.measure(instance, 100, 0, 3 * SECOND + 1).candidate
    assert (old.kv_use, old.background, old.score) == (0.0, 0, pytest.approx(0.007))


def test_slow_start_lowers_the_weight() -> None:
    """A new instance counts a tenth, later half, later whole."""
    instance = Instance(0, "a", weight=2.0, since=SECOND)
    seen, _, _ = view(instance)
    weights = [seen.measure(instance, 1, 0, t * SECOND).candidate.weight for t in (1, 16, 31)]
    assert weights == pytest.approx([0.2, 1.0, 2.0])


def test_saturation_is_prefill_alone_and_by_weight() -> None:
    """Half the TTFT target is 7,142 reference tokens; decode and phantoms do not count."""
    slow, fast = Instance(0, "slow"), Instance(1, "fast", weight=2.0)
    seen, ledger, health = view(slow, fast)
    health.report(0, Outcome.RESET, SECOND)
    load(ledger, 0, 7_000, 90_000)
    load(ledger, 1, 8_000)
    assert [OPEN, OPEN] == [seen.measure(i, 9_999, 9_999, SECOND).rank for i in (slow, fast)]
    load(ledger, 0, 1_000)
    load(ledger, 1, 7_000)
    assert [FULL, FULL] == [seen.measure(i, 1, 1, SECOND).rank for i in (slow, fast)]


def test_mark_of_a_429() -> None:
    """An idle instance is not saturated by it, but others come first; a busy one is."""
    instance = Instance(0, "a")
    seen, ledger, health = view(instance, Instance(1, "b"))
    health.report(0, Outcome.SATURATED, SECOND)
    assert seen.measure(instance, 1, 1, SECOND).rank == MARKED
    load(ledger, 0, 10)
    assert [FULL, OPEN] == [seen.measure(instance, 1, 1, t * SECOND).rank for t in (1, 2)]


def test_due_trial_goes_first() -> None:
    """Whatever its phantoms: else a failed instance of a large fleet would hardly come back."""
    seen, _, health = view(Instance(0, "a"), Instance(1, "b"))
    for _ in range(3):
        health.report(1, Outcome.RESET, SECOND)
    later = health.notes[1].until
    choice = PowerOfChoices(2, Random(1)).choose(seen, 1, 1, later, ())
    assert choice is not None
    assert (choice.best.rank, choice.best.instance.cell) == (DUE, 1)


def test_lower_score_wins_and_ties_are_random() -> None:
    """The idle one beats the loaded one; equals share."""
    seen, ledger, _ = view(Instance(0, "a"), Instance(1, "b"))
    policy, wins = PowerOfChoices(2, Random(5)), [0, 0]
    for _ in range(2000):
        choice = policy.choose(seen, 10, 10, 0, ())
        assert choice is not None
        wins[choice.best.instance.cell] += 1
    assert 900 < wins[0] < 1100
    load(ledger, 0, 5)
    for _ in range(50):
        choice = policy.choose(seen, 10, 10, 0, ())
        assert choice is not None
        assert choice.best.instance.cell == 1


def test_find_open_looks_at_64_at_most() -> None:
    """A bounded search among many saturated ones."""
    instances = [Instance(i, f"i{i}") for i in range(500)]
    seen, ledger, _ = view(*instances)
    for i in range(500):
        load(ledger, i, 10_000)
    looked: list[int] = []
    outstanding = ledger.outstanding

    class Counting:
        def outstanding(self, cell: int) -> tuple[int, int, int]:
            looked.append(cell)
            return outstanding(cell)

    seen._ledger = Counting()  # type: ignore[assignment]
    assert seen.find_open(1, 1, 0) is None
    assert len(looked) == 64


def test_alias_table_is_kept_while_weights_are() -> None:
    """A Table that only brings new gauges costs no rebuilding."""
    before, ledger, health = view(Instance(0, "a"), Instance(1, "b"))
    same = View(Fleet((Instance(0, "a", kv_use=0.3), Instance(1, "b"))), ledger, health, Random(1), before)
    other = View(Fleet((Instance(0, "a", weight=2), Instance(1, "b"))), ledger, health, Random(1), before)
    assert (True, False) == (same._table is before._table, other._table is before._table)
