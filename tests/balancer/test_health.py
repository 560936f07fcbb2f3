"""Ejection, trials, phantom tokens, slow start."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.health import EVENTS, TRANSITIONS, Event, Health, Note, State, slow_start
from balancer.model import Outcome

SECOND = 1_000_000_000
FAILED = [Outcome.REFUSED, Outcome.RESET, Outcome.STALLED, Outcome.GARBAGE, Outcome.SERVER_ERROR]


def eject(health: Health, cell: int, now: int) -> int:
    """Fail three times; the ejection's end."""
    for _ in range(3):
        health.report(cell, Outcome.REFUSED, now)
    return health.notes[cell].until


def test_every_state_and_event_is_in_the_table() -> None:
    """No pair can surprise."""
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}


def test_every_outcome_is_an_event() -> None:
    """No outcome is unknown to health."""
    assert set(EVENTS) == set(Outcome)


@pytest.mark.parametrize("outcome", FAILED)
def test_three_failures_in_a_row_eject(outcome: Outcome) -> None:
    """Two do not, the third does."""
    health = Health(Random(1))
    assert [False, False, True] == [health.report(7, outcome, SECOND) for _ in range(3)]
    assert health.ejected(SECOND) == [7]


def test_success_between_failures_resets() -> None:
    """Only failures in a row count."""
    health = Health(Random(1))
    for outcome in [Outcome.RESET, Outcome.RESET, Outcome.OK, Outcome.RESET, Outcome.RESET]:
        health.report(7, outcome, SECOND)
    assert health.ejected(SECOND) == []


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_FAULT, Outcome.CANCELLED, Outcome.OK])
def test_no_fault_leaves_no_note(outcome: Outcome) -> None:
    """What says nothing against an instance costs no memory."""
    health = Health(Random(1))
    for _ in range(10):
        health.report(7, outcome, SECOND)
    assert health.notes == {}


def test_client_faults_do_not_interrupt_failures() -> None:
    """They say neither good nor bad."""
    health = Health(Random(1))
    for outcome in [Outcome.RESET, Outcome.CLIENT_FAULT, Outcome.RESET, Outcome.CANCELLED, Outcome.RESET]:
        health.report(7, outcome, SECOND)
    assert health.ejected(SECOND) == [7]


def test_saturated_is_marked_for_a_second_and_never_ejects() -> None:
    """A 429 is no failure."""
    health = Health(Random(1))
    for _ in range(5):
        health.report(7, Outcome.SATURATED, SECOND)
    assert health.ejected(SECOND) == []
    assert health.notes[7].busy_until == 2 * SECOND
    assert health.notes[7].phantom(SECOND) == 0
    health.report(7, Outcome.OK, 3 * SECOND)
    assert health.notes == {}


@pytest.mark.parametrize("seed", range(5))
def test_ejection_doubles_up_to_a_minute(seed: int) -> None:
    """5, 10, 20, 40, 60, 60 s, each within a fifth."""
    health = Health(Random(seed))
    now = SECOND
    eject(health, 7, now)
    for expected in [5, 10, 20, 40, 60, 60]:
        length = (health.notes[7].until - now) / SECOND
        assert 0.8 * expected <= length <= 1.2 * expected
        now = health.notes[7].until
        health.begin(7, now)
        health.report(7, Outcome.STALLED, now)


def test_one_trial_then_back_with_slow_start() -> None:
    """After its time one request; its success brings the instance back slowly."""
    health = Health(Random(1))
    until = eject(health, 7, SECOND)
    assert not health.notes[7].usable(until - 1)
    assert health.notes[7].usable(until)
    health.begin(7, until)
    assert not health.notes[7].usable(until)
    assert health.ejected(until) == [7]
    assert health.report(7, Outcome.OK, until + SECOND)
    assert health.notes[7].usable(until + SECOND)
    assert slow_start(health.notes[7].returned, until + SECOND) == 0.1
    assert health.ejected(until + SECOND) == []


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.CLIENT_FAULT, Outcome.SATURATED])
def test_trial_that_says_nothing_gives_its_slot_back(outcome: Outcome) -> None:
    """The next request is the trial."""
    health = Health(Random(1))
    until = eject(health, 7, SECOND)
    health.begin(7, until)
    health.report(7, outcome, until)
    assert health.notes[7].usable(until)


def test_older_attempt_leaves_the_trial_alone() -> None:
    """If the caller knows that an attempt was not the trial, its end does not free the slot."""
    health = Health(Random(1))
    until = eject(health, 7, SECOND)
    health.begin(7, until)
    health.report(7, Outcome.CANCELLED, until, trial=False)
    assert not health.notes[7].usable(until)


def test_older_attempts_do_not_lengthen_an_ejection() -> None:
    """Streams cut by the same crash are not new evidence."""
    health = Health(Random(1))
    until = eject(health, 7, SECOND)
    health.report(7, Outcome.RESET, SECOND)
    assert health.notes[7].until == until


def test_phantoms_fade_in_ten_seconds() -> None:
    """20,000 a failure, linear to nothing."""
    note = Note(phantoms=40_000.0, failed=SECOND)
    assert [40_000, 20_000, 0, 0] == [note.phantom(t * SECOND) for t in (1, 6, 11, 20)]


@pytest.mark.parametrize(("seconds", "factor"), [(0, 0.1), (1, 0.1), (15, 0.5), (30, 1.0), (99, 1.0)])
def test_slow_start(seconds: int, factor: float) -> None:
    """A tenth at first, all after half a minute."""
    assert slow_start(SECOND, (1 + seconds) * SECOND) == factor


def test_no_slow_start_without_a_beginning() -> None:
    """0 means that it was always there."""
    assert slow_start(0, SECOND) == 1.0


def test_forget_keeps_only_what_is_there_and_matters() -> None:
    """Gone cells and spent notes go."""
    health = Health(Random(1))
    eject(health, 1, SECOND)
    eject(health, 2, SECOND)
    health.report(3, Outcome.SATURATED, SECOND)
    health.forget({1, 3}, 5 * SECOND)
    assert (list(health.notes), health.out) == ([1], {1})


steps = st.lists(st.tuples(st.integers(0, 20 * SECOND), st.sampled_from([*Outcome, "begin"])), max_size=200)


@given(steps)
def test_never_two_trials_and_the_set_agrees(steps: list[tuple[int, Outcome | str]]) -> None:
    """`out` holds exactly the cells that are not healthy; a trial bars every other request."""
    health, now = Health(Random(3)), SECOND
    for gap, step in steps:
        now += gap
        if isinstance(step, Outcome):
            health.report(1, step, now)
        else:
            health.begin(1, now)
        note = health.notes.get(1, Note())
        assert (1 in health.out) == (note.state is not State.HEALTHY)
        assert not (note.state is State.TRIAL and note.usable(now))
