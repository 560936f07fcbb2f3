"""The aggregate: routes, trials, panic, saturation, Tables that come and go."""

from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.admit import Waiter
from balancer.ledger import Lease, Ledger
from balancer.model import REASONS, Ask, Balancing, Decision, Fleet, Instance, Outcome, Shut, Table
from balancer.router import Router

SECOND = 1_000_000_000
ASK = Ask("m", 400)


def fleet(count: int, **fields: float) -> Fleet:
    """So many instances, cells from 0."""
    return Fleet(tuple(Instance(i, f"i{i}", **fields) for i in range(count)))  # type: ignore[arg-type]


def router(count: int = 4, seed: int = 1) -> Router:
    """A router of one model "m"."""
    made = Router(Ledger([0] * 3 * 16), Random(seed))
    made.update(Table(1, {"m": fleet(count)}), 0)
    return made


def decide(made: Router, now: int = 0, tried: tuple[int, ...] = (), admit: bool = True) -> Decision:
    """Route, and there must be a way."""
    decision = made.route(ASK, now, tried, admit)
    assert isinstance(decision, Decision)
    return decision


def eject(made: Router, cell: int, now: int) -> None:
    """Three failures."""
    for _ in range(3):
        made.report(cell, Outcome.REFUSED, now)


def test_decision_tells_all() -> None:
    """Candidates, reason, estimates, version; the winner has the lowest score."""
    decision = decide(router())
    assert len(decision.candidates) == 2
    assert decision.instance.name == min(decision.candidates, key=lambda c: c.score).instance or (
        decision.candidates[0].score == decision.candidates[1].score
    )
    assert (decision.reason, decision.version) == ("p2c", 1)
    assert decision.prompt_tokens > 0
    assert decision.output_tokens > 0


def test_unknown_model_and_empty_fleet_have_no_instance() -> None:
    """Nothing to choose from."""
    made = router(0)
    assert Shut.NO_INSTANCE is made.route(ASK, 0)
    assert Shut.NO_INSTANCE is made.route(Ask("other", 1), 0)
    assert not made.usable()


def test_reasons() -> None:
    """only, retry, and none when all were tried."""
    made = router(2)
    assert decide(made, tried=(0,)).reason == "retry"
    assert Shut.NO_INSTANCE is made.route(ASK, 0, (0, 1))
    assert decide(router(1)).reason == "only"


def test_open_puts_the_work_on_the_ledger_and_release_takes_it_off() -> None:
    """The lease accounts for it."""
    made = router()
    decision = decide(made)
    lease = made.open(ASK, decision, 0)
    cell = decision.instance.cell
    assert lease.cell == cell
    assert made._ledger.outstanding(cell)[0] == decision.prompt_tokens
    lease.release()
    assert made._ledger.outstanding(cell) == (0, 0, 0)


def test_load_is_spread() -> None:
    """400 equal requests that stay, on 8 instances: all within a few of 50."""
    made = router(8)
    made.configure(Balancing(ttft_target=1e6))
    placed = [0] * 8
    for _ in range(400):
        decision = decide(made)
        made.open(ASK, decision, 0)
        placed[decision.instance.cell] += 1
    assert max(placed) - min(placed) <= 6


def test_ejected_instance_gets_one_trial_then_returns() -> None:
    """Nothing while it is out; then one at a time; then all."""
    made = router(4)
    eject(made, 2, SECOND)
    assert made.ejected(SECOND) == ["i2"]
    assert all(decide(made, SECOND).instance.cell != 2 for _ in range(100))
    now = made.health.notes[2].until
    seen = [decide(made, now) for _ in range(50)]
    trial = next(d for d in seen if d.instance.cell == 2)
    assert trial.reason == "trial"
    lease = made.open(ASK, trial, now)
    assert all(decide(made, now).instance.cell != 2 for _ in range(100))
    lease.release()
    made.report(2, Outcome.OK, now)
    assert made.ejected(now) == []
    assert any(decide(made, now + 40 * SECOND).instance.cell == 2 for _ in range(50))


def test_panic_beyond_half() -> None:
    """Two of four may be out; with the third all count as healthy."""
    made = router(4)
    eject(made, 0, SECOND)
    eject(made, 1, SECOND)
    assert made.ejected(SECOND) == ["i0", "i1"]
    eject(made, 2, SECOND)
    assert made.ejected(SECOND) == []
    decisions = [decide(made, SECOND, admit=False) for _ in range(200)]
    assert {"panic"} == {d.reason for d in decisions}
    assert {"i0", "i1", "i2", "i3"} == {c.instance for d in decisions for c in d.candidates}


def test_single_instance_is_never_ejected() -> None:
    """One of one is more than half."""
    made = router(1)
    eject(made, 0, SECOND)
    assert decide(made, SECOND).reason == "panic"


events = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(Outcome), st.integers(0, 4 * SECOND)), max_size=80)


@settings(deadline=None)
@given(st.integers(1, 9), events)
def test_never_more_than_half_out_and_always_a_way(count: int, events: list[tuple[int, Outcome, int]]) -> None:
    """Whatever fails: at most half are out, and a ready fleet takes a request unless all it has is on trial."""
    made, now = router(count), SECOND
    for cell, outcome, gap in events:
        now += gap
        made.report(cell, outcome, now)
        out = made.ejected(now)
        assert 2 * len(out) <= count
        decision = decide(made, now)
        assert decision.instance.name not in out
        assert decision.reason in REASONS
        made.open(ASK, decision, now).release()


def test_black_hole_gets_next_to_nothing() -> None:
    """An instance that fails at once: after its third failure less than 1 % of the traffic."""
    made, now, failures, after = router(8, seed=3), SECOND, 0, 0
    for _ in range(6000):  # 100 a second
        now += SECOND // 100
        decision = decide(made, now)
        lease = made.open(ASK, decision, now)
        if decision.instance.cell == 5:
            after += failures >= 3
            failures += 1
            made.report(5, Outcome.RESET, now)
        else:
            made.report(decision.instance.cell, Outcome.OK, now)
        lease.release()
    assert 3 <= failures < 20
    assert after < 60


def test_saturated_when_all_have_enough_to_do() -> None:
    """Not while one has room; a retry goes on regardless; one that is idle never is."""
    made = router(6)
    leases = []
    for cell in range(5):
        leases.append(made._ledger.acquire(cell, 50_000, 1, made.estimator("m").residual))
    assert {5} == {decide(made).instance.cell for _ in range(50)}
    leases.append(made._ledger.acquire(5, 50_000, 1, made.estimator("m").residual))
    assert Shut.SATURATED is made.route(ASK, 0)
    assert decide(made, admit=False).reason == "p2c"
    leases.pop(0).release()
    assert decide(made).instance.cell == 0


def test_429_sends_others_elsewhere_for_a_second() -> None:
    """A marked instance comes last while others are open, and takes what it must when idle."""
    made = router(2)
    made.report(0, Outcome.SATURATED, SECOND)
    assert {1} == {decide(made, SECOND).instance.cell for _ in range(50)}
    made.report(1, Outcome.SATURATED, SECOND)
    assert {0, 1} == {decide(made, SECOND).instance.cell for _ in range(50)}


def test_update_keeps_what_is_still_there_and_forgets_the_rest() -> None:
    """Health by cell and name, estimators and queues by model."""
    made = router(4)
    eject(made, 0, SECOND)
    eject(made, 1, SECOND)
    estimator, queue = made.estimator("m"), made.queue("m")
    instances = (Instance(0, "i0"), Instance(1, "somebody else"), Instance(2, "i2"))
    made.update(Table(2, {"m": Fleet(instances), "n": fleet(1)}), SECOND)
    assert made.ejected(SECOND) == ["i0"]
    assert ([made.serves(name) for name in "mn"], made.version) == ([True, True], 2)
    assert made.estimator("m") is estimator
    assert made.queue("m") is queue
    made.update(Table(3, {}), SECOND)
    assert (made.serves("m"), made.ejected(SECOND)) == (False, [])
    with pytest.raises(KeyError):
        made.queue("m")


def test_queue_of_a_gone_model_stays_until_it_is_empty() -> None:
    """Its waiters must be told."""
    made = router(1)
    queue = made.queue("m")
    queue.offer(Waiter(Ask("m", 40, tenant="t"), 10, 10, 0), 0)
    made.update(Table(2, {}), 0)
    assert (made.queue("m"), made.queued) == (queue, 1)
    queue.take(0)
    made.update(Table(3, {}), 0)
    assert made.queued == 0


def test_queue_limits_are_configured() -> None:
    """A limit given holds, one left out stays."""
    made = router(1)
    made.configure(Balancing(), queue_capacity=1)
    made.configure(Balancing(), queue_timeout_ns=5 * SECOND)
    queue = made.queue("m")
    assert queue.offer(Waiter(Ask("m", 40, tenant="t"), 10, 10, 0), 0).refusal is None
    refusal = queue.offer(Waiter(Ask("m", 40, tenant="t"), 10, 10, 0), 0).refusal
    assert refusal is not None
    assert refusal.reason == "queue_full"
    assert len(queue.expire(5 * SECOND)) == 1


def test_learn_reaches_the_estimator() -> None:
    """Prompt tokens follow the answers' usage; a model that is gone is no error."""
    made = router(1)
    for _ in range(500):
        made.learn(ASK, 50, 10, 10)
    made.learn(Ask("gone", 1), 1, 1, 1)
    assert decide(made).prompt_tokens == pytest.approx(50, abs=5)


def test_report_of_an_unknown_cell_is_nothing() -> None:
    """An attempt may end after its instance left."""
    made = router(1)
    eject(made, 9, SECOND)
    assert made.health.notes == {}


def play(seed: int) -> list[tuple[str, str]]:
    """A run with failures; every decision of it."""
    made, script, now, said = router(6, seed), Random(99), SECOND, []
    for _ in range(500):
        now += script.randrange(SECOND // 10)
        decision = decide(made, now, admit=False)
        lease = made.open(ASK, decision, now)
        said.append((decision.instance.name, decision.reason))
        made.report(decision.instance.cell, script.choice([Outcome.OK, Outcome.RESET]), now)
        if script.random() < 0.8:
            lease.release()
    return said


def test_same_seed_same_decisions() -> None:
    """And another seed, others."""
    assert play(1) == play(1) != play(2)


def spread(workers: int, shared: bool = True, requests: int = 6000) -> float:
    """Mean coefficient of variation of outstanding work over 8 instances, requests going to the workers in turn; each
    leaves after about 160 others have come. Without `shared` a worker sees its own work only.
    """
    count, width, draws = 8, 3 * 16, Random(7)
    board = [0] * width * workers
    rows = [width * worker for worker in range(workers)]
    routers = []
    for row in rows:
        others = [other for other in rows if other != row] if shared else []
        routers.append(Router(Ledger(board, row, others), Random(row + 1)))
        routers[-1].update(Table(1, {"m": fleet(count)}), 0)
    leaves: dict[int, list[Lease]] = {}
    spreads = []
    for at in range(requests):
        for lease in leaves.pop(at, []):
            lease.release()
        made = routers[at % workers]
        ask = Ask("m", 100 + int(draws.expovariate(1 / 2000)))
        decision = made.route(ask, 0, admit=False)
        assert isinstance(decision, Decision)
        leaves.setdefault(at + 1 + int(draws.expovariate(1 / 160)), []).append(made.open(ask, decision, 0))
        work = [sum(board[row + 3 * cell] + board[row + 3 * cell + 1] / 2 for row in rows) for cell in range(count)]
        if at > requests / 10:
            spreads.append(pstdev(work) / fmean(work))
    return fmean(spreads)


def test_two_workers_place_as_one() -> None:
    """Over one board the spread of outstanding work is one worker's within 10 %; without the board it is not."""
    alone = spread(1)
    assert abs(spread(2) / alone - 1) < 0.1
    assert abs(spread(4) / alone - 1) < 0.1
    assert spread(4, shared=False) / alone > 1.1
