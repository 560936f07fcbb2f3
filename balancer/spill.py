"""Whether a request leaves for another location, under knowledge that is late (BALANCING 5). Decides; sends nothing.

    cost     (W + F) / C + P b + omega L tpot + RTT, in seconds; here the same without F and RTT
    F        own forwards that the last digest cannot show yet: without them every sender fills the same hole (herds)
    rule     the better of two locations drawn in proportion to C, if best + 50 ms + 10 % of local < local. The margin is the
             only damping: enter and exit thresholds flip.
    guard    the receiver refuses when its own work stands at 0.4 of the TTFT target, the sender then stays at home and lets
             that location be for max(G, RTT): locals come first
    bound    so many forwards in flight to a location for each of its instances; who was out of sight, or failed, gets its
             share back step by step (slow start)

W: prompt tokens that wait there, C: token-equivalents a second of all its instances, P, L: this request's prompt and expected
output, b: instances / C, tpot from the engine model's coefficients with n sequences and K cached tokens an instance. A spilled
request never spills again. Who knows nothing fresh of the others keeps everything. The times of digests (`ts`) are by the
clock of who decides: whoever receives one brings it there.
"""

import math
from collections.abc import Collection, Sequence
from random import Random
from typing import NamedTuple

from balancer.choose import AliasTable
from balancer.model import Digest

SECOND = 1_000_000_000  # ns
OMEGA = 0.4  # of the decode term
OVERHEAD = 0.0015  # s of an engine's iteration (BALANCING 7)
MARGIN, MARGIN_SHARE = 0.050, 0.10  # s; of the local cost
GUARD = 0.4  # of the TTFT target
FRESH = 3  # intervals that a digest is believed
CHOICES = 2
DRAWS = 8
SETTLE = 0.25  # s beyond its predicted wait for which a forward's prompt counts
RUNNING_FOR = 4 * SECOND  # how long a forward counts as a sequence there
IN_FLIGHT = 64  # forwards in flight for each of a location's instances
SLOW_START = 10 * SECOND  # until who came back is asked as often as before
SLOW_START_FLOOR = 0.1
BACKOFF, BACKOFF_MAX = SECOND, 30 * SECOND  # how long who failed is let be, doubled with each failure

# What `Verdict.reason` may be.
LOCAL, HOPPED, UNKNOWN, BETTER, GONE = "local", "hopped", "unknown", "better", "gone"


class Cost(NamedTuple):
    """What a request would cost at a location, by its terms, in seconds."""

    location: str
    wait: float  # (W + F) / C
    prefill: float  # P b
    decode: float  # omega L tpot
    rtt: float
    work: float = 0.0  # W + F, tokens

    @property
    def total(self) -> float:
        """Their sum."""
        return self.wait + self.prefill + self.decode + self.rtt


class Verdict(NamedTuple):
    """Where a request goes and why."""

    location: str  # "" to stay
    local: Cost
    candidates: tuple[Cost, ...]
    reason: str  # LOCAL: nobody is better by the margin; HOPPED: it may not; UNKNOWN: nobody can be asked; BETTER; GONE


def tpot(digest: Digest, more: float = 0.0) -> float:
    """Seconds an output token takes at a location with `more` sequences than its digest says."""
    instances = max(1, digest.instances)
    sequences, cached = (digest.running + more) / instances, digest.kv_tokens / instances
    return OVERHEAD + math.hypot(digest.t0, digest.c * sequences) + digest.kv_c * cached


def cost(
    digest: Digest, prompt: int, output: int, rtt: float = 0.0, tokens: float = 0.0, sequences: float = 0.0
) -> Cost:
    """The cost of a request of `prompt` and `output` tokens. `rtt` in s; `tokens`, `sequences`: forwards to add."""
    if digest.capacity <= 0:
        return Cost(digest.location, math.inf, 0.0, 0.0, rtt)
    return Cost(
        digest.location,
        (digest.work + tokens) / digest.capacity,
        prompt * digest.instances / digest.capacity,
        OMEGA * output * tpot(digest, sequences),
        rtt,
        digest.work + tokens,
    )


def refuses(work: float, capacity: float, ttft_target: float) -> bool:
    """The receiver's guard. `work`: its prompt tokens that wait, `capacity`: tokens a second, `ttft_target` in s."""
    return capacity <= 0 or work / capacity > GUARD * ttft_target


class Forward(NamedTuple):
    """One request sent to another location."""

    sent: int  # ns
    prompt: int


class Peer:
    """One other location as this one knows it. Times in ns of this location's clock."""

    __slots__ = ("avoid_until", "back_at", "digest", "failures", "flying", "forwards", "received", "rtt")

    def __init__(self, rtt: int) -> None:
        """`rtt` in ns."""
        self.rtt = rtt
        self.digest: Digest | None = None
        self.received = 0
        self.avoid_until = 0
        self.back_at = 0  # when it came back after having been out of sight or having failed; 0: it never was
        self.failures = 0  # in a row
        self.flying = 0  # forwards that have not ended
        self.forwards: list[Forward] = []  # that a digest may not show yet, in the order of time

    def see(self, digest: Digest, now: int, fresh: int) -> bool:
        """Takes a digest; False for one that was made before the one that is known, unless that is no longer believed after
        `fresh` ns: a clock may have been set back.
        """
        if self.digest is not None:
            stale = self.age(now) > fresh
            if digest.ts <= self.digest.ts and not stale:
                return False
            if stale:
                self.back_at = now
        self.digest, self.received = digest, now
        self._forget(now)
        return True

    def age(self, now: int) -> int:
        """How old the digest's content is; at least the time since it came, whatever its sender's clock says."""
        assert self.digest is not None  # noqa: S101
        return max(now - self.digest.ts, now - self.received)

    def unseen(self, now: int) -> tuple[int, int]:
        """(tokens, sequences) of the forwards that the digest cannot show."""
        digest, arrives = self.digest, self.rtt // 2
        assert digest is not None  # noqa: S101
        wait = digest.work / digest.capacity if digest.capacity > 0 else 0.0
        ripe = int((wait + SETTLE) * SECOND) + arrives
        tokens = sequences = 0
        for forward in self.forwards:
            if self._counts(forward, now):
                sequences += 1
                if now - forward.sent < ripe:
                    tokens += forward.prompt
        return tokens, sequences

    def ramp(self, now: int) -> float:
        """The share of its usual part that it gets now: 1, or less in its slow start."""
        return min(1.0, max(SLOW_START_FLOOR, (now - self.back_at) / SLOW_START)) if self.back_at else 1.0

    def add(self, forward: Forward, now: int) -> None:
        """A request is on its way there."""
        self._forget(now)
        self.forwards.append(forward)
        self.flying += 1

    def _counts(self, forward: Forward, now: int) -> bool:
        assert self.digest is not None  # noqa: S101
        return forward.sent + self.rtt // 2 >= self.digest.ts and now - forward.sent < RUNNING_FOR + self.rtt

    def _forget(self, now: int) -> None:
        self.forwards = [forward for forward in self.forwards if self._counts(forward, now)]


class Spillover:
    """One location's knowledge of the others for one model."""

    def __init__(self, random: Random, interval: int, share: float = 1.0) -> None:
        """`interval`: G in ns; `share`: of the location's requests that are decided here, where several workers do."""
        self._random = random
        self._interval = interval
        self._share = share
        self._peers: dict[str, Peer] = {}
        self._list: list[Peer] = []
        self._table: AliasTable | None = None  # by capacity, over the list

    def join(self, location: str, peer: Peer) -> None:
        """There is this other location, at this distance."""
        self._peers[location] = peer
        self._list, self._table = list(self._peers.values()), None

    def leave(self, location: str) -> None:
        """It is no longer there."""
        if self._peers.pop(location, None) is not None:
            self._list, self._table = list(self._peers.values()), None

    def peers(self) -> Sequence[Peer]:
        """All other locations."""
        return self._list

    def peer(self, location: str) -> Peer | None:
        """One other location."""
        return self._peers.get(location)

    def see(self, digest: Digest, now: int) -> bool:
        """A digest came; False if it is old or nobody's we know."""
        peer = self._peers.get(digest.location)
        if peer is None:
            return False
        before = peer.digest.capacity if peer.digest is not None else 0.0
        if before != digest.capacity:
            self._table = None
        return peer.see(digest, now, self._fresh(peer))

    def decide(
        self, local: Digest, prompt: int, output: int, now: int, *,
        hopped: bool = False, tags: Sequence[Collection[str]] = (), without: Collection[str] = (),
    ) -> Verdict:  # fmt: skip
        """Where a request of `prompt` and `output` tokens goes. `hopped`: it has been spilled or refused once; `tags`: of each
        of these sets it may go only where one tag is carried; `without`: locations that it has been to.
        """
        here = cost(local, prompt, output)
        if hopped:
            return Verdict("", here, (), HOPPED)
        drawn = [
            cost(peer.digest, prompt, output, peer.rtt / SECOND, *self._unseen(peer, now))
            for peer in self._draw(now, tags, without) if peer.digest is not None
        ]  # fmt: skip
        best = min(drawn, key=lambda one: one.total, default=None)
        if best is None:
            return Verdict("", here, (), UNKNOWN)
        if here.total == math.inf:  # no instance here: whatever the others take
            return Verdict(best.location, here, tuple(drawn), GONE)
        goes = best.total + MARGIN + MARGIN_SHARE * here.total < here.total
        return Verdict(best.location if goes else "", here, tuple(drawn), BETTER if goes else LOCAL)

    def forwarded(self, location: str, prompt: int, now: int) -> Forward:
        """A request was sent there; what stands for it. To be followed by one `ended`."""
        forward = Forward(now, prompt)
        self._peers[location].add(forward, now)
        return forward

    def ended(self, location: str, *, well: bool = False) -> None:
        """A forward is no longer in flight; `well`: the location answered it."""
        peer = self._peers.get(location)
        if peer is not None:
            peer.flying -= 1
            if well:
                peer.failures = 0

    def refused(self, location: str, forward: Forward, now: int) -> None:
        """The location did not take this forward: it gets none for a while."""
        peer = self._peers.get(location)
        if peer is not None:
            peer.avoid_until = now + max(self._interval, peer.rtt)
            if forward in peer.forwards:
                peer.forwards.remove(forward)

    def failed(self, location: str, forward: Forward, now: int) -> None:
        """The location could not be reached, or broke off: it gets none for a longer while, then step by step."""
        peer = self._peers.get(location)
        if peer is not None:
            self.refused(location, forward, now)
            if now >= peer.back_at:  # else one of many that fail together
                peer.failures += 1
                peer.back_at = now + min(BACKOFF_MAX, BACKOFF << min(peer.failures - 1, 5))
            peer.avoid_until = max(peer.avoid_until, peer.back_at)

    def usable(self, peer: Peer, now: int, tags: Sequence[Collection[str]] = (), without: Collection[str] = ()) -> bool:
        """Whether the location may be asked now."""
        digest = peer.digest
        if digest is None or not digest.accepting or digest.capacity <= 0 or now < peer.avoid_until:
            return False
        if digest.location in without or peer.flying >= IN_FLIGHT * digest.instances * self._share:
            return False
        if tags and not all(set(digest.residency).intersection(allowed) for allowed in tags):
            return False
        return peer.age(now) <= self._fresh(peer)

    def in_sight(self, location: str, now: int) -> bool:
        """Whether what is known of the location is believed: younger than 3 G + RTT."""
        peer = self._peers.get(location)
        return peer is not None and peer.digest is not None and peer.age(now) <= self._fresh(peer)

    def _fresh(self, peer: Peer) -> int:
        return FRESH * self._interval + peer.rtt

    def _unseen(self, peer: Peer, now: int) -> tuple[float, float]:
        """What all workers' forwards add, of which these are our share."""
        tokens, sequences = peer.unseen(now)
        return tokens / self._share, sequences / self._share

    def _allowed(self, peer: Peer, now: int, tags: Sequence[Collection[str]], without: Collection[str]) -> bool:
        return self.usable(peer, now, tags, without) and (not peer.back_at or self._random.random() < peer.ramp(now))

    def _draw(self, now: int, tags: Sequence[Collection[str]], without: Collection[str]) -> list[Peer]:
        """Up to two usable ones, in proportion to their capacity: by an alias table, so that it costs the same among many."""
        peers = self._list
        drawn: list[Peer] = []
        if len(peers) > CHOICES and (table := self._by_capacity()) is not None:
            for _ in range(DRAWS):
                peer = peers[table.draw(self._random)]
                if peer not in drawn and self._allowed(peer, now, tags, without):
                    drawn.append(peer)
                    if len(drawn) == CHOICES:
                        return drawn
        start = int(self._random.random() * len(peers))
        for peer in (*peers[start:], *peers[:start]):
            if len(drawn) == CHOICES:
                break
            if peer not in drawn and self._allowed(peer, now, tags, without):
                drawn.append(peer)
        return drawn

    def _by_capacity(self) -> AliasTable | None:
        """Made anew when a capacity has changed."""
        if self._table is None:
            weights = [peer.digest.capacity if peer.digest is not None else 0.0 for peer in self._list]
            self._table = AliasTable(weights) if sum(weights) > 0 else None
        return self._table
