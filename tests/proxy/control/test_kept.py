"""The agent's memory."""

from pathlib import Path

import msgspec
import pytest

from proxy.config import Address, Config, Engine, Model, Telemetry
from proxy.control import kept as kept_module
from proxy.control.kept import Kept
from proxy.control.learned import samples
from tests.proxy.control.test_learned import taught
from tests.support.records import record


def config_of(directory: str | None) -> Config:
    engines = (Engine("http://127.0.0.1:9", "gpu"),)
    made = Config("ams", Address("127.0.0.1", 8080), {"llama": Model(engines)})
    return msgspec.structs.replace(made, telemetry=Telemetry(records=directory))


def configure(kept: Kept, directory: str | None) -> None:
    config = config_of(directory)
    kept.configure(config, kept.archive_for(config))


def test_the_last_records_by_their_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that came again stands for its newest record, until that one goes."""
    monkeypatch.setattr(kept_module, "KEPT_RECORDS", 3)
    kept = Kept()
    for number, name in enumerate(["a", "b", "a", "c", "d"]):
        kept.add(record(request_id=name, status=number))
    assert ["a", "c", "d"] == [one.request_id for one in kept.records]
    assert {"a": 2, "c": 3, "d": 4} == {key: one.status for key, one in kept.by_id.items()}


def test_files_come_and_go_with_the_config(tmp_path: Path) -> None:
    kept = Kept()
    configure(kept, None)
    kept.add(record())
    assert kept.write() == 0
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    configure(kept, one)
    archive = kept.archive
    kept.add(record(request_id="first"))
    configure(kept, one)
    assert kept.archive is archive
    configure(kept, two)
    kept.add(record(request_id="second"))
    configure(kept, None)
    assert kept.archive is None
    assert "first" in (tmp_path / "one" / "records.jsonl").read_text()
    assert "second" in (tmp_path / "two" / "records.jsonl").read_text()


def test_what_was_learned_survives_the_location(tmp_path: Path) -> None:
    kept = Kept()
    configure(kept, str(tmp_path))
    kept.learned.merge({"llama": taught(40), "gone": taught(9)})
    kept.close()
    successor = Kept()
    configure(successor, str(tmp_path))
    assert {"llama": 40} == {model: samples(one) for model, one in successor.learned.models.items()}
    successor.close()


def test_a_directory_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = Kept()
    with pytest.raises(OSError, match="file"):
        kept.archive_for(config_of(str(tmp_path / "file" / "x")))
    assert kept.archive is None
