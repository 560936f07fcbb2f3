"""When silence ends a request. Nothing has a timer of its own: one sweep a second asks (times in monotonic ns)."""

from proxy.core.exchange import State
from proxy.core.settings import Limits

SECOND = 1_000_000_000
WAITING_COMMENT_NS = 10 * SECOND  # silence of a begun stream after which the client hears that we wait


class Deadlines:
    """The limits of one location in nanoseconds."""

    __slots__ = ("body", "by_state", "head", "idle", "request", "stream")

    def __init__(self, limits: Limits) -> None:
        self.head = int(limits.header_timeout * SECOND)
        self.body = int(limits.body_timeout * SECOND)
        self.idle = int(limits.idle_timeout * SECOND)
        self.request = int(limits.request_timeout * SECOND)
        self.stream = int(limits.stream_idle_timeout * SECOND)
        self.by_state = {
            State.CONNECTING: int(limits.connect_timeout * SECOND),
            State.SENT: int(limits.first_byte_timeout * SECOND),
            State.RELAYING: self.stream,
        }

    def stalled(self, state: State, silent_since: int, now: int) -> bool:
        """Whether an exchange has been silent for too long in this state (the queue keeps its own time)."""
        allowed = self.by_state.get(state)
        return allowed is not None and now - silent_since > allowed
