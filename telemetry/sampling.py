"""Which requests' spans are exported: decided when the record is complete. Pure.

The caller's word holds, else the share by trace id that the worker went by (both stand in the flags, which the engine was
told). Beyond that always: errors, retries, spills, and the slowest 1 % by time to first token.
"""

from collections import deque

from telemetry.context import SAMPLED
from telemetry.record import Record
from telemetry.tree import failed

RECENT = 1000  # streams by which slow is told from fast
RANK = 10  # the slowest so many of them
AGAIN = 50  # streams after which the bound is taken anew
LEAST = 100  # streams before anything is called slow


class Sampler:
    """Remembers how long recent streams took to begin."""

    def __init__(self) -> None:
        self._ttft: deque[int] = deque(maxlen=RECENT)
        self._bound = 0  # ns; 0: not known yet
        self._since = 0

    def why(self, record: Record) -> str:
        """Why its spans are exported: trace, error, retry, spill or slow; "": they are not."""
        slow = self._is_slow(record)
        if record.trace_flags & SAMPLED:
            return "trace"
        if failed(record):
            return "error"
        if len(record.attempts) > 1:
            return "retry"
        if record.spill_to:
            return "spill"
        return "slow" if slow else ""

    def _is_slow(self, record: Record) -> bool:
        if not record.first_token:
            return False
        ttft = record.first_token - record.accepted
        slow = 0 < self._bound < ttft
        self._ttft.append(ttft)
        self._since += 1
        if self._since >= AGAIN and len(self._ttft) >= LEAST:
            self._since = 0
            self._bound = sorted(self._ttft)[-max(1, RANK * len(self._ttft) // RECENT)]
        return slow
