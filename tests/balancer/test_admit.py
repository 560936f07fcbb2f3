"""The queue: order, fairness, bounds, refusals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer import share
from balancer.admit import Entry, Queue, Refusal, Waiter
from balancer.model import Ask

SECOND = 1_000_000_000
RATE = 14_000.0


def queue(capacity: int = 1024, timeout: int = 30 * SECOND, rate: float = RATE) -> Queue:
    """A queue of a fleet that does `rate` token-equivalents a second."""
    return Queue(capacity, timeout, rate)


def waiter(tenant: str = "a", priority: int = 1, prompt: int = 100, output: int = 50, since: int = 0) -> Waiter:
    """A request that waits."""
    return Waiter(Ask("m", 4 * prompt, tenant=tenant, priority=priority), prompt, output, since)


def test_first_come_first_served_inside_a_tenant() -> None:
    """One tenant's requests keep their order."""
    line, waiters = queue(), [waiter(prompt=p) for p in (900, 5, 70)]
    for w in waiters:
        assert line.offer(w, 0).refusal is None
    assert waiters == [line.take(0) for _ in waiters]
    assert line.take(0) is None
    assert len(line) == 0


def test_peek_does_not_take() -> None:
    """What is peeked is what is taken."""
    line = queue()
    assert line.peek() is None
    line.offer(waiter(), 0)
    assert line.peek() is line.peek()
    assert line.peek() is line.take(0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=60))
def test_priorities_are_strict(offers: list[tuple[str, int]]) -> None:
    """Whoever the tenants are, a lower class waits for all of the higher."""
    line = queue()
    for tenant, priority in offers:
        line.offer(waiter(tenant, priority), 0)
    assert 100 * len(offers) == line.prompt_tokens
    taken = [line.take(0) for _ in offers]
    assert sorted(p for _, p in offers) == [w.priority for w in taken if w]
    assert 0 == line.prompt_tokens


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 900)), min_size=1, max_size=40))
def test_standing_is_the_order_in_which_they_are_taken(offers: list[tuple[str, int, int]]) -> None:
    """Who stands third is taken third; nobody waits longer than who stands behind; who is gone stands nowhere."""
    line = queue()
    waiters = [waiter(tenant, priority, prompt) for tenant, priority, prompt in offers]
    for one in waiters:
        line.offer(one, 0)
    standings = {one: line.standing(one, 0) for one in waiters}
    order = [line.take(0) for _ in waiters]
    assert [place + 1 for place in range(len(order))] == [standings[one][0] for one in order if one is not None]
    waits = [standings[one][1] for one in order if one is not None]
    assert waits == sorted(waits)
    assert (0, 0.0) == line.standing(waiters[0], 0)


def test_tenants_are_served_the_same_tokens() -> None:
    """One offers ten times as much; while both wait their served tokens differ by less than 5 %."""
    line = queue(capacity=100_000)
    for i in range(2000):
        line.offer(waiter("heavy", prompt=1000 + i % 7, output=100), 0)
        if i % 10 == 0:
            for _ in range(5):
                line.offer(waiter("light", prompt=150, output=40 + i % 11), 0)
    served = {"heavy": 0, "light": 0}
    while served["light"] < 100_000:
        w = line.take(0)
        assert w is not None
        served[w.tenant] += w.prompt_tokens + 2 * w.output_tokens
    assert served["heavy"] == pytest.approx(served["light"], rel=0.05)


def test_idle_time_is_not_saved_up() -> None:
    """A tenant that comes late shares from then on; it does not catch up."""
    line = queue()
    for _ in range(100):
        line.offer(waiter("early"), 0)
    for _ in range(50):
        line.take(0)
    for _ in range(50):
        line.offer(waiter("late"), 0)
    taken = [w.tenant for w in (line.take(0) for _ in range(20)) if w]
    assert taken.count("late") in (10, 11)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 5000), st.integers(0, 2000)), max_size=150))
def test_no_tenant_starves(offers: list[tuple[str, int, int]]) -> None:
    """While two tenants wait throughout, their served tokens never lie further apart than the largest request."""
    line, served = queue(), {"x": 0, "y": 0}
    for _ in range(151):
        line.offer(waiter("x", prompt=5000, output=2000), 0)
        line.offer(waiter("y", prompt=10, output=1), 0)
    for tenant, prompt, output in offers:
        line.offer(waiter(tenant, prompt=prompt, output=output), 0)
        w = line.take(0)
        assert w is not None
        if w.tenant in served:
            served[w.tenant] += w.prompt_tokens + 2 * w.output_tokens
        assert abs(served["x"] - served["y"]) <= 9000


def test_settle_corrects_the_charge() -> None:
    """A tenant whose answers were longer than predicted waits for it."""
    line = queue()
    for _ in range(5):
        line.offer(waiter("a"), 0)
        line.offer(waiter("b"), 0)
    assert [line.take(0).tenant, line.take(0).tenant] == ["a", "b"]  # type: ignore[union-attr]
    line.settle("a", 150)
    line.settle("stranger", 100)
    assert ["b", "b", "a"] == [w.tenant for w in (line.take(0) for _ in range(3)) if w]


def test_full_queue_refuses_with_the_tail_s_wait() -> None:
    """Those waiting at other workers count; retry-after is the work waiting over the rate."""
    line = queue(capacity=10)
    for _ in range(6):
        assert line.offer(waiter(prompt=14_000, output=0), 0, elsewhere=4).refusal is None
    refusal = line.offer(waiter(), 0, elsewhere=4).refusal
    assert refusal == Refusal(6.0, "queue_full")


def test_refuses_at_once_what_would_wait_too_long() -> None:
    """But only while the queue has stood for half the TTFT target."""
    line = queue(timeout=5 * SECOND)
    for _ in range(10):
        assert line.offer(waiter(prompt=14_000, output=0), 0).refusal is None
    refusal = line.offer(waiter(), SECOND).refusal
    assert refusal is not None
    assert refusal.reason == "would_wait_too_long"
    assert refusal.retry_after > 5


def test_higher_class_is_not_refused_for_the_lower_s_wait() -> None:
    """What waits behind it is not its wait."""
    line = queue(timeout=5 * SECOND)
    for _ in range(10):
        line.offer(waiter(prompt=14_000, output=0, priority=2), 0)
    assert line.offer(waiter(priority=0), SECOND).refusal is None
    assert line.wait(SECOND, 0) < line.wait(SECOND)


@given(st.integers(0, 50), st.floats(0, 1e6), st.integers(0, 3600 * SECOND), st.integers(0, 20))
def test_retry_after_is_finite_and_positive(count: int, rate: float, now: int, takes: int) -> None:
    """Whatever the rate: nothing drained, no capacity known, a long silence."""
    line = queue(capacity=count, rate=rate)
    for _ in range(count):
        line.offer(waiter(), 0)
    for _ in range(min(takes, count - 1)):
        line.take(now)
    refusal = line.offer(waiter(), now, elsewhere=count).refusal
    assert refusal is not None
    assert 0 < refusal.retry_after < math.inf


def test_wait_follows_the_measured_drain() -> None:
    """After a while of backlog it is what was taken a second that counts, not the capacity."""
    line = queue(rate=1000.0)
    for _ in range(600):
        line.offer(waiter(prompt=100, output=0), 0)
    for second in range(60):
        for _ in range(5):
            line.take(second * SECOND)
    assert line.wait(60 * SECOND) == pytest.approx(300 * 100 / 500, rel=0.15)


def test_wait_is_nothing_when_nobody_waits() -> None:
    """An empty queue starts a newcomer at once."""
    assert queue(rate=0).wait(0) == 0.0


def test_reads_do_not_mutate() -> None:
    """Asking twice, or later and again, gives the same."""
    line = queue()
    line.offer(waiter(), 0)
    before = line.wait(SECOND), line.shortest_wait(SECOND, waiter())
    line.wait(90 * SECOND)
    line.shortest_wait(90 * SECOND, waiter())
    assert before == (line.wait(SECOND), line.shortest_wait(SECOND, waiter()))


def test_shortest_wait_of_the_last_second() -> None:
    """The least of those taken; else how long the oldest has waited."""
    line = queue()
    assert line.shortest_wait(0, waiter()) == 0.0
    for since in (0, SECOND, 2 * SECOND, 2 * SECOND):
        line.offer(waiter(since=since), since)
    assert line.shortest_wait(3 * SECOND, waiter()) == 3.0
    for _ in range(3):
        line.take(3 * SECOND)
    assert line.shortest_wait(3 * SECOND + SECOND // 2, waiter()) == 1.0
    assert line.shortest_wait(5 * SECOND, waiter()) == 3.0


def test_shortest_wait_is_the_tenant_s_own() -> None:
    """Who is served at once is no sign that the others are."""
    line = queue()
    for _ in range(5):
        line.offer(waiter("heavy"), 0)
    line.offer(waiter("light"), 3 * SECOND)
    assert line.shortest_wait(3 * SECOND, waiter("heavy")) == 3.0
    assert line.shortest_wait(4 * SECOND, waiter("light")) == 4.0  # it says that it waits since 0
    assert line.shortest_wait(3 * SECOND, waiter("stranger")) == 0.0


def test_of_the_others_no_more_goes_first_than_of_one_s_own() -> None:
    """By the time it is its turn, the others were served as much as its tenant."""
    line = queue(rate=1000.0)
    for _ in range(100):
        line.offer(waiter("heavy", prompt=100, output=0), 0)
    newcomer = waiter("light", prompt=200, output=0)
    assert line.wait(0, 1, newcomer) == pytest.approx(0.2)
    line.offer(newcomer, 0)
    assert line.wait(0, 1, waiter("light", prompt=200, output=0)) == pytest.approx(0.2 + 0.4)
    assert line.wait(0, 1, waiter("heavy", prompt=100, output=0)) == pytest.approx(10.2)


def test_a_full_queue_makes_room_for_who_has_fewer_places() -> None:
    """The last one of the tenant with most leaves; nobody does for that tenant itself."""
    line = queue(capacity=4)
    heavy = [waiter("heavy") for _ in range(4)]
    for each in heavy:
        line.offer(each, 0)
    assert line.offer(waiter("heavy"), 0).refusal is not None
    assert line.offer(waiter("light"), 0) == Entry(None, heavy[3])
    assert line.offer(waiter("light"), 0) == Entry(None, heavy[2])
    refusal = line.offer(waiter("light"), 0).refusal
    assert refusal is not None
    assert refusal.reason == "queue_full"
    assert line.offer(waiter("third"), 0).displaced is not None
    assert len(line) == 4


def test_a_full_queue_makes_room_for_a_higher_class() -> None:
    line = queue(capacity=2)
    batch = [waiter(priority=2) for _ in range(2)]
    for each in batch:
        line.offer(each, 0)
    assert line.offer(waiter(priority=0), 0) == Entry(None, batch[1])
    assert line.offer(waiter("other", priority=1), 0) == Entry(None, batch[0])
    assert line.offer(waiter("third", priority=2), 0).refusal is not None


def test_expire_takes_the_old_ones_out() -> None:
    """Those that waited as long as one may, in order."""
    line = queue(timeout=5 * SECOND)
    waiters = [waiter(tenant, since=s * SECOND) for s, tenant in enumerate("abcdef")]
    for w in waiters:
        line.offer(w, w.since)
    assert waiters[:3] == line.expire(7 * SECOND)
    assert len(line) == 3
    assert line.expire(7 * SECOND) == []


def test_drop_is_once() -> None:
    """A client that left is gone; leaving twice is harmless."""
    line, w = queue(), waiter()
    line.offer(w, 0)
    assert [True, False] == [line.drop(w), line.drop(w)]
    assert line.take(0) is None
    assert line.wait(0) == 0.0


def test_counters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of tenants leaves few counters behind, and those that wait keep theirs."""
    monkeypatch.setattr(share, "IDLE_TENANTS", 16)
    line = queue()
    line.offer(waiter("stays", priority=2), 0)
    for i in range(1000):
        line.offer(waiter(f"t{i}"), 0)
        line.take(0)
    assert len(line._shares._counters) <= 18  # type: ignore[attr-defined]
    assert line.take(0).tenant == "stays"  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.sampled_from(["offer", "take", "drop", "expire"]), st.integers(0, 3)), max_size=150))
def test_work_and_length_agree_with_what_waits(steps: list[tuple[str, int]]) -> None:
    """After any mix of events nothing is counted that does not wait."""
    line, inside, now = queue(capacity=20, timeout=10 * SECOND), [], 0
    for step, n in steps:
        now += n * SECOND
        if step == "offer":
            w = waiter("abcd"[n], n % 3, 10 + n, n, now)
            if line.offer(w, now).refusal is None:
                inside.append(w)
        elif step == "take":
            taken = line.take(now)
            if taken is not None:
                inside.remove(taken)
        elif step == "drop" and inside:
            line.drop(inside.pop(n % len(inside)))
        elif step == "expire":
            for w in line.expire(now):
                inside.remove(w)
        assert len(inside) == len(line) <= 20
        assert sum(line._work.values()) == sum(w.work for w in inside)
