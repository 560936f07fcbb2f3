"""Estimates are unbiased where the world is steady and follow it where it moves."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.estimate import LENGTHS, PRIOR_OUTPUT, Estimator


def test_priors() -> None:
    """Before anything was seen: four bytes a token, 256 tokens out."""
    estimator = Estimator()
    assert (250, PRIOR_OUTPUT, 1.0) == (
        estimator.prompt_tokens(1000),
        estimator.output_tokens(250),
        estimator.tokens_per_event,
    )
    assert 1 == estimator.prompt_tokens(0)


def test_a_steady_world() -> None:
    """Constants are learned exactly."""
    estimator = Estimator()
    for _ in range(100):
        estimator.learn(3000, 1000, 0, 40, 20)
    assert (1000, 40, 2.0) == (estimator.prompt_tokens(3000), estimator.output_tokens(1000), estimator.tokens_per_event)


def test_buckets() -> None:
    """Long prompts and short ones, capped requests and free ones are told apart."""
    estimator = Estimator()
    for _ in range(100):
        estimator.learn(400, 100, 0, 10, 10)
        estimator.learn(40_000, 10_000, 0, 500, 500)
        estimator.learn(400, 100, 64, 64, 64)
    assert [10, 500, 64] == [
        estimator.output_tokens(100),
        estimator.output_tokens(10_000),
        estimator.output_tokens(100, 64),
    ]


def test_a_quarter_of_a_power() -> None:
    """Prompts of 1,100 and of 1,900 tokens lie within one power of two and are told apart."""
    estimator = Estimator()
    for _ in range(100):
        estimator.learn(4400, 1100, 0, 10, 10)
        estimator.learn(7600, 1900, 0, 90, 90)
    assert (10, 90) == (estimator.output_tokens(1100), estimator.output_tokens(1900))


def test_a_young_bucket_leans_on_the_model() -> None:
    """One odd request does not make a rule."""
    estimator = Estimator()
    for _ in range(200):
        estimator.learn(400, 100, 0, 100, 100)
    estimator.learn(400_000, 100_000, 0, 1000, 1000)
    assert 100 < estimator.output_tokens(100_000) < 300


def test_a_shift_is_followed() -> None:
    """Outputs ten times as long: within 150 requests the estimate is near."""
    estimator = Estimator()
    for _ in range(500):
        estimator.learn(400, 100, 0, 50, 50)
    for _ in range(150):
        estimator.learn(400, 100, 0, 500, 500)
    assert 450 < estimator.output_tokens(100) <= 500


def test_caps() -> None:
    """Never more than the client allows."""
    assert 5 == Estimator().output_tokens(100, 5)
    assert PRIOR_OUTPUT == Estimator().output_tokens(100, 2**63)


def test_residual_grows_with_a_heavy_tail() -> None:
    """Most stop at 8, some go to 1000: who has passed 16 has far to go."""
    estimator = Estimator()
    for i in range(1000):
        estimator.learn(400, 100, 0, 1000 if i % 20 == 0 else 8, 8)
    assert estimator.residual[(4).bit_length()] < 100
    assert 900 < estimator.residual[(16).bit_length()]


def test_residual_stays_the_same_list() -> None:
    """Leases hold it, so it is changed in place."""
    estimator = Estimator()
    held = estimator.residual
    estimator.learn(1, 1, 0, 1000, 1)
    estimator.restore(estimator.snapshot())
    assert held is estimator.residual
    assert LENGTHS == len(held)


@given(st.lists(st.tuples(*[st.integers(-5, 2**70)] * 5), max_size=20), st.integers(0, 2**70), st.integers(0, 2**70))
def test_nonsense_is_survived(learned: list[tuple[int, int, int, int, int]], prompt: int, cap: int) -> None:
    """Whatever engines and clients say, estimates are sane and bounded."""
    estimator = Estimator()
    for row in learned:
        estimator.learn(*row)
    tokens = estimator.output_tokens(estimator.prompt_tokens(prompt), cap)
    assert 1 <= tokens < 2**41
    assert all(1 <= n < 2**41 for n in estimator.residual)
    assert 0 < estimator.tokens_per_event <= 100


def test_snapshot_round_trip() -> None:
    """What was learned survives as plain data."""
    estimator = Estimator()
    for i in range(1, 300):
        estimator.learn(i * 5, i, i % 3 * 100, i * 2, i)
    plain = msgspec.json.decode(msgspec.json.encode(estimator.snapshot()))
    other = Estimator()
    other.restore(plain)
    assert estimator.snapshot() == other.snapshot()
    assert estimator.residual == other.residual


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"bytes": 1},
        {"bytes": [-1, 0]},
        {"bytes": [4, 1], "events": [1, 1], "output": [1, 1], "quarters": 5, "residual": []},
        {"bytes": [4, 1], "events": [1e9, 1], "output": [1, 1], "quarters": [], "residual": []},
        {"bytes": [4, 1], "events": [1, 1], "output": [1, 1], "quarters": [[float("inf"), 1, 1, 1]], "residual": []},
        {"bytes": [4, 1], "events": [1, 1], "output": [1, 1], "quarters": [[-1, 1, 1, 1]], "residual": []},
    ],
)
def test_broken_snapshots(broken: dict[str, object]) -> None:
    """A snapshot that is none changes nothing."""
    estimator = Estimator()
    with pytest.raises(ValueError, match="snapshot"):
        estimator.restore(broken)
    assert Estimator().snapshot() == estimator.snapshot()
