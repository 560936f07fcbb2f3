"""Whether a request leaves for another location, under knowledge that is late (BALANCING 5). Decides; sends nothing.

    cost     (W + F) / C + P b + omega L tpot + RTT, in seconds; here the same without F and RTT
    F        own forwards that the last digest cannot show yet: without them every sender fills the same hole (herds)
    rule     the better of two locations drawn in proportion to C, if best + 50 ms + 10 % of local < local. The margin is the
             only damping: enter and exit thresholds flip.
    guard    the receiver refuses when its own work stands at 0.4 of the TTFT target, the sender then stays at home and lets
             that location be for max(G, RTT): locals come first

W: prompt tokens that wait there, C: token-equivalents a second of all its instances, P, L: this request's prompt and expected
output, b: instances / C, tpot from the engine model's coefficients with n sequences and K cached tokens an instance. A spilled
request never spills again. Who knows nothing fresh of the others keeps everything.
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


class Cost(NamedTuple):
    """What a request would cost at a location, by its terms, in seconds."""

    location: str
    wait: float  # (W + F) / C
    prefill: float  # P b
    decode: float  # omega L tpot
    rtt: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.wait + self.prefill + self.decode + self.rtt


class Verdict(NamedTuple):
    """Where a request goes and why."""

    location: str  # "" to stay
    local: Cost
    candidates: tuple[Cost, ...]


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

    __slots__ = ("avoid_until", "digest", "forwards", "offset", "received", "rtt")

    def __init__(self, rtt: int, offset: int = 0) -> None:
        """`rtt` in ns; `offset`: its clock minus ours."""
        self.rtt = rtt
        self.offset = offset
        self.digest: Digest | None = None
        self.received = 0
        self.avoid_until = 0
        self.forwards: list[Forward] = []

    def see(self, digest: Digest, now: int) -> bool:
        """Takes a digest; False for one that was made before the one that is known. (`seq` begins anew with its sender.)"""
        if self.digest is not None and digest.ts <= self.digest.ts:
            return False
        self.digest, self.received = digest, now
        return True

    def age(self, now: int) -> int:
        """How old the digest's content is: since it was sent, by its sender's clock brought to ours."""
        assert self.digest is not None  # noqa: S101
        return max(now - (self.digest.ts - self.offset), now - self.received)

    def unseen(self, now: int) -> tuple[int, int]:
        """(tokens, sequences) of the forwards that the digest cannot show. Those that it shows, or that are over, go."""
        digest, arrives = self.digest, self.rtt // 2
        assert digest is not None  # noqa: S101
        self.forwards = [
            f for f in self.forwards
            if f.sent + arrives + self.offset >= digest.ts and now - f.sent < RUNNING_FOR + self.rtt
        ]  # fmt: skip
        wait = digest.work / digest.capacity if digest.capacity > 0 else 0.0
        ripe = int((wait + SETTLE) * SECOND) + arrives
        return sum(f.prompt for f in self.forwards if now - f.sent < ripe), len(self.forwards)


class Spillover:
    """One location's knowledge of the others for one model. `interval`: G in ns."""

    def __init__(self, random: Random, interval: int) -> None:
        self._random = random
        self._interval = interval
        self._peers: dict[str, Peer] = {}
        self._list: list[Peer] = []
        self._table: AliasTable | None = None  # by capacity, over the list

    def join(self, location: str, peer: Peer) -> None:
        """There is this other location, at this distance."""
        self._peers[location] = peer
        self._list, self._table = list(self._peers.values()), None

    def peers(self) -> Sequence[Peer]:
        """All other locations."""
        return self._list

    def see(self, digest: Digest, now: int) -> bool:
        """A digest came; False if it is old or nobody's we know."""
        peer = self._peers.get(digest.location)
        if peer is None:
            return False
        before = peer.digest.capacity if peer.digest is not None else 0.0
        if before != digest.capacity:
            self._table = None
        return peer.see(digest, now)

    def decide(
        self, local: Digest, prompt: int, output: int, now: int, *, hopped: bool = False, tags: Collection[str] = ()
    ) -> Verdict:
        """Where a request of `prompt` and `output` tokens goes. `hopped`: it has been spilled or refused once; `tags`: it may go
        only where one of them is carried (none: anywhere).
        """
        here = cost(local, prompt, output)
        if hopped:
            return Verdict("", here, ())
        drawn = [
            cost(peer.digest, prompt, output, peer.rtt / SECOND, *peer.unseen(now))
            for peer in self._draw(now, tags) if peer.digest is not None
        ]  # fmt: skip
        best = min(drawn, key=lambda one: one.total, default=None)
        gone = here.total == math.inf  # no instance here: whatever the others take
        goes = best is not None and (gone or best.total + MARGIN + MARGIN_SHARE * here.total < here.total)
        return Verdict(best.location if best is not None and goes else "", here, tuple(drawn))

    def forwarded(self, location: str, prompt: int, now: int) -> Forward:
        """A request was sent there; what stands for it, should it be refused."""
        forward = Forward(now, prompt)
        self._peers[location].forwards.append(forward)
        return forward

    def refused(self, location: str, forward: Forward, now: int) -> None:
        """The location did not take this forward: it gets none for a while."""
        peer = self._peers[location]
        peer.avoid_until = now + max(self._interval, peer.rtt)
        if forward in peer.forwards:
            peer.forwards.remove(forward)

    def usable(self, peer: Peer, now: int, tags: Collection[str] = ()) -> bool:
        """Whether the location may be asked now."""
        digest = peer.digest
        if digest is None or not digest.accepting or digest.capacity <= 0 or now < peer.avoid_until:
            return False
        if tags and not set(tags) & set(digest.residency):
            return False
        return peer.age(now) <= FRESH * self._interval + peer.rtt

    def _draw(self, now: int, tags: Collection[str]) -> list[Peer]:
        """Up to two usable ones, in proportion to their capacity: by an alias table, so that it costs the same among many."""
        peers = self._list
        drawn: list[Peer] = []
        if len(peers) > CHOICES and (table := self._by_capacity()) is not None:
            for _ in range(DRAWS):
                peer = peers[table.draw(self._random)]
                if peer not in drawn and self.usable(peer, now, tags):
                    drawn.append(peer)
                    if len(drawn) == CHOICES:
                        return drawn
        start = int(self._random.random() * len(peers))
        for peer in (*peers[start:], *peers[:start]):
            if len(drawn) == CHOICES:
                break
            if peer not in drawn and self.usable(peer, now, tags):
                drawn.append(peer)
        return drawn

    def _by_capacity(self) -> AliasTable | None:
        """Made anew when a capacity has changed."""
        if self._table is None:
            weights = [peer.digest.capacity if peer.digest is not None else 0.0 for peer in self._list]
            self._table = AliasTable(weights) if sum(weights) > 0 else None
        return self._table
