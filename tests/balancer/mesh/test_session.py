"""One stream's protocol: who is believed, what is measured, what ends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh import wire
from balancer.mesh.session import BURST, RATE, Identity, Refused, Session
from balancer.mesh.wire import Told

SECOND = 1_000_000_000
MS = 1_000_000
AMS, LHR = Identity("ams", "0"), Identity("lhr", "0")


def pair(names: frozenset[str] | None = None, expected: str | None = "lhr") -> tuple[Session, Session]:
    """Two sides that have not spoken yet; `names`: in the certificate that ams sees."""
    return Session(AMS, b"a" * 32, expected, names), Session(LHR, b"b" * 32, None, None)


def greeted() -> tuple[Session, Session]:
    ams, lhr = pair()
    assert ams.receive(lhr.hello(5), 0, 5) is None
    assert lhr.receive(ams.hello(5), 0, 5) is None
    return ams, lhr


def reason(session: Session, frame: pb.Frame, now: int = 0) -> str:
    with pytest.raises(Refused) as refused:
        session.receive(frame, now, 0)
    return refused.value.reason


def test_hello() -> None:
    """Both know each other and the same secret."""
    ams, lhr = greeted()
    assert (LHR, AMS) == (ams.peer, lhr.peer)
    assert ams.secret == lhr.secret
    assert ams.secret


def test_who_is_not_believed() -> None:
    """The wrong name, a certificate that says another, another version, no nonce, oneself."""
    hello = pair()[1].hello(0)
    assert "identity" == reason(pair(expected="nyc")[0], hello)
    assert "certificate" == reason(pair(frozenset({"nyc"}), None)[0], hello)
    assert pair(frozenset({"lhr"}), None)[0].receive(hello, 0, 0) is None
    hello.hello.version = 2
    assert "version" == reason(pair()[0], hello)
    assert "hello" == reason(pair()[0], pb.Frame(hello=pb.Hello(version=1, location="lhr", node="0", nonce=b"x")))
    assert "self" == reason(pair(expected=None)[0], pair()[0].hello(0))


def test_order() -> None:
    """Hello is first, and once; what this version does not know is left out."""
    ams, lhr = pair()
    assert "protocol" == reason(ams, lhr.ping(1))
    ams, lhr = greeted()
    assert "protocol" == reason(ams, lhr.hello(0))
    assert ams.receive(pb.Frame(), 0, 0) is None


@given(st.integers(0, 200 * MS), st.integers(0, 200 * MS), st.integers(-(10**15), 10**15))
def test_distance_and_clocks(there: int, back: int, ahead: int) -> None:
    """The round trip is exact; the clocks' difference is, but for half of what the ways differ."""
    ams, lhr = greeted()
    sent = 10**16
    pong = lhr.receive(ams.ping(sent), sent + there + ahead, 0)
    assert pong is not None
    ams.receive(pong, sent + there + back, 0)
    assert ams.known
    assert there + back == ams.rtt
    assert abs(ams.offset - ahead) <= abs(there - back) / 2 + 1


def test_the_shortest_trip_tells_the_clocks() -> None:
    """As it was delayed least; the distance is the mean of the last eight."""
    ams, lhr = greeted()
    for number, (there, back) in enumerate([(10, 10), (90, 10), (50, 10)]):
        now = number * SECOND
        pong = lhr.receive(ams.ping(now), now + there * MS + 5 * SECOND, 0)
        assert pong is not None
        ams.receive(pong, now + (there + back) * MS, 0)
    assert 5 * SECOND == ams.offset
    assert 60 * MS == ams.rtt


def test_it_settles_after_eight_trips() -> None:
    ams, lhr = greeted()
    for number in range(8):
        assert not ams.settled
        pong = lhr.receive(ams.ping(number), number, 0)
        assert pong is not None
        ams.receive(pong, number, 0)
    assert ams.settled


def test_a_pong_that_answers_nothing() -> None:
    ams, _ = greeted()
    assert "protocol" == reason(ams, pb.Frame(pong=pb.Pong(sent=50, received=0, answered=0)), 10)
    ams, _ = greeted()
    assert "protocol" == reason(ams, pb.Frame(pong=pb.Pong(sent=0, received=100 * SECOND, answered=0)), 700 * SECOND)
    for end in (-(2**63), 2**63 - 1):
        ams, _ = greeted()
        assert "protocol" == reason(ams, pb.Frame(pong=pb.Pong(sent=5, received=end, answered=end)), 10)


def test_late_digests_are_left_out() -> None:
    """`seq` rises; what does not is counted."""
    ams, _ = greeted()
    for seq in (1, 3, 2, 3):
        ams.receive(wire.digests_frame(Told(seq, 0, (), ())), 0, 0)
    assert ams.told is not None
    assert (3, 2) == (ams.told.seq, ams.late)


def test_bad_digests_end_it() -> None:
    ams, _ = greeted()
    frame = pb.Frame(digests=pb.Digests(seq=1, models=[pb.Digest(model="m", work=-1)]))
    assert "digest" == reason(ams, frame)


def test_a_flood_ends_it() -> None:
    """A burst is borne, then so many a second."""
    ams, lhr = greeted()
    for _ in range(BURST - 1):
        ams.receive(lhr.ping(0), 0, 0)
    assert "flood" == reason(ams, lhr.ping(0))
    for number in range(10):
        ams.receive(lhr.ping(0), (number + 1) * SECOND // RATE + 1, 0)


def test_wall_clocks_are_compared() -> None:
    """An hour is seen; nothing depends on it."""
    ams, lhr = pair()
    ams.receive(lhr.hello(3600 * SECOND), 0, 0)
    assert 3600 * SECOND == ams.clock_error
