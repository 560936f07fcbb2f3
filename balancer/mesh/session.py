"""One stream's protocol, without the stream: frames in, frames out, `now` an argument.

Rules. Hello comes first, once, of the same version, from whom was expected and, with TLS, whose certificate says so. Then
Digests, Pings and Pongs in any order. `seq` rises; what does not is late and is left out. Who speaks more often than any
peer needs to is cut off. The distance is the mean of the last round trips, the clocks' difference that of the shortest,
as NTP does it.
"""

from collections import deque
from typing import NamedTuple

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh import wire
from balancer.mesh.wire import Told, WireError

SECOND = 1_000_000_000  # ns
SAMPLES = 8  # round trips
RATE, BURST = 50, 200  # frames a second, and at once
WRONG_CLOCK = 30 * SECOND


class Refused(Exception):
    """The stream must end. `reason` is one word, for a counter; the text is for the log."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Identity(NamedTuple):
    """Who somebody on the mesh is."""

    location: str
    node: str


class Session:
    """One side of one stream."""

    def __init__(self, me: Identity, nonce: bytes, expected: str | None, names: frozenset[str] | None) -> None:
        """`expected`: the location that was dialled, None if the other side dialled; `names`: in the other side's certificate,
        None without TLS.
        """
        self.me = me
        self.peer: Identity | None = None  # from its Hello on
        self.secret = b""
        self.told: Told | None = None  # the last it said
        self.late = 0  # Digests that came after a newer one
        self.clock_error = 0  # ns that its wall clock is ahead of ours, as far as one message can tell
        self._nonce = nonce
        self._expected = expected
        self._names = names
        self._trips: deque[tuple[int, int]] = deque(maxlen=SAMPLES)  # (round trip, offset)
        self._allowance, self._allowed_at = float(BURST), 0

    def hello(self, unix_time: int) -> pb.Frame:
        """What this side says first."""
        return pb.Frame(
            hello=pb.Hello(
                version=wire.VERSION,
                location=self.me.location,
                node=self.me.node,
                nonce=self._nonce,
                unix_time=unix_time,
            )
        )

    def ping(self, now: int) -> pb.Frame:
        """Asks how far the other side is."""
        return pb.Frame(ping=pb.Ping(sent=now))

    @property
    def known(self) -> bool:
        """Whether its distance has been measured."""
        return bool(self._trips)

    @property
    def settled(self) -> bool:
        """Whether it has been measured often enough."""
        return len(self._trips) == SAMPLES

    @property
    def rtt(self) -> int:
        """ns there and back."""
        return sum(trip for trip, _ in self._trips) // len(self._trips) if self._trips else 0

    @property
    def offset(self) -> int:
        """ns that its clock is ahead of ours."""
        return min(self._trips)[1] if self._trips else 0

    def receive(self, frame: pb.Frame, now: int, unix_time: int) -> pb.Frame | None:
        """Takes a frame; what is to be answered. Raises Refused."""
        self._ration(now)
        kind = frame.WhichOneof("kind")
        if kind is None:
            return None  # of a newer version
        if (self.peer is None) != (kind == "hello"):
            raise Refused("protocol", f"{kind} came out of turn: Hello is first, and once")
        if kind == "hello":
            self._greet(frame.hello, unix_time)
        elif kind == "ping":
            return pb.Frame(pong=pb.Pong(sent=frame.ping.sent, received=now, answered=now))
        elif kind == "pong":
            self._measure(frame.pong, now)
        else:
            self._listen(frame.digests)
        return None

    def _ration(self, now: int) -> None:
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) * RATE / SECOND)
        self._allowed_at = now
        if self._allowance < 1:
            raise Refused("flood", f"more than {RATE} frames a second")
        self._allowance -= 1

    def _greet(self, hello: pb.Hello, unix_time: int) -> None:
        if hello.version != wire.VERSION:
            raise Refused("version", f"it speaks version {hello.version} of the mesh, this is {wire.VERSION}")
        if not 0 < len(hello.location) <= wire.MAX_NAME or not 0 < len(hello.node) <= wire.MAX_NAME:
            raise Refused("hello", f"location and node must be 1 to {wire.MAX_NAME} characters")
        if len(hello.nonce) != wire.NONCE:
            raise Refused("hello", f"its nonce must be {wire.NONCE} bytes, got {len(hello.nonce)}")
        peer = Identity(hello.location, hello.node)
        if peer == self.me:
            raise Refused("self", "it is this node itself")
        if self._expected is not None and peer.location != self._expected:
            raise Refused("identity", f"it calls itself {peer.location!r}")
        if self._names is not None and peer.location not in self._names:
            raise Refused("certificate", f"it calls itself {peer.location!r}, its certificate does not")
        self.peer = peer
        self.secret = wire.secret((*self.me, self._nonce), (*peer, hello.nonce))
        self.clock_error = hello.unix_time - unix_time

    def _measure(self, pong: pb.Pong, now: int) -> None:
        trip = (now - pong.sent) - (pong.answered - pong.received)
        extreme = max(abs(pong.sent), abs(pong.received), abs(pong.answered)) > wire.MOST_TIME
        if extreme or not 0 <= trip <= 600 * SECOND or pong.sent > now:
            raise Refused("protocol", "its Pong answers no Ping of ours")
        self._trips.append((trip, ((pong.received - pong.sent) + (pong.answered - now)) // 2))

    def _listen(self, said: pb.Digests) -> None:
        assert self.peer is not None  # noqa: S101
        try:
            told = wire.read_digests(said, *self.peer)
        except WireError as error:
            raise Refused("digest", str(error)) from None
        if self.told is not None and told.seq <= self.told.seq:
            self.late += 1
        else:
            self.told = told
