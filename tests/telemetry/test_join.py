"""An engine's spans and our attempts, whichever is heard of first."""

from typing import Any

import pytest

from telemetry import names
from telemetry.join import EngineSpan, Join, engine_span
from tests.support.records import MS, START, attempt, record

SPAN = EngineSpan("aaaaaaaaaaaaaaaa", attempt().span_id, START + 10 * MS, START + 480 * MS, 0.02, 0.06, 0.4)


@pytest.mark.parametrize("engine_first", [True, False])
def test_joined_once(engine_first: bool) -> None:
    """Of 98 ms before the first token the engine explains 80: the network had 18."""
    join, one = Join(), record()
    if engine_first:
        assert [] == list(join.add_spans([SPAN]))
        (joined,) = join.add_record(one)
    else:
        assert [] == list(join.add_record(one))
        (joined,) = join.add_spans([SPAN])
    phases = joined.attempt.engine
    assert phases is not None
    assert (0.02, 0.06, 0.4) == (phases.queue, phases.prefill, phases.decode)
    assert 0.018 == pytest.approx(phases.network)
    assert one.attempts[0].engine is phases
    assert [] == list(join.add_spans([SPAN]))


def test_an_answer_that_is_not_streamed() -> None:
    """The network had what the engine's whole span leaves."""
    join = Join()
    list(join.add_record(record(first_token=0)))
    (joined,) = join.add_spans([SPAN])
    assert joined.attempt.engine is not None
    assert 0.028 == pytest.approx(joined.attempt.engine.network)


def test_bounded() -> None:
    """What never finds its other half is forgotten."""
    join = Join(most=2)
    for number in range(3):
        list(join.add_record(record(attempts=[attempt(span_id=f"{number:016x}")])))
    told = [EngineSpan("b" * 16, f"{number:016x}", 1, 2, 0.0, 0.0, 0.0) for number in range(3)]
    assert ["0000000000000001", "0000000000000002"] == [j.attempt.span_id for j in join.add_spans(told)]


@pytest.mark.parametrize(
    "changes",
    [
        {"said": {}},
        {"said": {names.ENGINE_QUEUE: -1.0}},
        {"said": {names.ENGINE_QUEUE: float("nan")}},
        {"said": {names.ENGINE_QUEUE: float("inf")}},
        {"parent_id": b""},
        {"start": 0},
        {"start": 3},
    ],
)
def test_nonsense_is_no_span(changes: dict[str, Any]) -> None:
    """An engine's word goes into metrics and weights: only what can be is taken."""
    good: dict[str, Any] = {
        "span_id": b"a" * 8, "parent_id": b"b" * 8, "start": 1, "end": 2, "said": {names.ENGINE_QUEUE: 0.5},
    }  # fmt: skip
    assert engine_span(**good) is not None
    assert engine_span(**{**good, **changes}) is None
