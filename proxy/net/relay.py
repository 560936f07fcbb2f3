"""The pump: bytes of one answer, from an engine's connection to a client's.

Per piece that arrives: one `pump`, at most one write to the client, whatever the piece held. Nothing else happens per
event: events and tokens are counters here and on the Lease, silence is a timestamp that the sweep looks at.
"""

from collections.abc import Callable

from balancer.ledger import Lease
from proxy.core.sse import EventStream, Usage, usage_in_body

SECOND = 1_000_000_000
TAIL = 4096  # of an answer that is not a stream: `usage` stands near its end


class Relay:
    """One answer on its way. `begin` gives it the head; the first `pump` sends head and body in one write."""

    __slots__ = (
        "bytes_out", "chunked", "first_token", "gap_max", "gaps", "head", "last", "lease", "on_first_token", "stream",
        "tail", "write",
    )  # fmt: skip

    def __init__(
        self,
        write: Callable[[bytes], None],
        head: bytes,
        chunked: bool,
        stream: EventStream | None,
        lease: Lease,
        on_first_token: Callable[[int], None],
        now: int,
    ) -> None:
        self.write = write
        self.head = head
        self.chunked = chunked
        self.stream = stream
        self.lease = lease
        self.on_first_token = on_first_token
        self.last = now
        self.tail = b""
        self.first_token = self.bytes_out = self.gap_max = self.gaps = 0

    def pump(self, data: bytes, now: int, whole: bool) -> None:  # noqa: C901  once an event: no frame more than needed
        """Sends on what arrived at `now` (ns); `whole` says that the answer ends with it."""
        stream = self.stream
        if stream is not None:
            before = stream.events
            if data:
                data = stream.feed(data)
            if whole:
                data += stream.finish()
            if fresh := stream.events - before:
                if not before:
                    self.first_token = now
                    self.on_first_token(now)
                self.lease.progress(fresh)
        elif data:
            self.tail = data[-TAIL:] if len(data) >= TAIL else self.tail[len(data) - TAIL :] + data
        gap = now - self.last
        self.last = now
        if gap > self.gap_max:
            self.gap_max = gap
        if gap > SECOND:
            self.gaps += 1
        if self.chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if whole:
                data += b"0\r\n\r\n"
        if self.head:
            data = self.head + data
            self.head = b""
        if data:
            self.bytes_out += len(data)
            self.write(data)

    def comment(self) -> None:
        """Tells the client that we still wait. One newline: two would end an empty event."""
        line = b": waiting\n"
        self.write(b"%x\r\n%b\r\n" % (len(line), line) if self.chunked else line)

    def break_off(self, event: bytes) -> None:
        """Says inside the stream what went wrong. The chunked body is left unfinished on purpose: it is not whole."""
        if not self.stream.at_boundary if self.stream else True:
            return
        self.write(b"%x\r\n%b\r\n" % (len(event), event) if self.chunked else event)

    @property
    def commentable(self) -> bool:
        """Whether a comment may be sent now without landing inside an event."""
        return self.stream is not None and self.stream.at_boundary

    @property
    def events(self) -> int:
        return self.stream.events if self.stream is not None else 0

    @property
    def usage(self) -> Usage | None:
        """What the engine said of its tokens, once it has."""
        return self.stream.usage if self.stream is not None else usage_in_body(self.tail)
