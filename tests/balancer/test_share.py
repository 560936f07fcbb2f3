"""Queues of several workers on one board act as one, within the bound that the module tells."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.admit import YIELD, Queue, Waiter
from balancer.model import Ask
from balancer.share import SLOT_WIDTH, SLOTS, WAITING, BoardShares, OwnShares, area, counter_of, head_of

CELLS = 3


def board(workers: int, model: str = "m") -> tuple[list[int], list[BoardShares]]:
    memory = [0] * (workers * area(CELLS))
    rows = [worker * area(CELLS) for worker in range(workers)]
    return memory, [BoardShares(memory, row, [r for r in rows if r != row], CELLS, model) for row in rows]


def waiter(tenant: str, tokens: int = 100, priority: int = 1, since: int = 0) -> Waiter:
    return Waiter(Ask("m", 4 * tokens, tenant=tenant, priority=priority), tokens, 0, since)


@given(
    st.lists(st.tuples(st.sampled_from(["charge", "lift", "enter", "leave"]), st.integers(0, 2), st.integers(0, 999)))
)
def test_on_the_board_as_alone(steps: list[tuple[str, int, int]]) -> None:
    own, (shared, *_) = OwnShares(), board(2)[1]
    inside: list[str] = []
    for step, tenant, amount in steps:
        name = f"t{tenant}"
        if step == "enter" or name not in inside:
            assert own.enter(name) == shared.enter(name) == (name in inside)
            own.lift(name, 0)
            inside.append(name)
        elif step == "leave":
            own.leave(name)
            shared.leave(name)
            inside.remove(name)
        else:
            getattr(own, step)(name, amount)
            getattr(shared, step)(name, amount)
        assert own.counter(name) == shared.counter(name)


def test_a_counter_is_the_sum_of_all_rows_and_of_the_greatest_lift() -> None:
    _, (one, other) = board(2)
    one.charge("t", 10)
    other.charge("t", 5)
    assert one.counter("t") == other.counter("t") == 15
    one.lift("t", 100)
    other.lift("t", 90)
    assert one.counter("t") == other.counter("t") == 100
    other.lift("t", 120)
    one.charge("t", 1)
    assert one.counter("t") == other.counter("t") == 121


def test_waiting_is_known_everywhere_and_leaves_nothing() -> None:
    memory, (one, other) = board(2)
    assert [False, True, True] == [one.enter("t"), other.enter("t"), one.enter("t")]
    for shares in (one, one, other):
        shares.leave("t")
    assert not other.enter("t")
    other.leave("t")
    waiting = [memory[row + CELLS + SLOT_WIDTH * slot + WAITING] for row in (0, area(CELLS)) for slot in range(SLOTS)]
    assert not any(waiting)


@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 10**9), st.integers(0, 10**9))
def test_heads_compare_by_class_then_counter(one: int, other: int, less: int, more: int) -> None:
    assert ((one, less) < (other, more)) == (head_of(one, less) < head_of(other, more))
    assert head_of(one, less) > 0
    assert counter_of(head_of(one, less)) == less


def test_a_head_moves_with_its_place() -> None:
    _, (one, other) = board(2)
    one.show(head_of(1, 7))
    other.place(2)
    assert list(other.heads()) == []
    one.place(2)
    assert list(other.heads()) == [head_of(1, 7)]


def queues(workers: int) -> list[Queue]:
    return [Queue(1000, 10**12, 1000.0, shares=shares) for shares in board(workers)[1]]


def test_who_was_served_less_elsewhere_goes_first_but_not_for_ever() -> None:
    here, there = queues(2)
    here.offer(waiter("a"), 0)
    here.offer(waiter("a"), 0)
    here.take(0)
    there.offer(waiter("b"), 0)  # lifted to a's 100
    assert here.its_turn(0)
    here.take(0)
    here.offer(waiter("a"), 0)
    assert here.waits_elsewhere()
    assert [False, False, True] == [here.its_turn(1), here.its_turn(YIELD), here.its_turn(YIELD + 2)]
    assert not here.its_turn(YIELD + 3)  # the next one is let go again
    there.take(0)
    assert here.its_turn(YIELD + 4)
    assert not here.waits_elsewhere()


def test_a_higher_class_elsewhere_goes_first() -> None:
    here, there = queues(2)
    here.offer(waiter("a"), 0)
    there.offer(waiter("b", priority=0), 0)
    assert not here.its_turn(1)
    assert there.its_turn(1)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_two_that_wait_are_served_the_same_within_the_bound(workers: int, seed: int) -> None:
    """Whoever is asked first, however the tenants lie on the workers: 2 U, and 2 (W - 1) U more, U the largest charge."""
    draws, largest = Random(seed), 0
    all_queues = queues(workers)
    served = {"a": 0, "b": 0}
    waiting = dict.fromkeys(served, 0)

    def offer(tenant: str) -> None:
        tokens = draws.randrange(1, 1000 if tenant == "a" else 100)
        all_queues[draws.randrange(workers) if draws.random() < 0.5 else tenant == "a" and workers > 1].offer(
            waiter(tenant, tokens), 0
        )
        waiting[tenant] += 1

    for _ in range(20):
        offer("a")
        offer("b")
    for now in range(2000):
        line = all_queues[draws.randrange(workers)]
        if not line.its_turn(1 + now):  # never as long as YIELD
            continue
        if (taken := line.take(now)) is not None:
            largest = max(largest, taken.prompt_tokens)
            served[taken.tenant] += taken.prompt_tokens
            waiting[taken.tenant] -= 1
            offer(taken.tenant)
        assert min(waiting.values()) > 0
        assert abs(served["a"] - served["b"]) <= (2 + 2 * (workers - 1)) * max(largest, 1)
