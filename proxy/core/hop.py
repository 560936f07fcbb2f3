"""The hop header: by it a location knows a request that another one spilled to it, and knows that nobody else wrote it.

    x-headrace-hop: 1;ORIGIN;TARGET;TENANT;PRIORITY;RESIDENCY;TIME;REQUEST_ID;MAC[.MAC]

Each MAC is an HMAC-SHA256, in hex, over all before it, the method, the path and the body's SHA-256; there is one for each
node of the target, because the origin has agreed on a secret with each over its mesh stream. RESIDENCY: sets of tags, `+`
between the tags of a set, `|` between sets, of each of which the target must carry one. TIME: ns of the origin's monotonic
clock, which the mesh measures. What does not verify is no hop: the request is a client's, but it is not spilled either.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import NamedTuple

VERSION = b"1"
WINDOW = 30_000_000_000  # ns either way
MOST_MACS = 8
MAX_SIZE = 2048
_FORM = re.compile(
    rb"1;([A-Za-z0-9._-]{1,63});([A-Za-z0-9._-]{1,63});([0-9a-f]{1,64});([0-2]);([A-Za-z0-9._+|-]*);(\d{1,19});"
    rb"([A-Za-z0-9._:@/+=-]{1,128});([0-9a-f]{64}(?:\.[0-9a-f]{64}){0,7})"
)


class HopError(Exception):
    """Why a hop header counts for nothing, in one word for a counter."""


class Hop(NamedTuple):
    """What the origin says of a request that it spills."""

    origin: str
    target: str
    tenant: str  # keyed hash
    priority: int
    residency: tuple[tuple[str, ...], ...]
    time: int
    request_id: str


class Read(NamedTuple):
    """A hop header that is well formed; nothing is proven yet."""

    hop: Hop
    signed: bytes
    macs: tuple[bytes, ...]


def write(hop: Hop, keys: Iterable[bytes], method: bytes, path: bytes, body: bytes) -> bytes:
    """The header's value, signed by each of `keys`."""
    residency = "|".join("+".join(tags) for tags in hop.residency)
    signed = (
        f"1;{hop.origin};{hop.target};{hop.tenant};{int(hop.priority)};{residency};{hop.time};{hop.request_id}".encode()
    )
    text = _text(signed, method, path, body)
    return signed + b";" + b".".join(hmac.digest(key, text, "sha256").hex().encode() for key in keys)


def read(value: bytes) -> Read:
    """Reads a header's value; raises HopError."""
    match = _FORM.fullmatch(value) if len(value) <= MAX_SIZE else None
    if match is None:
        raise HopError("malformed")
    origin, target, tenant, priority, residency, time, request_id, macs = match.groups()
    sets = tuple(tuple(tags.split("+")) for tags in residency.decode().split("|")) if residency else ()
    hop = Hop(origin.decode(), target.decode(), tenant.decode(), int(priority), sets, int(time), request_id.decode())
    return Read(hop, value[: -len(macs) - 1], tuple(macs.split(b".")))


def verify(given: Read, keys: Iterable[bytes], target: str, now: int, method: bytes, path: bytes, body: bytes) -> bytes:
    """Raises HopError unless one of the `keys`, agreed on with its origin, made one of its MACs, for this target, request and
    time: `now` by the origin's clock. Returns that MAC: what came with it must not come again.
    """
    if given.hop.target != target:
        raise HopError("wrong_target")
    text = _text(given.signed, method, path, body)
    for key in keys:
        made = hmac.digest(key, text, "sha256").hex().encode()
        for mac in given.macs:
            if hmac.compare_digest(made, mac):
                if abs(now - given.hop.time) > WINDOW:
                    raise HopError("expired")
                return mac
    raise HopError("bad_mac")


def _text(signed: bytes, method: bytes, path: bytes, body: bytes) -> bytes:
    return b"%b\n%b %b\n%b" % (signed, method, path, hashlib.sha256(body).hexdigest().encode())
