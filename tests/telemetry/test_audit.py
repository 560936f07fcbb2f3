"""A weight's change as a span."""

import msgspec

from telemetry import names
from telemetry.audit import span
from telemetry.tuner import Change

CHANGE = Change(
    5, "llama", "gpu-1", "update", "on", 1.0, 0.8, 9e-5, 7e-5, 12.5, "1.29 x the fleet's time a token", (("ab" * 16, "cd" * 8),)
)  # fmt: skip


def test_a_change() -> None:
    """All that is known of it, and the traces that speak for it as links."""
    made = span(CHANGE, "12" * 8)
    assert ("headrace.tune", "internal", "12" * 8, "", 5, 5) == (
        made.name, made.kind, made.span_id, made.parent_id, made.start, made.end,
    )  # fmt: skip
    assert CHANGE.traces == made.links
    told = set(msgspec.structs.astuple(CHANGE)) - {CHANGE.at, CHANGE.traces}
    assert told == set(made.attributes.values())
    assert (1.0, 0.8) == (made.attributes[names.TUNER_BEFORE], made.attributes[names.TUNER_AFTER])
