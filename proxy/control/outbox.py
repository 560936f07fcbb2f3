"""What a worker has for the agent: batches, kept until the agent says that it has counted them.

Bounded: when more than `LIMIT` records or batches wait, the oldest batches are dropped and their records counted; what
they counted goes on with the next. Pure.
"""

from collections import deque
from collections.abc import Mapping

from proxy.control.messages import Batch
from telemetry.record import Record

LIMIT = 10_000
DROPPED = "headrace_records_dropped_total|agent_gone"


class Outbox:
    """Batches in order of their sequence number."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._sequence = 0
        self._waiting: deque[Batch] = deque()
        self._records = 0
        self.lost = 0  # records dropped, to be counted by the next batch

    def __len__(self) -> int:
        """Records that no agent has counted yet."""
        return self._records

    def add(
        self,
        records: list[Record],
        counters: Mapping[str, int],
        lag: list[float],
        ejected: list[str],
        queued: list[int] | None = None,
        offset: int = 0,
    ) -> Batch:
        """A new batch; it waits for its acknowledgement."""
        counted = dict(counters)
        if self.lost:
            counted[DROPPED] = counted.get(DROPPED, 0) + self.lost
            self.lost = 0
        self._sequence += 1
        batch = Batch(self._sequence, records, counted, lag, ejected, queued or [], offset)
        self._waiting.append(batch)
        self._records += len(records)
        while (self._records > self._limit or len(self._waiting) > self._limit) and len(self._waiting) > 1:
            self._drop(self._waiting.popleft())
        return batch

    def acknowledge(self, sequence: int) -> None:
        """All batches up to this one are counted."""
        while self._waiting and self._waiting[0].sequence <= sequence:
            self._records -= len(self._waiting.popleft().records)

    def unacknowledged(self) -> list[Batch]:
        """What a new agent must be sent, oldest first."""
        return list(self._waiting)

    def _drop(self, batch: Batch) -> None:
        """Drops a batch's records; its counters go on with the next batch."""
        self._records -= len(batch.records)
        self.lost += len(batch.records)
        heir = self._waiting[0]
        for key, n in batch.counters.items():
            heir.counters[key] = heir.counters.get(key, 0) + n
