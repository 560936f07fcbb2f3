"""The retry budget: retries may be a share of requests, never a storm of their own.

Linkerd's and Finagle's form (`com.twitter.finagle.service.RetryBudget`): over a sliding window of 10 s retries stay
within `share` of the requests, plus a floor of so many a second, so that a quiet worker can still retry. The floor's
allowance for a whole window may be spent at once. Counts are kept in ten buckets of a second, so every call is O(1).
Requests are only added to `arrived`, without a call; they belong to the bucket in which somebody looks next.
"""

WINDOW = 10  # buckets
BUCKET = 1_000_000_000  # ns


class RetryBudget:
    """How many retries the requests of the last 10 s have earned."""

    __slots__ = (
        "_bucket", "_requests", "_requests_by_bucket", "_reserve", "_retries", "_retries_by_bucket", "_share", "arrived",
    )  # fmt: skip

    def __init__(self, share: float = 0.2, floor_per_second: float = 10) -> None:
        """`share`: retries a request earns; `floor_per_second`: retries a second that need not be earned."""
        if share < 0 or floor_per_second < 0:
            raise ValueError("a retry budget's share and floor are at least 0")
        self._share = share
        self._reserve = floor_per_second * WINDOW
        self.arrived = 0  # new requests (not retries) since the last look
        self._bucket = 0
        self._requests = 0
        self._retries = 0
        self._requests_by_bucket = [0] * WINDOW
        self._retries_by_bucket = [0] * WINDOW

    def take(self, now: int) -> bool:
        """Spend one retry, if the budget has it."""
        self.look(now)
        if self._retries + 1 > self._share * self._requests + self._reserve + 1e-9:
            return False
        self._retries += 1
        self._retries_by_bucket[self._bucket % WINDOW] += 1
        return True

    def look(self, now: int) -> None:
        """To be called once a second, at least."""
        bucket = now // BUCKET
        for passed in range(max(self._bucket + 1, bucket - WINDOW + 1), bucket + 1):
            slot = passed % WINDOW
            self._requests -= self._requests_by_bucket[slot]
            self._retries -= self._retries_by_bucket[slot]
            self._requests_by_bucket[slot] = self._retries_by_bucket[slot] = 0
        self._bucket = max(self._bucket, bucket)
        self._requests += self.arrived
        self._requests_by_bucket[self._bucket % WINDOW] += self.arrived
        self.arrived = 0
