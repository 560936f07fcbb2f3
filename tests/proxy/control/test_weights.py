"""The weights of a location: what records teach, what is kept of changes, and what a new agent begins with."""

import pytest
from prometheus_client import CollectorRegistry

from proxy.config import Address, Config, Engine, Model, Telemetry
from proxy.control.messages import Overdue
from proxy.control.weights import Weights
from telemetry.metrics import Metrics
from telemetry.record import Record
from telemetry.tuner import Change
from tests.support.records import attempt, record

SECOND = 1_000_000_000
TRACE = record().trace_id
ENGINES = (Engine("http://127.0.0.1:9", "gpu-1"), Engine("http://127.0.0.1:10", "gpu-2"))


def config_of(*engines: Engine, **telemetry: object) -> Config:
    settings = Telemetry(**telemetry)  # type: ignore[arg-type]
    return Config("ams", Address("127.0.0.1", 8080), {"llama": Model(engines or ENGINES)}, telemetry=settings)


def of(instance: str, seconds: float, work: int = 1000, **changes: object) -> Record:
    """A stream at an instance with so much prompt ahead of its 200 tokens, that waited so long."""
    rows = ((instance, seconds, work - 200, 0, 0, 0, 0.0, 1.0), ("other", 9.0, 9000, 0, 0, 0, 0.0, 1.0))
    made = record(candidates=rows, attempts=[attempt(instance=instance)], **changes)
    made.first_token = made.sent + int(seconds * SECOND)
    return made


def teach(weights: Weights, now: int) -> None:
    """Twelve requests at each of two instances, of which the second takes three times as long."""
    for _ in range(12):
        weights.observe(of("gpu-1", 0.1), now)
        weights.observe(of("gpu-2", 0.3), now)


class Place:
    """Weights, and what they said of changes."""

    def __init__(self, *engines: Engine, **telemetry: object) -> None:
        self.registry = CollectorRegistry()
        self.told: list[Change] = []
        self.weights = Weights(Metrics(self.registry), self.told.append)
        self.weights.configure(config_of(*engines, **telemetry))

    def counted(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"headrace_tuner_{name}_total", {"model": "llama", **labels})


def test_records_change_weights() -> None:
    """The faster instance gets more; each change is told, counted and kept with its evidence."""
    place = Place()
    teach(place.weights, SECOND)
    assert place.weights.tick(6 * SECOND)
    weights = place.weights.of("llama")
    assert weights["gpu-1"] > 1.0 > weights["gpu-2"]
    assert place.told == list(place.weights.history)
    assert {(TRACE, record().span_id)} == {evidence for change in place.told for evidence in change.traces}
    assert 2.0 == place.counted("updates", reason="update")


@pytest.mark.parametrize(
    "changes",
    [
        {"first_token": 0}, {"sent": 0}, {"candidates": ()}, {"model": "other"}, {"attempts": []},
        {"attempts": [attempt(instance="gpu-1", location="lhr")]},
    ],
)  # fmt: skip
def test_what_teaches_nothing(changes: dict[str, object]) -> None:
    """Requests without a first token, an attempt or a decision, and what another location has served."""
    place = Place()
    for _ in range(20):
        made = of("gpu-1", 0.1)
        for key, value in changes.items():
            setattr(made, key, value)
        place.weights.observe(made, SECOND)
    assert 0.0 == place.weights.tuners["llama"].age(9 * SECOND)
    assert not place.weights.tick(6 * SECOND)


def test_shadow() -> None:
    """What would be changed is told, and changes nothing."""
    place = Place(tuner="shadow")
    teach(place.weights, SECOND)
    assert not place.weights.tick(6 * SECOND)
    assert {"gpu-1": 1.0, "gpu-2": 1.0} == place.weights.of("llama")
    assert ["shadow", "shadow"] == [change.mode for change in place.told]
    assert place.weights.tuners["llama"].found["gpu-1"] > 1.0


def test_off() -> None:
    """Nothing is looked at."""
    place = Place(tuner="off")
    teach(place.weights, SECOND)
    assert not place.weights.tick(6 * SECOND)
    assert [] == place.told


def test_why_weights_stay() -> None:
    """Is counted."""
    place = Place()
    place.weights.observe(of("gpu-1", 0.1), SECOND)
    assert not place.weights.tick(6 * SECOND)
    assert 2.0 == place.counted("rejected", reason="too_few_samples")


def test_evidence_can_be_looked_at() -> None:
    """With a backend only sampled traces are named, without one all: `headrace trace` shows them."""
    for otlp, count in ((None, 2), ("http://127.0.0.1:4317", 0)):
        place = Place(otlp=otlp)
        for _ in range(12):
            place.weights.observe(of("gpu-1", 0.1, trace_flags=0), SECOND)
            place.weights.observe(of("gpu-2", 0.3, trace_flags=0), SECOND)
        place.weights.tick(6 * SECOND)
        assert count == sum(bool(change.traces) for change in place.told)


def test_a_stalled_instance() -> None:
    """Loses weight by what waits there, though nothing of it finishes; a worker that is gone has nothing that waits."""
    place = Place()
    for _ in range(12):
        for engine in ENGINES:
            place.weights.observe(of(engine.name, 0.1), SECOND)
    rows = [Overdue("llama", "gpu-2", 1000, 5 * SECOND, 0.1), Overdue("other", "gpu-2", 1000, 5 * SECOND, 0.1)] * 8
    place.weights.overdue(0, rows, 6 * SECOND)
    assert place.weights.tick(6 * SECOND)
    fallen = place.weights.of("llama")["gpu-2"]
    assert fallen < 1.0
    place.weights.overdue(0, [], 7 * SECOND)
    for _ in range(40):
        for engine in ENGINES:
            place.weights.observe(of(engine.name, 0.1), 10 * SECOND)
    place.weights.tick(11 * SECOND)
    assert place.weights.of("llama")["gpu-2"] > fallen


def test_network_time_is_no_fault_of_the_instance() -> None:
    """What the engine's spans do not explain is taken off its time; other models' instances are not known."""
    place = Place()
    for _ in range(50):
        place.weights.network("llama", "gpu-2", 0.2)
        place.weights.network("other", "gpu-2", 9.0)
    teach(place.weights, SECOND)
    assert not place.weights.tick(6 * SECOND)


def test_a_new_agent() -> None:
    """Begins with what a worker says the last one had found, whether its config comes before or after; later words, and
    those of a configured weight that is another, count for nothing.
    """
    before = Place()
    teach(before.weights, SECOND)
    before.weights.tick(6 * SECOND)
    found = before.weights.snapshot()
    after = Place()
    assert not after.weights.restore({})
    assert after.weights.restore(found)
    assert before.weights.of("llama") == after.weights.of("llama")
    assert not after.weights.restore({"llama": {"gpu-1": (1.0, 0.5)}})
    early = Weights(Metrics(CollectorRegistry()), lambda change: None)
    early.restore(found)
    early.configure(config_of(ENGINES[0], Engine("http://127.0.0.1:10", "gpu-2", weight=2.0)))
    assert before.weights.of("llama")["gpu-1"] == early.of("llama")["gpu-1"]
    assert 2.0 == early.of("llama")["gpu-2"]
    assert not before.weights.restore(found), "it has weights of its own"


def test_nonsense_is_not_taken() -> None:
    """A weight beyond all bounds."""
    place = Place()
    place.weights.restore({"llama": {"gpu-1": (1.0, 1e9)}})
    assert 1.0 == place.weights.of("llama")["gpu-1"]


def test_a_rollback_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """And counted on its own."""
    place = Place()
    change = Change(1, "llama", "gpu-1", "rollback", "on", 2.0, 1.0, 7e-5, 7e-5, 12.0, "waits grew")
    place.weights._keep(change)
    assert "the weight of gpu-1 goes from 2.00 to 1.00 (rollback): waits grew" in caplog.text
    assert 1.0 == place.counted("rollbacks")
