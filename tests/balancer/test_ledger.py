"""The ledger is exact: whatever happens to requests, nothing is left behind and nothing goes below zero."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from balancer.ledger import WIDTH, Lease, Ledger

RESIDUAL = [1, 2, 3, 5, 8, 13, 21, *[34] * 57]
CELLS = 3


def test_a_life() -> None:
    """Prompt until the first token, output as it comes, nothing at the end."""
    ledger = Ledger([0] * WIDTH * CELLS)
    lease = ledger.acquire(1, 100, 20, RESIDUAL)
    assert (100, 20, 1) == ledger.outstanding(1)
    lease.first_token()
    assert (0, 20, 1) == ledger.outstanding(1)
    lease.progress(5)
    assert (0, 15, 1) == ledger.outstanding(1)
    lease.progress(20)
    assert (0, RESIDUAL[5], 1) == ledger.outstanding(1)
    lease.release()
    assert [0] * WIDTH * CELLS == ledger.cells


def test_release_is_once() -> None:
    """A second release and anything after it change nothing."""
    ledger = Ledger([0] * WIDTH)
    other = ledger.acquire(0, 7, 7, RESIDUAL)
    lease = ledger.acquire(0, 5, 5, RESIDUAL)
    for _ in range(2):
        lease.release()
        lease.first_token()
        lease.progress(3)
        lease.elapse(10, 0, 1)
    assert (7, 7, 1) == ledger.outstanding(0)
    other.release()
    assert (0, 0, 0) == ledger.outstanding(0)


def test_caps() -> None:
    """No more is expected than the client allows."""
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 1, 500, RESIDUAL, cap=10)
    assert 10 == ledger.outstanding(0)[1]
    lease.progress(8)
    assert 2 == ledger.outstanding(0)[1]
    lease.progress(8)
    assert 0 == ledger.outstanding(0)[1]


def test_tokens_per_event() -> None:
    """An event may stand for several tokens."""
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 1, 100, RESIDUAL, tokens_per_event=2.5)
    lease.progress(10)
    assert (25, 75) == (lease.emitted, ledger.outstanding(0)[1])


def test_elapse() -> None:
    """Without a stream time stands in for tokens."""
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 9, 10, RESIDUAL)
    lease.elapse(99, 100, 10)
    assert (9, 10, 1) == ledger.outstanding(0)
    lease.elapse(140, 100, 10)
    assert (0, 6, 1) == ledger.outstanding(0)
    lease.elapse(10_000, 100, 10)
    assert (0, 0, 1) == ledger.outstanding(0)


@given(st.integers(0, 400), st.lists(st.integers(1, 300), min_size=64, max_size=64), st.integers(0, 500))
def test_a_course_is_what_events_would_show(expected: int, residual: list[int], emitted: int) -> None:
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 9, expected, residual)
    lease.progress(emitted)
    slope, events = lease.course()
    before = ledger.outstanding(0)[1]
    for event in range(1, min(events, 600) + 1):
        lease.progress(1)
        assert before - slope * event == ledger.outstanding(0)[1]
    assert events >= 0


def test_no_course_with_a_cap_or_with_events_of_several_tokens() -> None:
    ledger = Ledger([0] * WIDTH)
    assert ledger.acquire(0, 9, 50, RESIDUAL, cap=20).course() == (0, 0)
    assert ledger.acquire(0, 9, 50, RESIDUAL, tokens_per_event=1.5).course() == (0, 0)


def test_rows_are_summed() -> None:
    """Several workers see each other's work, and write only their own."""
    cells = [0] * 2 * WIDTH
    one, other = Ledger(cells, 0, (WIDTH,)), Ledger(cells, WIDTH, (0,))
    one.acquire(0, 10, 5, RESIDUAL)
    other.acquire(0, 20, 7, RESIDUAL)
    assert (30, 12, 2) == one.outstanding(0) == other.outstanding(0)
    assert (10, 5, 1) == one.own(0)


class Leases(RuleBasedStateMachine):
    """Any order of events on any number of requests at two workers."""

    @initialize()
    def start(self) -> None:
        self.cells = [0] * 2 * WIDTH * CELLS
        self.ledgers = [Ledger(self.cells, 0, (WIDTH * CELLS,)), Ledger(self.cells, WIDTH * CELLS, (0,))]
        self.leases: list[Lease] = []
        self.open: set[int] = set()

    @rule(
        row=st.integers(0, 1), cell=st.integers(0, CELLS - 1), prompt=st.integers(0, 10**6), expected=st.integers(0, 10**5),
        cap=st.one_of(st.just(0), st.integers(1, 2**63)), ratio=st.floats(0.01, 100),
    )  # fmt: skip
    def acquire(self, row: int, cell: int, prompt: int, expected: int, cap: int, ratio: float) -> None:
        self.leases.append(self.ledgers[row].acquire(cell, prompt, expected, RESIDUAL, cap, ratio))
        self.open.add(len(self.leases) - 1)

    @rule(data=st.data(), what=st.sampled_from(["first_token", "progress", "elapse", "release"]))
    def happen(self, data: st.DataObject, what: str) -> None:
        if not self.leases:
            return
        index = data.draw(st.integers(0, len(self.leases) - 1))
        lease = self.leases[index]
        if what == "first_token":
            lease.first_token()
        elif what == "progress":
            lease.progress(data.draw(st.integers(0, 5000)))
        elif what == "elapse":
            lease.elapse(*(data.draw(st.integers(0, 10**12)) for _ in range(3)))
        else:
            lease.release()
            self.open.discard(index)

    @invariant()
    def nothing_below_zero(self) -> None:
        assert min(getattr(self, "cells", [0])) >= 0

    @invariant()
    def requests_are_the_open_leases(self) -> None:
        if hasattr(self, "ledgers"):
            assert len(self.open) == sum(self.ledgers[0].outstanding(cell)[2] for cell in range(CELLS))

    def teardown(self) -> None:
        for lease in getattr(self, "leases", []):
            lease.release()
        assert not any(getattr(self, "cells", []))


TestLeases = Leases.TestCase


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 400))
def test_progress_equals_its_definition(steps: list[int], expected: int) -> None:
    """D is max(expected - emitted, residual) after every step."""
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 0, expected, RESIDUAL)
    emitted = 0
    for step in steps:
        lease.progress(step)
        emitted += step
        assert max(expected - emitted, RESIDUAL[emitted.bit_length()]) == ledger.outstanding(0)[1]
