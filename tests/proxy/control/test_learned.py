"""What was learned outlives who learned it."""

from pathlib import Path
from random import Random

import pytest

from balancer.estimate import Estimator
from balancer.ledger import Ledger
from balancer.model import Ask, Fleet, Instance, Table
from balancer.router import Router
from proxy.control.learned import Learned, samples


def taught(count: int, output: int = 50) -> dict[str, object]:
    estimator = Estimator()
    for _ in range(count):
        estimator.learn(400, 100, 0, output, output)
    return estimator.snapshot()


def test_who_has_seen_more_is_right() -> None:
    kept = Learned()
    kept.merge({"a": taught(5), "b": taught(3)})
    kept.merge({"a": taught(4, 99), "b": taught(6, 99), "c": taught(0)})
    assert {"a": 5, "b": 6} == {model: samples(snapshot) for model, snapshot in kept.models.items()}
    kept.keep(["b", "d"])
    assert ["b"] == list(kept.models)


@pytest.mark.parametrize("bad", [{}, {"output": [1, 2]}, {**taught(9), "quarters": [["x", 1, 2, 3]]}])
def test_what_is_no_snapshot_is_not_taken(bad: dict[str, object]) -> None:
    kept = Learned()
    kept.merge({"a": bad})
    assert not kept.models


def test_a_file_keeps_it(tmp_path: Path) -> None:
    kept = Learned()
    kept.merge({"a": taught(5)})
    kept.save(str(tmp_path))
    assert ["estimates.json"] == [path.name for path in tmp_path.iterdir()]
    again = Learned()
    again.load(str(tmp_path))
    assert again.models == kept.models
    kept.save(str(tmp_path / "gone"))  # nothing has changed: nothing to write
    kept.merge({"a": taught(6)})
    kept.save(str(tmp_path / "gone"))  # cannot; is told in the log, and tried again
    assert kept.changed


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"output": [1, 1]}}'])
def test_a_bad_file_is_a_new_beginning(tmp_path: Path, text: str) -> None:
    (tmp_path / "estimates.json").write_text(text)
    kept = Learned()
    kept.load(str(tmp_path))
    assert not kept.models


def test_a_router_begins_with_what_is_remembered() -> None:
    """Told before or after its Table; what it has learned itself stays."""
    for before in (True, False):
        router = Router(Ledger([0] * 12), Random(1))
        if before:
            router.remember({"m": taught(100)})
        router.update(Table(1, {"m": Fleet((Instance(0, "a"),))}), 0)
        if not before:
            router.remember({"m": taught(100)})
        assert router.estimator("m").samples == 100
        assert router.estimator("m").output_tokens(100) == 50
    router.learn(Ask("m", 400), 100, 10, 10)
    router.remember({"m": taught(500, 9)})
    assert router.estimator("m").samples == 101
    assert samples(router.learned()["m"]) == 101
