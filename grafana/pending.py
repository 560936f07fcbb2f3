"""The tuner's metrics, until `telemetry.names` has them; a test fails from then on, and this file goes."""

from telemetry.names import Metric

TUNER_UPDATES = Metric("headrace_tuner_updates", "counter", "Weights changed", ("model", "reason"))
TUNER_REJECTED = Metric("headrace_tuner_rejected", "counter", "Weights left as they were", ("model", "reason"))
TUNER_ROLLBACKS = Metric("headrace_tuner_rollbacks", "counter", "Weights set back", ("model",))
TUNER_AGE = Metric("headrace_tuner_input_age_seconds", "gauge", "Since the tuner last saw a request", ("model",))
TUNER_WEIGHT = Metric("headrace_tuner_weight", "gauge", "The weight that the tuner holds right", ("model", "instance"))
ALL = (TUNER_UPDATES, TUNER_REJECTED, TUNER_ROLLBACKS, TUNER_AGE, TUNER_WEIGHT)
