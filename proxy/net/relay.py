"""The pump: bytes of one answer, from an engine's connection to a client's.

Per piece that arrives: one `forward` or `pump`, at most one write to the client, whatever the piece held. Nothing else
happens per event: events and tokens are counters here and on the Lease, silence is a timestamp that the sweep looks at.
"""

from collections.abc import Callable

from balancer.ledger import Lease
from proxy.core.sse import EventStream, Usage, usage_in_body

SECOND = 1_000_000_000
PROGRESS_EVERY = 8  # events
TAIL = 4096  # of an answer that is not a stream: `usage` stands near its end


class Relay:
    """One answer on its way. The first `pump` sends the head with what has come of the body, in one write."""

    __slots__ = (
        "bytes_out", "chunked", "first_token", "gap_max", "gap_noted", "gaps", "head", "last", "lease", "on_first_token",
        "progress_at", "steady", "stream", "tail", "write",
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
        self.steady: EventStream | None = None  # if chunked, its first token gone on, and nothing of an event kept back
        self.progress_at = 0  # events at which the lease hears of them again
        self.first_token = self.bytes_out = self.gap_max = self.gap_noted = self.gaps = 0

    def forward(self, chunk: bytes, now: int) -> bool:
        """The short way of a piece that is one chunk, framed as we frame, of whole events. False: it needs a closer look."""
        stream = self.steady
        if stream is None or chunk.find(b'"usage"') >= 0:
            return False
        gap = now - self.last
        self.last = now
        if gap > self.gap_noted:
            self._note(gap)
        stream.last = chunk
        stream.events = events = stream.events + chunk.count(b"\ndata:")
        if events >= self.progress_at:
            self._progress(stream)
        self.bytes_out += len(chunk)
        self.write(chunk)
        return True

    def pump(self, data: bytes, now: int) -> None:
        """Sends on what arrived at `now` (ns)."""
        gap = now - self.last
        self.last = now
        if gap > self.gap_noted:
            self._note(gap)
        self._send(self._read(data, now), False)

    def end(self, data: bytes, now: int) -> None:
        """Sends on the last piece: the answer is whole with it."""
        gap = now - self.last
        self.last = now
        if gap > self.gap_noted:
            self._note(gap)
        data = self._read(data, now)
        if self.stream is not None:
            data += self.stream.finish()
            self._progress(self.stream)
        self._send(data, True)

    def _read(self, data: bytes, now: int) -> bytes:
        """What of a piece may go on, with what it tells counted."""
        stream = self.stream
        if stream is None:
            self.tail = data[-TAIL:] if len(data) >= TAIL else self.tail[len(data) - TAIL :] + data
            return data
        data = stream.feed(data) if data else data
        if stream.events and not self.first_token:
            self.first_token = now
            self.on_first_token(now)
        self.steady = stream if self.chunked and self.first_token and not stream.tail and not stream.inside else None
        if stream.events >= self.progress_at:
            self._progress(stream)
        return data

    def _progress(self, stream: EventStream) -> None:
        """Tells the lease, every few events: its estimate is coarser than that."""
        self.progress_at = stream.events + PROGRESS_EVERY
        self.lease.progress(stream.events - self.lease.events)

    def _send(self, data: bytes, whole: bool) -> None:
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

    def _note(self, gap: int) -> None:
        """A silence longer than those before it, or longer than a second."""
        self.gap_max = max(self.gap_max, gap)
        self.gap_noted = min(self.gap_max, SECOND)
        if gap > SECOND:
            self.gaps += 1

    def comment(self) -> None:
        """Tells the client that we still wait. One newline: two would end an empty event."""
        line = b": waiting\n"
        self.write(b"%x\r\n%b\r\n" % (len(line), line) if self.chunked else line)

    def break_off(self, event: bytes) -> bool:
        """Says inside the stream what went wrong; False if it cannot. The chunked body is left unfinished on purpose: it is
        not whole.
        """
        if not self.commentable:
            return False
        self.write(b"%x\r\n%b\r\n" % (len(event), event) if self.chunked else event)
        return True

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
        return self.stream.usage if self.stream is not None else usage_in_body(self.tail) if self.tail else None
