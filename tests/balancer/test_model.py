"""The values: what they promise by their shape."""

import msgspec
import pytest

from balancer.model import Balancing, Candidate, Fleet, Instance, Outcome, Priority, Table


def test_table_survives_the_wire() -> None:
    """What the agent packs is what a worker unpacks."""
    table = Table(3, {"m": Fleet((Instance(0, "a", weight=2.0, since=5), Instance(1, "b", ready=False)))})
    assert table == msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=Table)


def test_instances_do_not_change() -> None:
    """A decision may keep one: the next Table brings new ones."""
    with pytest.raises(AttributeError):
        Instance(0, "a").weight = 2.0  # type: ignore[misc]


def test_balancing_knows_its_keys() -> None:
    """A misspelt setting is an error."""
    with pytest.raises(msgspec.ValidationError, match="chioces"):
        msgspec.convert({"chioces": 2}, Balancing)


def test_priorities_order() -> None:
    """Lower numbers go first."""
    assert [Priority.CRITICAL, Priority.NORMAL, Priority.BATCH] == sorted(Priority)


def test_outcomes_are_their_own_names() -> None:
    """Records and metrics use them as they are."""
    assert [o.name.lower() for o in Outcome] == [o.value for o in Outcome]


def test_candidate_is_a_row_of_the_record() -> None:
    """Its fields, in the record's order."""
    from telemetry.record import CANDIDATE_FIELDS

    assert CANDIDATE_FIELDS == Candidate._fields
