"""What a request will cost, learned per model from what requests did cost (BALANCING 1).

    prompt tokens   bytes over a learned ratio of bytes a token
    output tokens   the mean of requests like it: by a quarter of the prompt's power of two (BALANCING 1 has the whole power;
                    on Azure's conversations the error falls from 73 to 48 tokens) and the cap's power. The mean, not the
                    median: it is unbiased, and sums of it are what a queue is. A young bucket leans on the model's mean.
    residual        after n tokens, how many more: an empirical mean residual life, since real tails grow
    events          tokens that one event of a stream stands for

Every mean has the gain max(1/n, 0.02): exact while young, following a shift within some fifty requests afterwards. That is
fifty of its own: a shift of the whole model is followed bucket by bucket, so finer buckets take longer over it.
"""

from collections.abc import Mapping, Sequence

PRIOR_OUTPUT = 256.0
PRIOR_BYTES = 4.0  # a token
MIN_GAIN = 0.02
LASTING = 50  # samples, from which on the gain is MIN_GAIN
SHRINK = 8.0  # weight of the model's mean in a bucket's, while the bucket is young
YOUNG = 64
LENGTHS = 64  # powers of two that an int of tokens can have
MAX_TOKENS = 1 << 40
BYTES_RANGE = (0.1, 10_000.0)  # a token
EVENTS_RANGE = (0.01, 100.0)  # tokens an event
TOKENS_RANGE = (0.0, float(MAX_TOKENS))
MOST_BITS = MAX_TOKENS.bit_length()
BUCKETS = 4 * (MOST_BITS + 1) * (MOST_BITS + 1)


class Mean:
    """An online mean with a gain that never falls below MIN_GAIN."""

    __slots__ = ("count", "value")

    def __init__(self, value: float, count: int = 0) -> None:
        self.value = value
        self.count = count

    def add(self, sample: float) -> None:
        """Takes one sample; the first replaces the prior."""
        self.count = count = self.count + 1
        self.value += (sample - self.value) * (1 / count if count < LASTING else MIN_GAIN)


class Estimator:
    """One model's estimates. Not thread-safe; `learn` costs some 9 us, the others less than 1."""

    __slots__ = ("_buckets", "_bytes", "_events", "_output", "_residual", "residual")

    def __init__(self) -> None:
        self._bytes = Mean(PRIOR_BYTES)
        self._events = Mean(1.0)
        self._output = Mean(PRIOR_OUTPUT)
        self._buckets: dict[tuple[int, int], Mean] = {}  # at most BUCKETS
        self._residual = [Mean(0.0) for _ in range(LENGTHS)]
        self.residual: list[int] = [1] * LENGTHS  # by bit length of the tokens that came; leases hold this very list

    @property
    def tokens_per_event(self) -> float:
        """How many tokens an event stands for."""
        return self._events.value

    @property
    def samples(self) -> int:
        """How many answers taught it."""
        return self._output.count

    def prompt_tokens(self, prompt_bytes: int) -> int:
        """Tokens of a prompt of so many bytes, at least 1."""
        return int(prompt_bytes / self._bytes.value) or 1

    def output_tokens(self, prompt_tokens: int, max_tokens: int = 0) -> int:
        """Output tokens to expect, at least 1 and at most the client's cap (0: none)."""
        bucket = self._buckets.get(_bucket(prompt_tokens, max_tokens))
        expected = self._output.value
        if bucket is not None:
            if bucket.count >= YOUNG:
                expected = bucket.value
            else:
                expected = (bucket.value * bucket.count + expected * SHRINK) / (bucket.count + SHRINK)
        tokens = round(expected) or 1
        return tokens if not 0 < max_tokens < tokens else max_tokens

    def learn(self, prompt_bytes: int, prompt_tokens: int, max_tokens: int, output_tokens: int, events: int) -> None:
        """Takes what a finished request was; 0 where the engine did not say."""
        if prompt_tokens > 0 and prompt_bytes > 0:
            self._bytes.add(_clamp(prompt_bytes / prompt_tokens, BYTES_RANGE))
        else:
            prompt_tokens = self.prompt_tokens(prompt_bytes)
        if not 0 < output_tokens < MAX_TOKENS:
            return
        if events > 0:
            self._events.add(_clamp(output_tokens / events, EVENTS_RANGE))
        self._output.add(output_tokens)
        key = _bucket(min(prompt_tokens, MAX_TOKENS), min(max(max_tokens, 0), MAX_TOKENS))
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Mean(0.0)
        bucket.add(output_tokens)
        self._learn_residual(output_tokens)

    def _learn_residual(self, output_tokens: int) -> None:
        """A request of n tokens had n - t to go at every t it passed: sampled where the bit length changes."""
        means, shown = self._residual, self.residual
        for bits in range(1, output_tokens.bit_length() + 1):
            mean = means[bits]
            mean.add(output_tokens - (1 << (bits - 1)))  # the smallest number of this bit length was passed
            shown[bits] = int(mean.value + 0.5) or 1

    def snapshot(self) -> dict[str, object]:
        """All that was learned, as plain data."""
        return {
            "bytes": [self._bytes.value, self._bytes.count],
            "events": [self._events.value, self._events.count],
            "output": [self._output.value, self._output.count],
            "quarters": [[*key, mean.value, mean.count] for key, mean in self._buckets.items()],
            "residual": [[mean.value, mean.count] for mean in self._residual],
        }

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Takes a snapshot; ValueError if it is none."""
        try:
            fresh = Estimator()
            fresh._bytes = _mean(snapshot["bytes"], BYTES_RANGE)
            fresh._events = _mean(snapshot["events"], EVENTS_RANGE)
            fresh._output = _mean(snapshot["output"], TOKENS_RANGE)
            for row in _rows(snapshot["quarters"], BUCKETS):
                prompt, cap, *mean = row
                fresh._buckets[_bucket_key(prompt, cap)] = _mean(list(mean), TOKENS_RANGE)
            residual = [_mean(list(row), TOKENS_RANGE) for row in _rows(snapshot["residual"], LENGTHS)]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an estimator's snapshot: {error}") from None
        self._bytes, self._events, self._output, self._buckets = (
            fresh._bytes,
            fresh._events,
            fresh._output,
            fresh._buckets,
        )
        self._residual = residual + [Mean(0.0) for _ in range(LENGTHS - len(residual))]
        self.residual[:] = [1] + [max(1, round(mean.value)) for mean in self._residual[1:]]


def _bucket(prompt_tokens: int, max_tokens: int) -> tuple[int, int]:
    """The prompt's power of two and its two next bits, the cap's power."""
    bits = prompt_tokens.bit_length()
    return 4 * bits + (prompt_tokens >> bits - 3 & 3 if bits > 2 else 0), max_tokens.bit_length()


def _clamp(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _bucket_key(prompt: object, cap: object) -> tuple[int, int]:
    if isinstance(prompt, int) and isinstance(cap, int) and 0 <= prompt <= 4 * MOST_BITS + 3 and 0 <= cap <= MOST_BITS:
        return prompt, cap
    raise ValueError("a bucket is named by a prompt's quarter and a cap's bit length")


def _rows(value: object, most: int) -> Sequence[Sequence[float]]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("a list is missing or too long")
    return value


def _mean(value: object, bounds: tuple[float, float]) -> Mean:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a mean is a number and its count")
    number, count = value
    least, most = bounds
    if not (isinstance(number, int | float) and least <= number <= most and isinstance(count, int) and count >= 0):
        raise ValueError("a mean is out of its range")
    return Mean(float(number), count)
