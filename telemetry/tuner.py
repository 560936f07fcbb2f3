"""The tuner: how fast each instance of a model really is, by what its requests waited (BALANCING 6). Pure.

It identifies, it does not equalise. Of each streamed attempt x is the prompt tokens ahead of it at dispatch and its own, y
its time to first token. Seconds a token: `b = sum(0.98^j (y - a)) / sum(0.98^j x)`, which hardly depends on the weight; a
is what an idle instance takes anyway. An instance's right weight is `w* = clamp(median(b) / b, 1/8, 4)`, and every five
seconds its weight goes a part of the way: `e = ln(w*/w)`, `ln w += clamp(0.3 e, +-0.2)` if |e| > 0.05.

Requests that wait longer than twice what was predicted count as they stand, anew at each tick and not beyond it: a stalled
instance is seen though nothing of it finishes, and nothing counts twice. Times are ns of any steady clock.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec

SECOND = 1_000_000_000
TICK = 5 * SECOND
DECAY = 0.98  # a sample
LEAST_SAMPLES = 10  # in the decayed window
IDLE_TTFT = 0.020  # s: a, unless less was seen
IDLE_MEMORY = 300 * SECOND
LEAST_B = 1e-6  # s a token
LOWEST, HIGHEST = 1 / 8, 4.0
DEADBAND, GAIN, STEP = 0.05, 0.3, 0.2
STALE = 30 * SECOND
WINDOW = 30 * SECOND
WORSE = 1.25
LEAST_RAISE = 0.1  # of ln w: what was raised less did not make waits grow so much
HOLD = 300 * SECOND
SILENT = 180 * SECOND  # attempts but no samples for so long: the configured weight
MOST_RATIOS = 1000
EVIDENCE = 5  # trace ids a change
NETWORK_GAIN = 0.1

Mode = Literal["off", "shadow", "on"]


class Sample(NamedTuple):
    """One streamed attempt with a first token, or one that still waits for it."""

    instance: str
    work: int  # tokens: prompts ahead of it at dispatch, and its own
    seconds: float  # from its sending to its first token, or until now
    predicted: float  # s
    trace: tuple[str, str] | None  # trace and span id, if it can be looked at


class Change(msgspec.Struct, frozen=True):
    """One line of the audit trail."""

    at: int  # Unix ns, set by who keeps it
    model: str
    instance: str
    kind: str  # update, rollback, reset
    mode: str  # shadow: it is not in force
    before: float
    after: float
    seconds_per_token: float  # b; 0 if unknown
    fleet: float  # the median of b
    samples: float  # decayed
    reason: str
    traces: tuple[tuple[str, str], ...] = ()  # trace and span ids of requests that speak for it


class Found:
    """What is known of one instance."""

    def __init__(self, configured: float) -> None:
        self.configured = self.weight = configured
        self.waited = self.work = self.samples = 0.0  # decayed sums of y - a, of x, of 1
        self.lows: deque[tuple[int, float]] = deque()  # the smallest y, rising, of the last five minutes
        self.network = 0.0
        self.ratios: deque[tuple[int, float]] = deque(maxlen=MOST_RATIOS)  # y over predicted
        self.weights: deque[tuple[int, float]] = deque()  # what it was before each change of the last window
        self.traces: deque[tuple[str, str]] = deque(maxlen=EVIDENCE)
        self.held_until = 0
        self.attempted = self.sampled = 0  # the first attempt since the last sample; the last sample

    def observe(self, sample: Sample, now: int) -> None:
        """Takes one attempt that has its first token."""
        while self.lows and self.lows[-1][1] >= sample.seconds:
            self.lows.pop()
        self.lows.append((now, sample.seconds))
        while self.lows[0][0] < now - IDLE_MEMORY:
            self.lows.popleft()
        self.waited = DECAY * self.waited + sample.seconds - self.idle
        self.work = DECAY * self.work + sample.work
        self.samples = DECAY * self.samples + 1
        if sample.predicted > 0:
            self.ratios.append((now, sample.seconds / sample.predicted))
        if sample.trace is not None:
            self.traces.append(sample.trace)
        self.sampled, self.attempted = now, 0

    @property
    def idle(self) -> float:
        """a: what a request takes that has nothing ahead of it, s."""
        return min(IDLE_TTFT, self.lows[0][1] if self.lows else IDLE_TTFT) + self.network

    def rate(self, pending: Iterable[Sample]) -> tuple[float, float]:
        """b in seconds a token, and by how many samples; (0, 0) if nothing is known."""
        waited, work, samples = self.waited, self.work, self.samples
        for sample in pending:
            waited = DECAY * waited + sample.seconds - self.idle
            work = DECAY * work + sample.work
            samples = DECAY * samples + 1
        return (max(LEAST_B, waited / work), samples) if work > 0 else (0.0, samples)

    def p90(self, begin: int, end: int) -> float:
        """Of y over predicted in a window; 0 if there is too little."""
        ratios = sorted(ratio for at, ratio in self.ratios if begin < at <= end)
        return ratios[int(0.9 * len(ratios))] if len(ratios) >= LEAST_SAMPLES else 0.0


class Tuner:
    """One model's."""

    def __init__(self, model: str, configured: Mapping[str, float], mode: Mode = "on") -> None:
        """`configured`: the weights in the config, by instance."""
        self.model = model
        self.rejected: dict[str, int] = {}  # since the last `take_rejected`
        self._found: dict[str, Found] = {}
        self._pending: dict[object, list[Sample]] = {}
        self._newest = 0
        self.configure(configured, mode)

    def configure(self, configured: Mapping[str, float], mode: Mode) -> None:
        """Takes a config: who stays with the same weight keeps what was found, others begin from what is configured."""
        self.mode = mode
        known = self._found
        self._found = {}
        for name, weight in configured.items():
            found = known.get(name)
            self._found[name] = found if found is not None and found.configured == weight else Found(weight)

    @property
    def weights(self) -> dict[str, float]:
        """Those to route by."""
        if self.mode == "on":
            return self.found
        return {name: found.configured for name, found in self._found.items()}

    @property
    def found(self) -> dict[str, float]:
        """What the tuner holds right, in force or not."""
        return {name: found.weight for name, found in self._found.items()}

    def observe(self, sample: Sample, now: int) -> None:
        """A stream has begun."""
        if (found := self._found.get(sample.instance)) is not None and sample.work > 0 and sample.seconds >= 0:
            found.observe(sample, now)
            self._newest = now

    def attempted(self, instance: str, now: int) -> None:
        """An attempt ended, whatever came of it."""
        if (found := self._found.get(instance)) is not None:
            found.attempted = found.attempted or now

    def pending(self, source: object, samples: list[Sample], now: int) -> None:
        """The overdue requests of a source (a worker) that still wait for their first token, instead of those it named before."""
        self._pending[source] = samples
        if samples:
            self._newest = now

    def network(self, instance: str, seconds: float) -> None:
        """An attempt's time that its engine's own span does not explain."""
        if (found := self._found.get(instance)) is not None:
            found.network += NETWORK_GAIN * (seconds - found.network) if found.network else seconds

    def age(self, now: int) -> float:
        """Seconds since anything was seen; 0 before that."""
        return (now - self._newest) / SECOND if self._newest else 0.0

    def take_rejected(self) -> dict[str, int]:
        """How often weights were left as they were since the last call, by why."""
        rejected, self.rejected = self.rejected, {}
        return rejected

    def force(self, instance: str, weight: float, now: int) -> None:
        """Sets a weight as if the tuner had; KeyError for an instance that is not there."""
        self._set(self._found[instance], weight, now)

    def tick(self, now: int) -> list[Change]:
        """Every five seconds: what changes."""
        if self.mode == "off" or not self._newest:
            return []
        if now - self._newest > STALE:
            self._reject("stale_inputs")
            return []
        waiting: dict[str, list[Sample]] = {}
        for samples in self._pending.values():
            for sample in samples:
                waiting.setdefault(sample.instance, []).append(sample)
        rates = {name: found.rate(waiting.get(name, ())) for name, found in self._found.items()}
        known = [b for b, samples in rates.values() if samples >= LEAST_SAMPLES and b > 0]
        fleet = median(known) if known else 0.0
        changes = []
        for name, found in self._found.items():
            change = self._judge(name, found, *rates[name], fleet, len(known), now)
            if change is not None:
                changes.append(change)
        return changes

    def snapshot(self) -> dict[str, Any]:
        """What was found, as plain data."""
        return {name: [found.configured, found.weight] for name, found in self._found.items()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Begins with what another found, where the configured weight is the same; ValueError if this is no snapshot."""
        taken = {}
        for name, row in snapshot.items():
            if not (isinstance(row, (list, tuple)) and len(row) == 2 and all(isinstance(v, (int, float)) for v in row)):
                raise ValueError(f"weights of {name!r} must be two numbers, got {row!r}")
            if not (math.isfinite(row[1]) and LOWEST <= row[1] <= HIGHEST):
                raise ValueError(f"the weight of {name!r} must be from {LOWEST} to {HIGHEST}, got {row[1]!r}")
            taken[name] = row
        for name, (configured, weight) in taken.items():
            if (found := self._found.get(name)) is not None and found.configured == configured:
                found.weight = float(weight)

    def _judge(
        self, name: str, found: Found, b: float, samples: float, fleet: float, known: int, now: int
    ) -> Change | None:
        if found.attempted and now - max(found.sampled, found.attempted) > SILENT and samples < LEAST_SAMPLES:
            if found.weight == found.configured:
                return None
            return self._change(
                name, found, "reset", found.configured, b, fleet, samples, now, "attempts but no samples"
            )
        if samples < LEAST_SAMPLES or known < 2:
            self._reject("too_few_samples")
            return None
        right = min(HIGHEST, max(LOWEST, fleet / b))
        if (back := self._worse(found, right, now)) is not None:
            found.held_until = now + HOLD
            reason = "waits grew beyond what was predicted, and the old weight lies nearer"
            return self._change(name, found, "rollback", back, b, fleet, samples, now, reason)
        if now < found.held_until:
            self._reject("held")
            return None
        error = math.log(right / found.weight)
        if abs(error) <= DEADBAND:
            self._reject("small_error")
            return None
        after = min(HIGHEST, max(LOWEST, found.weight * math.exp(min(STEP, max(-STEP, GAIN * error)))))
        reason = f"{b / fleet:.2f} x the fleet's time a token: {right:.2f} would be right"
        return self._change(name, found, "update", after, b, fleet, samples, now, reason)

    def _worse(self, found: Found, right: float, now: int) -> float | None:
        """The weight of a window ago, if it was the better one. A weight that was lowered, or hardly raised, is not to blame
        for longer waits.
        """
        while found.weights and found.weights[0][0] <= now - 2 * WINDOW:
            found.weights.popleft()
        old = next((weight for at, weight in found.weights if at > now - WINDOW - TICK), found.weight)
        before, after = found.p90(now - 2 * WINDOW, now - WINDOW), found.p90(now - WINDOW, now)
        raised = math.log(found.weight / old)
        if not before or after <= WORSE * before or raised < LEAST_RAISE:
            return None
        return old if abs(math.log(right / old)) < abs(math.log(right / found.weight)) else None

    def _change(  # noqa: PLR0913  each is a field of the change
        self,
        name: str,
        found: Found,
        kind: str,
        after: float,
        b: float,
        fleet: float,
        samples: float,
        now: int,
        reason: str,
    ) -> Change:
        before = found.weight
        self._set(found, after, now)
        return Change(
            0, self.model, name, kind, self.mode, before, after, b, fleet, samples, reason, tuple(found.traces)
        )  # fmt: skip

    def _set(self, found: Found, weight: float, now: int) -> None:
        found.weights.append((now, found.weight))
        found.weight = weight

    def _reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
