"""Frames of the mesh: made from the balancer's values, and read back strictly.

Whatever a peer says is bounded and checked before anything is done with it: sizes by gRPC (`MAX_FRAME`), counts, lengths of
names, numbers that are finite and not negative. A frame with one fault is refused whole.
"""

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from balancer.mesh import mesh_pb2 as pb
from balancer.model import Digest

VERSION = 1
MAX_FRAME = 262_144  # bytes
MAX_MODELS, MAX_INSTANCES, MAX_TAGS = 256, 4096, 64
MAX_NAME = 256
NONCE = 32  # bytes
MOST_TIME = 1 << 60  # ns: sums of some such times fit in 64 bits
MOST = 1e15  # tokens, and whatever else is counted


class WireError(Exception):
    """A frame that breaks a rule; the text names the field, the rule and the value."""


class InstanceWork(NamedTuple):
    """What one node has outstanding at one engine."""

    name: str
    prefill: int  # tokens
    decode: int
    requests: int


class Told(msgspec.Struct, frozen=True):
    """What one node says at one time. `made` and the digests' `ts` are ns of its own clock."""

    seq: int
    made: int
    residency: tuple[str, ...]
    digests: tuple[Digest, ...]
    instances: tuple[InstanceWork, ...] = ()


def digests_frame(told: Told) -> pb.Frame:
    """What goes to a peer."""
    models = [
        pb.Digest(
            model=d.model, work=d.work, capacity=d.capacity, instances=d.instances, running=d.running,
            kv_tokens=d.kv_tokens, t0=d.t0, c=d.c, kv_c=d.kv_c, accepting=d.accepting,
        )
        for d in told.digests
    ]  # fmt: skip
    instances = [
        pb.Instance(name=i.name, prefill=i.prefill, decode=i.decode, requests=i.requests) for i in told.instances
    ]
    return pb.Frame(
        digests=pb.Digests(seq=told.seq, made=told.made, residency=told.residency, models=models, instances=instances)
    )


def read_digests(said: pb.Digests, location: str, node: str) -> Told:
    """What a peer said, as the balancer's values; raises WireError. Who it is from was settled by its stream."""
    _at_most("models", len(said.models), MAX_MODELS)
    _at_most("instances", len(said.instances), MAX_INSTANCES)
    _at_most("residency", len(said.residency), MAX_TAGS)
    if said.seq >= 1 << 62:
        raise WireError(f"seq: must be less than 2**62, got {said.seq}")
    if abs(said.made) > MOST_TIME:
        raise WireError(f"made: must be within 2**60 ns, got {said.made}")
    residency = tuple(_name("residency", tag) for tag in said.residency)
    digests = tuple(_digest(one, said, location, node, residency) for one in said.models)
    instances = tuple(_instance(one) for one in said.instances)
    if len({d.model for d in digests}) != len(digests) or len({i.name for i in instances}) != len(instances):
        raise WireError("models, instances: each may stand there once")
    return Told(said.seq, said.made, residency, digests, instances)


def _digest(one: pb.Digest, said: pb.Digests, location: str, node: str, residency: tuple[str, ...]) -> Digest:
    for field in ("work", "capacity", "t0", "c", "kv_c", "kv_tokens"):
        value = getattr(one, field)
        if not math.isfinite(value) or not 0 <= value <= MOST:
            raise WireError(f"{field}: must be from 0 to {MOST:g}, got {value!r}")
    if 0 < one.capacity < 1:
        raise WireError(f"capacity: must be 0 or at least 1 token a second, got {one.capacity!r}")
    if one.t0 > 60 or one.c > 60 or one.kv_c > 60:
        raise WireError(f"t0, c, kv_c: must be at most 60 s, got {one.t0!r}, {one.c!r}, {one.kv_c!r}")
    return Digest(
        location, _name("model", one.model), said.seq, said.made, one.work, one.capacity, one.instances, one.running,
        one.kv_tokens, one.t0, one.c, one.kv_c, one.accepting and one.instances > 0, residency, node,
    )  # fmt: skip


def _instance(one: pb.Instance) -> InstanceWork:
    for field in ("prefill", "decode", "requests"):
        if getattr(one, field) > MOST:
            raise WireError(f"{field}: must be at most {MOST:g}, got {getattr(one, field)}")
    return InstanceWork(_name("name", one.name), one.prefill, one.decode, one.requests)


def _name(field: str, value: str) -> str:
    if not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise WireError(f"{field}: must be 1 to {MAX_NAME} printable characters, got {len(value)}")
    return value


def _at_most(field: str, count: int, most: int) -> None:
    if count > most:
        raise WireError(f"{field}: must be at most {most}, got {count}")


def secret(one: tuple[str, str, bytes], other: tuple[str, str, bytes]) -> bytes:
    """The secret of two (location, node, nonce), the same on both sides; as secret as the stream that carried the nonces."""
    first, second = sorted((one, other))
    names = "\n".join((*first[:2], *second[:2])).encode()
    return hmac.digest(first[2] + second[2], b"headrace hop 1\n" + names, hashlib.sha256)


def brought(digests: Sequence[Digest], offset: int) -> tuple[Digest, ...]:
    """The same with their time by our clock, theirs being `offset` ns ahead."""
    return tuple(msgspec.structs.replace(digest, ts=digest.ts - offset) for digest in digests)
