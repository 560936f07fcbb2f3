"""What a digest costs its receiver, and a decision among many locations (BALANCING 5)."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh import wire
from balancer.mesh.session import Identity, Session
from balancer.mesh.wire import Told
from balancer.model import Digest
from balancer.spill import Peer, Spillover

Benchmark = Any
SECOND = 1_000_000_000


def digest(location: str, ts: int) -> Digest:
    return Digest(location, "m", ts, ts, 2000.0, 20 / 70e-6, 20, 40, 60_000, residency=("eu",))


def test_a_digest_taken(benchmark: Benchmark) -> None:
    """From bytes to what decisions are made by: parsed, checked, brought to our clock, kept."""
    session = Session(Identity("ams", "0"), b"a" * 32, None, None)
    session.receive(pb.Frame(hello=pb.Hello(version=1, location="lhr", node="0", nonce=b"b" * 32)), 0, 0)
    known = Spillover(Random(1), SECOND)
    known.join("lhr", Peer(80_000_000))
    frames = iter(
        wire.digests_frame(Told(n, n, ("eu",), (digest("lhr", n),))).SerializeToString() for n in range(1, 10**6)
    )
    now = iter(range(0, 10**18, SECOND // 10))

    def take(data: bytes, at: int) -> None:
        session.receive(pb.Frame.FromString(data), at, at)
        assert session.told is not None
        for one in wire.brought(session.told.digests, 0):
            known.see(one, at)

    benchmark.pedantic(take, setup=lambda: ((next(frames), next(now)), {}), rounds=2000)


@pytest.mark.parametrize("locations", [2, 300])
def test_a_decision_among_locations(benchmark: Benchmark, locations: int) -> None:
    """It costs the same among many."""
    known = Spillover(Random(1), SECOND)
    for number in range(locations):
        known.join(f"l{number}", Peer(80_000_000))
        known.see(digest(f"l{number}", 1), 1)
    here = Digest("ams", "m", 1, 1, 200_000.0, 20 / 70e-6, 20, 40, 60_000)
    decide: Callable[[], object] = lambda: known.decide(here, 1000, 200, 2)  # noqa: E731
    benchmark.pedantic(decide, rounds=50, iterations=400)
