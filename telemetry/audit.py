"""What the tuner changed, as a span linked to the traces that speak for it. Pure."""

from telemetry import names
from telemetry.tree import INTERNAL, Span
from telemetry.tuner import Change


def span(change: Change, span_id: str) -> Span:
    """A change's own span, the only one of its trace."""
    attributes = {
        names.GEN_AI_MODEL: change.model, names.INSTANCE: change.instance, names.TUNER_KIND: change.kind,
        names.TUNER_MODE: change.mode, names.TUNER_BEFORE: change.before, names.TUNER_AFTER: change.after,
        names.TUNER_RATE: change.seconds_per_token, names.TUNER_FLEET: change.fleet, names.TUNER_SAMPLES: change.samples,
        names.TUNER_REASON: change.reason,
    }  # fmt: skip
    return Span("headrace.tune", INTERNAL, span_id, "", change.at, change.at, attributes, links=change.traces)
