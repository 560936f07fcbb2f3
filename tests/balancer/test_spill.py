"""Spilling: never worse than staying, by what is known, and by nothing that is too old."""

import math
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.model import Digest
from balancer.spill import RUNNING_FOR, Forward, Peer, Spillover, cost, refuses, tpot

SECOND = 1_000_000_000
MS = 1_000_000


def digest(location: str = "lhr", seq: int = 1, ts: int = 0, work: float = 0.0, **other: object) -> Digest:
    """Four idle a100."""
    given = Digest(location, "m", seq, ts, work, 4 / 70e-6, 4, 0, 0)
    return msgspec.structs.replace(given, **other)


BUSY = digest("ams", work=200_000.0)  # 3.5 s of waiting


def spillover(*digests: Digest, rtt: int = 80 * MS, now: int = 0) -> Spillover:
    """What one location knows of the others."""
    made = Spillover(Random(1), SECOND)
    for one in digests:
        made.join(one.location, Peer(rtt))
        made.see(one, now)
    return made


def test_cost() -> None:
    """Each term by hand (BALANCING 5)."""
    there = digest(work=57_142.857, running=8, kv_tokens=40_000)
    found = cost(there, 1000, 100, 0.08, tokens=5714.2857, sequences=4)
    assert found.wait == pytest.approx(1.1)
    assert found.prefill == pytest.approx(0.07)
    per_token = 0.0015 + math.hypot(0.0103, 71e-6 * 3) + 0.087e-6 * 10_000
    assert found.decode == pytest.approx(0.4 * 100 * per_token)
    assert tpot(there, 4) == pytest.approx(per_token)
    assert found.total == pytest.approx(1.1 + 0.07 + 40 * per_token + 0.08)
    assert math.inf == cost(digest(capacity=0.0), 1, 1).total


def test_it_leaves_only_for_what_is_better_by_the_margin() -> None:
    """50 ms and a tenth of what it would cost here."""
    idle = spillover(digest())
    assert "lhr" == idle.decide(BUSY, 1000, 200, 0).location
    assert "" == idle.decide(digest("ams"), 1000, 200, 0).location
    bare = cost(digest("ams"), 1000, 200).total
    least = (0.08 + 0.05 + 0.1 * bare) / 0.9  # seconds of waiting here at which RTT and margin are made up for
    for wait, expected in ((least - 0.001, ""), (least + 0.001, "lhr")):
        assert expected == idle.decide(digest("ams", work=wait * 4 / 70e-6), 1000, 200, 0).location


def test_who_has_been_spilled_stays() -> None:
    """The hop limit is 1."""
    assert "" == spillover(digest()).decide(BUSY, 1000, 200, 0, hopped=True).location


def test_only_fresh_digests_count() -> None:
    """3 G + RTT by the sender's clock; no fresh one: everything stays."""
    known = spillover(digest())
    assert "lhr" == known.decide(BUSY, 1000, 200, 3 * SECOND + 80 * MS).location
    assert "" == known.decide(BUSY, 1000, 200, 3 * SECOND + 80 * MS + 1).location
    assert known.see(digest(seq=7, ts=9 * SECOND), 9 * SECOND)
    assert not known.see(digest(seq=6, ts=8 * SECOND), 9 * SECOND), "an old one came late"
    assert known.see(digest(seq=1, ts=10 * SECOND), 10 * SECOND), "its sender was started anew"
    assert not known.see(digest("nobody"), 0)


def test_a_clock_that_was_set_back() -> None:
    """What was known is believed for 3 G + RTT; then any digest is taken, else its sender would be ignored for as long."""
    hour = 3600 * SECOND
    made = spillover(digest(ts=hour), now=hour)
    back = digest(seq=2, ts=hour - 60 * SECOND)
    assert not made.see(back, hour + SECOND)
    assert made.see(back, hour + 3 * SECOND + 81 * MS)


def test_a_clock_ahead_does_not_keep_a_digest_young() -> None:
    """A digest is at least as old as the time since it came."""
    made = spillover(digest(ts=3600 * SECOND), now=0)
    assert "lhr" == made.decide(BUSY, 1000, 200, 3 * SECOND).location
    assert "" == made.decide(BUSY, 1000, 200, 4 * SECOND).location


def test_residency() -> None:
    """A location qualifies if it carries one of the tags."""
    known = spillover(digest(residency=("eu", "de")), digest("nyc", residency=("us",)))
    assert {"lhr"} == {known.decide(BUSY, 1000, 200, 0, tags=[("eu", "ch")]).location for _ in range(20)}
    assert "" == known.decide(BUSY, 1000, 200, 0, tags=("ch",)).location


def test_who_does_not_accept_is_not_asked() -> None:
    assert "" == spillover(digest(accepting=False)).decide(BUSY, 1000, 200, 0).location


def test_a_location_without_instances_spills_all() -> None:
    """Even to one that is busy itself; with nobody fresh it stays and is told so here."""
    gone = digest("ams", capacity=0.0, instances=0)
    assert "lhr" == spillover(digest(work=1e6)).decide(gone, 1000, 200, 0).location
    assert "" == spillover().decide(gone, 1000, 200, 0).location


def test_own_forwards_count_until_the_digest_shows_them() -> None:
    """Twenty at once do not all go to the same place."""
    known, sent = spillover(digest()), 0
    for _ in range(200):
        if known.decide(BUSY, 10_000, 200, 0).location:
            known.forwarded("lhr", 10_000, 0)
            sent += 1
    assert 10 < sent < 25
    assert known.see(digest(seq=2, ts=41 * MS), 81 * MS)  # sent 40 ms before it was made
    assert "lhr" == known.decide(BUSY, 10_000, 200, 81 * MS).location


def test_a_refusal_is_remembered() -> None:
    """For max(G, RTT), and the forward counts no more."""
    known = spillover(digest())
    small = known.forwarded("lhr", 100, 0)
    large = known.forwarded("lhr", 9000, 1)
    known.refused("lhr", small, 80 * MS)
    assert "" == known.decide(BUSY, 1000, 200, SECOND).location
    assert "lhr" == known.decide(BUSY, 1000, 200, SECOND + 80 * MS).location
    (peer,) = known.peers()
    assert [large] == peer.forwards


def test_the_guard() -> None:
    """0.4 of the TTFT target; nobody sends to who has nothing."""
    assert [False, True, True] == [refuses(0.4e4, 1e4, 1.0), refuses(0.41e4, 1e4, 1.0), refuses(0.0, 0.0, 1.0)]


def test_many_are_drawn_in_proportion_to_their_capacity() -> None:
    """Of a hundred two are looked at; who has ten times as much is drawn ten times as often."""
    small = [digest(f"s{i}", work=1e5) for i in range(99)]
    known = spillover(*small, digest("big", work=1e5, capacity=990 * 4 / 70e-6, instances=3960))
    drawn = [one.location for _ in range(300) for one in known.decide(BUSY, 1000, 200, 0).candidates]
    assert 600 == len(drawn)
    assert 270 < drawn.count("big") <= 300


@given(
    st.lists(st.tuples(st.sampled_from(["go", "refuse", "tell", "wait"]), st.integers(1, SECOND)), max_size=60),
    st.integers(0, 300 * MS),
)
def test_no_forward_is_counted_for_ever(moves: list[tuple[str, int]], rtt: int) -> None:
    """Whatever happens, counts are not negative, and nothing is left when all is shown or old."""
    known, now, seq = spillover(digest(), rtt=rtt), 0, 1
    (peer,), sent = known.peers(), list[Forward]()
    for move, gap in moves:
        now += gap
        if move == "go":
            sent.append(known.forwarded("lhr", 100, now))
        elif move == "refuse":
            known.refused("lhr", sent.pop() if sent else Forward(0, 1), now)
        elif move == "tell":
            seq += 1
            known.see(digest(seq=seq, ts=now), now + rtt // 2)
        tokens, sequences = peer.unseen(now)
        assert 0 <= tokens <= 100 * sequences
    assert (0, 0) == peer.unseen(now + RUNNING_FOR + rtt)


TAGS = st.sets(st.sampled_from(["eu", "de", "us", "asia"]), max_size=3)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "e"]), st.tuples(TAGS, st.booleans(), st.integers(0, 400)), max_size=5
    ),
    st.lists(TAGS.filter(bool), max_size=2),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_a_request_never_leaves_its_residency_nor_crosses_twice(
    others: dict[str, tuple[set[str], bool, int]], tags: list[set[str]], hopped: bool, seed: int
) -> None:
    """Whatever is known of the others: only where a tag of each set is carried, who accepts, and whom it has not been to."""
    known = Spillover(Random(seed), SECOND)
    for name, (carried, accepting, flying) in others.items():
        known.join(name, Peer(80 * MS))
        known.see(digest(name, residency=tuple(sorted(carried)), accepting=accepting), 0)
        peer = known.peer(name)
        assert peer is not None
        peer.flying = flying
    verdict = known.decide(BUSY, 1000, 200, 0, hopped=hopped, tags=tags, without={"a"})
    if verdict.location:
        carried, accepting, flying = others[verdict.location]
        assert not hopped
        assert "a" != verdict.location
        assert accepting
        assert flying < 256
        assert all(carried & allowed for allowed in tags)


def test_who_failed_comes_back_step_by_step() -> None:
    """Let be for 1 s, 2 s, ... 30 s; then a tenth of its part, all of it after 10 s. Many that fail together are one."""
    known = spillover(digest())
    (peer,) = known.peers()
    forwards = [known.forwarded("lhr", 100, 0) for _ in range(10)]
    for forward in forwards:
        known.failed("lhr", forward, SECOND)
    assert 1 == peer.failures
    assert 2 * SECOND == peer.avoid_until
    assert [0.1, 0.5, 1.0] == [peer.ramp(2 * SECOND + gone * SECOND) for gone in (0, 5, 10)]
    now = 2 * SECOND
    for expected in (2, 4, 8, 16, 30, 30):
        known.failed("lhr", known.forwarded("lhr", 100, now), now)
        assert expected * SECOND == peer.back_at - now
        now = peer.back_at
    for _ in range(16):
        known.ended("lhr")
    known.see(digest(seq=2, ts=now), now)
    asked = sum(bool(known.decide(BUSY, 1000, 200, now).candidates) for _ in range(1000))
    assert 50 < asked < 200
    known.ended("lhr", well=True)
    assert 0 == peer.failures


def test_who_was_out_of_sight_comes_back_step_by_step() -> None:
    """A cut that heals does not send everything there at once."""
    known = spillover(digest())
    (peer,) = known.peers()
    assert 1.0 == peer.ramp(SECOND), "who is new is asked at once"
    known.see(digest(seq=2, ts=60 * SECOND), 60 * SECOND)
    assert 0.1 == peer.ramp(60 * SECOND)
    assert known.in_sight("lhr", 60 * SECOND)
    assert not known.in_sight("lhr", 64 * SECOND)
    assert not known.in_sight("x", 0)


def test_no_more_than_its_instances_can_take_are_in_flight() -> None:
    """64 for each; a worker among several has its share of them, and counts the others' forwards with its own."""
    known = Spillover(Random(1), SECOND, share=0.5)
    known.join("lhr", Peer(80 * MS))
    known.see(digest(), 0)
    for _ in range(128):
        assert known.decide(BUSY, 10, 10, 0).candidates
        known.forwarded("lhr", 10, 0)
    assert () == known.decide(BUSY, 10, 10, 0).candidates
    known.ended("lhr")
    (cost_there,) = known.decide(BUSY, 10, 10, 0).candidates
    assert pytest.approx(2 * 1280 / (4 / 70e-6)) == cost_there.wait
