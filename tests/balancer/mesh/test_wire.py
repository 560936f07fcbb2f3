"""What goes over the wire comes back the same; what breaks a rule is refused, and only as the documented error."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh import wire
from balancer.mesh.wire import InstanceWork, Told, WireError
from balancer.model import Digest

ROOT = Path(__file__).parents[3]
DIGEST = Digest("lhr", "m", 3, 99, 10.0, 5e4, 4, 7, 1000, 0.01, 7e-5, 9e-8, True, ("eu",), "n1")
TOLD = Told(3, 99, ("eu",), (DIGEST,), (InstanceWork("gpu-1", 5, 6, 7),))


def over_the_wire(told: Told) -> Told:
    frame = pb.Frame.FromString(wire.digests_frame(told).SerializeToString())
    return wire.read_digests(frame.digests, "lhr", "n1")


def test_generated_code_is_its_source(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, "balancer/mesh/mesh.proto"], cwd=ROOT, check=True, timeout=60)
    for name in ("mesh_pb2.py", "mesh_pb2.pyi"):
        assert (ROOT / "balancer/mesh" / name).read_text() == (tmp_path / "balancer/mesh" / name).read_text()


def test_there_and_back() -> None:
    assert TOLD == over_the_wire(TOLD)


def test_nobody_speaks_for_another() -> None:
    """Location and node are the stream's, whatever is said."""
    said = wire.digests_frame(TOLD).digests
    (one,) = wire.read_digests(said, "nyc", "0").digests
    assert ("nyc", "0") == (one.location, one.node)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"work": math.nan}, "work"), ({"work": -1.0}, "work"), ({"capacity": math.inf}, "capacity"), ({"t0": 61.0}, "t0"),
        ({"kv_tokens": 2**60}, "kv_tokens"), ({"model": ""}, "model"), ({"model": "x" * 257}, "model"),
        ({"model": "a\nb"}, "model"), ({"capacity": 1e-300}, "capacity"),
    ],
)  # fmt: skip
def test_bad_digests(change: dict[str, object], names: str) -> None:
    """Numbers are finite, not negative, of a size; names are short and printable; the error names the field."""
    said = wire.digests_frame(TOLD).digests
    for field, value in change.items():
        setattr(said.models[0], field, value)
    with pytest.raises(WireError, match=names):
        wire.read_digests(said, "lhr", "n1")


@pytest.mark.parametrize("made", [-(2**63), 2**63 - 1])
def test_a_time_at_the_end_of_the_world(made: int) -> None:
    """What is computed with it would not fit in 64 bits any more."""
    said = wire.digests_frame(TOLD).digests
    said.made = made
    with pytest.raises(WireError, match="made"):
        wire.read_digests(said, "lhr", "n1")


def test_too_much() -> None:
    """Of anything, and anything twice."""
    for field, count in (("models", wire.MAX_MODELS), ("instances", wire.MAX_INSTANCES), ("residency", wire.MAX_TAGS)):
        said = pb.Digests()
        rows = [{"model": str(i)} if field == "models" else {"name": str(i)} for i in range(count + 1)]
        if field == "residency":
            said.residency.extend(str(i) for i in range(count + 1))
        else:
            for row in rows:
                getattr(said, field).add(**row)
        with pytest.raises(WireError, match=field):
            wire.read_digests(said, "lhr", "n1")
    twice = wire.digests_frame(TOLD).digests
    twice.models.add(model="m")
    with pytest.raises(WireError, match="once"):
        wire.read_digests(twice, "lhr", "n1")


@given(st.binary(max_size=400))
def test_garbage(data: bytes) -> None:
    """Bytes that are no frame end in protobuf's error, frames that are none of ours in ours."""
    from google.protobuf.message import DecodeError

    try:
        frame = pb.Frame.FromString(data)
        wire.read_digests(frame.digests, "lhr", "n1")
    except (DecodeError, WireError):
        pass


def test_secret() -> None:
    """The same from both sides, another for every nonce and every pair."""
    one, other = ("ams", "0", b"a" * 32), ("lhr", "0", b"b" * 32)
    assert wire.secret(one, other) == wire.secret(other, one)
    assert 32 == len(wire.secret(one, other))
    others = {
        wire.secret(one, ("lhr", "0", b"c" * 32)), wire.secret(one, ("lhr", "1", b"b" * 32)), wire.secret(one, other),
        wire.secret(("nyc", "0", b"a" * 32), other),
    }  # fmt: skip
    assert 4 == len(others)


def test_times_are_brought_to_our_clock() -> None:
    (one,) = wire.brought([DIGEST], 90)
    assert 9 == one.ts
