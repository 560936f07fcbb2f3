"""The tuner: it finds true speeds, moves by bounded steps, and takes back what was wrong."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.tuner import HIGHEST, LOWEST, SECOND, STALE, STEP, TICK, Sample, Tuner

START = 1_000 * SECOND
NAMES = ("a", "b", "c")


class Fleet:
    """Instances with a true time a token, watched by a tuner; time passes by ticks."""

    def __init__(self, *times: float, mode: str = "on") -> None:
        self.times = dict(zip(NAMES, times, strict=False))
        self.tuner = Tuner("llama", dict.fromkeys(self.times, 1.0), mode)  # type: ignore[arg-type]
        self.now = START
        self.silent: set[str] = set()  # give no first token

    def ticks(self, count: int) -> list[str]:
        """So many ticks, ten streams an instance in each; the kinds of changes."""
        kinds = []
        for _ in range(count):
            for name, seconds in self.times.items():
                for number in range(10):
                    work = 500 + 150 * number
                    if name not in self.silent:
                        predicted = 70e-6 * work / self.tuner.weights[name]
                        sample = Sample(
                            name, work, 0.015 + seconds * work, predicted, (f"{number:032x}", f"{number:016x}")
                        )
                        self.tuner.observe(sample, self.now + number * SECOND // 10)
            self.now += TICK
            kinds += [change.kind for change in self.tuner.tick(self.now)]
        return kinds


def test_a_mixed_fleet() -> None:
    """Three times as fast: near 3 within a minute, and it stays there."""
    fleet = Fleet(70e-6, 70e-6, 70e-6 / 3)
    fleet.ticks(12)
    assert 2.6 <= fleet.tuner.weights["c"] <= 3.4
    assert 1.0 == pytest.approx(fleet.tuner.weights["a"], abs=0.06)
    assert [] == fleet.ticks(12)


def test_an_even_fleet_stays() -> None:
    """Nothing to do is done."""
    fleet = Fleet(70e-6, 71e-6, 69e-6)
    assert [] == fleet.ticks(20)
    assert "small_error" in fleet.tuner.take_rejected()


def test_a_slowdown_and_back() -> None:
    """Three times slower: a third within a minute; healed: back within 90 s."""
    fleet = Fleet(70e-6, 70e-6, 70e-6)
    fleet.ticks(12)
    fleet.times["c"] *= 3
    fleet.ticks(12)
    assert fleet.tuner.weights["c"] <= 0.45
    fleet.times["c"] /= 3
    fleet.ticks(18)
    assert fleet.tuner.weights["c"] >= 0.85


def test_steps_are_bounded() -> None:
    """No tick moves a weight by more than its step, however wrong it is."""
    fleet = Fleet(70e-6, 70e-6, 7e-6)
    before = fleet.tuner.weights["c"]
    for _ in range(20):
        fleet.ticks(1)
        after = fleet.tuner.weights["c"]
        assert abs(math.log(after / before)) <= STEP + 1e-9
        assert LOWEST <= after <= HIGHEST
        before = after


def test_a_stalled_instance() -> None:
    """Its requests wait longer and longer: its weight falls though nothing finishes, and each counts once a tick."""
    fleet = Fleet(70e-6, 70e-6, 70e-6)
    fleet.ticks(6)
    fleet.silent.add("c")
    for tick in range(1, 9):
        waiting = [Sample("c", 1000, tick * 5.0, 0.1, None) for _ in range(10)]
        fleet.tuner.pending(0, waiting, fleet.now)
        fleet.ticks(1)
    assert fleet.tuner.weights["c"] < 0.5
    fleet.tuner.pending(0, [], fleet.now)
    fleet.silent.clear()
    fleet.ticks(24)
    assert fleet.tuner.weights["c"] >= 0.85


def test_an_outage_freezes_it() -> None:
    """Nothing seen for half a minute: nothing changes, and that is counted."""
    fleet = Fleet(70e-6, 70e-6, 20e-6)
    fleet.ticks(3)
    before = fleet.tuner.weights
    assert [] == fleet.tuner.tick(fleet.now + STALE + SECOND)
    assert before == fleet.tuner.weights
    assert 1 == fleet.tuner.take_rejected()["stale_inputs"]


def test_a_wrong_update_is_taken_back() -> None:
    """Waits grow beyond what is predicted, and the old weight was right: back, held, with the evidence."""
    fleet = Fleet(70e-6, 70e-6, 70e-6)
    fleet.ticks(14)
    fleet.tuner.force("c", 3.0, fleet.now)
    changes = []
    for _ in range(10):
        for name in NAMES:
            for number in range(10):
                slow = 3.0 if name == "c" else 1.0  # what too large a share does to it
                work = int((500 + 150 * number) * slow)
                seconds = 0.015 + 70e-6 * work
                predicted = 70e-6 * work / fleet.tuner.weights[name]
                fleet.tuner.observe(
                    Sample(name, work, seconds, predicted, (f"{number:032x}", f"{number:016x}")), fleet.now + number
                )
        fleet.now += TICK
        changes += fleet.tuner.tick(fleet.now)
    assert {"c"} == {change.instance for change in changes}
    assert 1.0 == pytest.approx(fleet.tuner.weights["c"], abs=0.35)
    assert all(change.traces and change.reason for change in changes)


def test_shadow() -> None:
    """It finds, and changes nothing."""
    fleet = Fleet(70e-6, 70e-6, 70e-6 / 3, mode="shadow")
    assert {"update"} == set(fleet.ticks(12))
    assert {1.0} == set(fleet.tuner.weights.values())
    assert fleet.tuner.found["c"] > 2


def test_attempts_without_samples() -> None:
    """After three minutes the configured weight."""
    fleet = Fleet(70e-6, 70e-6, 70e-6)
    fleet.tuner.force("c", 2.0, fleet.now)
    fleet.silent.add("c")
    kinds = []
    for _ in range(40):
        fleet.tuner.attempted("c", fleet.now)
        kinds += fleet.ticks(1)
    assert ["reset"] == kinds
    assert 1.0 == fleet.tuner.weights["c"]


def test_it_outlives_who_held_it() -> None:
    """What was found goes on in another, unless the config says something new."""
    fleet = Fleet(70e-6, 70e-6, 70e-6 / 3)
    fleet.ticks(12)
    other = Tuner("llama", {"a": 1.0, "b": 2.0, "c": 1.0})
    other.restore(fleet.tuner.snapshot())
    assert fleet.tuner.weights["c"] == other.weights["c"]
    assert 2.0 == other.weights["b"]


@pytest.mark.parametrize("row", [None, [1.0], [1.0, "x"], [1.0, float("nan")], [1.0, 99.0], [1.0, 0.0]])
def test_rubbish_is_no_snapshot(row: object) -> None:
    """And changes nothing."""
    tuner = Tuner("llama", {"a": 1.0})
    with pytest.raises(ValueError, match="weight"):
        tuner.restore({"a": row})
    assert {"a": 1.0} == tuner.weights


samples = st.builds(
    Sample, st.sampled_from(NAMES), st.integers(0, 10**7), st.floats(0, 1e5), st.floats(0, 1e5), st.just("0" * 32)
)


@given(st.lists(st.lists(samples, max_size=30), max_size=12))
def test_weights_stay_within_bounds(rounds: list[list[Sample]]) -> None:
    """Whatever is seen."""
    tuner, now = Tuner("llama", dict.fromkeys(NAMES, 1.0)), START
    for seen in rounds:
        for sample in seen:
            tuner.observe(sample, now)
        now += TICK
        tuner.tick(now)
        assert all(LOWEST <= weight <= HIGHEST for weight in tuner.weights.values())
