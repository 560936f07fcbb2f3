"""The weights of a location's instances: a tuner for each model, fed with records, and what they have changed.

records, overdue requests of workers, network times ──▶ Tuner ──▶ Table, /api/weights, metrics, spans
"""

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

import msgspec

from proxy.config import Config
from proxy.control.messages import Overdue, Tuned
from telemetry.context import SAMPLED
from telemetry.metrics import Metrics
from telemetry.record import Record
from telemetry.tuner import Change, Sample, Tuner

log = logging.getLogger("headrace.weights")
HISTORY = 1000  # changes that are kept


class Weights:
    """One agent's. Times are monotonic ns, but in the history."""

    def __init__(self, metrics: Metrics, changed: Callable[[Change], None]) -> None:
        """`changed` hears of every change."""
        self.tuners: dict[str, Tuner] = {}
        self.history: collections.deque[Change] = collections.deque(maxlen=HISTORY)
        self.mode = "off"
        self._metrics, self._changed = metrics, changed
        self._exports = False  # only sampled traces can be looked at, so only they are evidence
        self._remembered: Tuned = {}
        self._begun = False  # with weights of its own, or with those of the agent before it

    def configure(self, config: Config) -> None:
        """Takes a config; instances that stay keep what was found."""
        self.mode, self._exports = config.telemetry.tuner, config.telemetry.otlp is not None
        before, self.tuners = self.tuners, {}
        for name, model in config.models.items():
            configured = {engine.name: engine.weight for engine in model.engines}
            tuner = before.get(name)
            if tuner is not None:
                tuner.configure(configured, config.telemetry.tuner)
            else:
                tuner = Tuner(name, configured, config.telemetry.tuner)
                self._remember(tuner)
            self.tuners[name] = tuner

    def restore(self, told: Tuned) -> bool:
        """Begins with what an agent before this one had found, as a worker tells; whether that was taken."""
        if self._begun or not told:
            return False
        self._begun, self._remembered = True, told
        for tuner in self.tuners.values():
            self._remember(tuner)
        return True

    def _remember(self, tuner: Tuner) -> None:
        with contextlib.suppress(ValueError):
            tuner.restore(self._remembered.get(tuner.model, {}))

    def snapshot(self) -> Tuned:
        """What was found."""
        return {name: tuner.snapshot() for name, tuner in self.tuners.items()}

    def of(self, model: str) -> Mapping[str, float]:
        """The weights to route by, by instance."""
        return self.tuners[model].weights

    def observe(self, record: Record, now: int) -> None:
        """Learns from a request that has ended, what was spilled to another location apart."""
        tuner = self.tuners.get(record.model)
        if tuner is None or not record.attempts or record.attempts[-1].location:
            return
        for attempt in record.attempts:
            tuner.attempted(attempt.instance, now)
        instance = record.attempts[-1].instance
        row = next((row for row in record.candidates if row[0] == instance), None)
        if row is None or not record.first_token or not record.sent:
            return
        shown = record.trace_flags & SAMPLED or not self._exports
        trace = (record.trace_id, record.span_id) if shown else None
        work, seconds = row[2] + record.prompt_tokens_estimated, (record.first_token - record.sent) / 1e9
        tuner.observe(Sample(instance, work, seconds, row[1], trace), now)

    def overdue(self, worker: int, rows: list[Overdue], now: int) -> None:
        """A worker's requests that wait longer than twice what was predicted, instead of those it told before."""
        found: dict[str, list[Sample]] = {}
        for row in rows:
            found.setdefault(row.model, []).append(
                Sample(row.instance, row.work, row.waited / 1e9, row.predicted, None)
            )
        for model, tuner in self.tuners.items():
            tuner.pending(worker, found.get(model, []), now)

    def network(self, model: str, instance: str, seconds: float) -> None:
        """An attempt's time that its engine does not explain."""
        if (tuner := self.tuners.get(model)) is not None:
            tuner.network(instance, seconds)

    def tick(self, now: int) -> bool:
        """Every five seconds; whether a weight to route by has changed."""
        in_force = False
        for model, tuner in self.tuners.items():
            for change in tuner.tick(now):
                self._keep(msgspec.structs.replace(change, at=time.time_ns()))
                in_force = in_force or change.mode == "on"
            for reason, n in tuner.take_rejected().items():
                self._metrics.left_alone(model, reason, n)
        self._begun = self._begun or in_force
        return in_force

    def _keep(self, change: Change) -> None:
        self.history.append(change)
        self._metrics.tuned(change.model, change.kind)
        self._changed(change)
        if change.kind != "update":
            log.warning(
                "%s: the weight of %s goes from %.2f to %.2f (%s): %s",
                change.model, change.instance, change.before, change.after, change.kind, change.reason,
            )  # fmt: skip
