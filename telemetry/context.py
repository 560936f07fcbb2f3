"""W3C Trace Context, strictly: what a caller's `traceparent` and `tracestate` say, or that they say nothing."""

import re
from typing import NamedTuple

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ZERO_TRACE, _ZERO_SPAN = b"0" * 32, b"0" * 16
_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_ENTRY = re.compile(rf"(?:{_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
MAX_ENTRIES, MAX_LENGTH = 32, 512
LONG_ENTRY = 128  # characters; longer ones go first when there is too much
SAMPLED = 0x01
KNOWN_FLAGS = 0x03  # sampled, random trace id; the others must be passed on as 0


class TraceParent(NamedTuple):
    """Ids in lower-case hex; of the flags those that W3C defines."""

    trace_id: str
    span_id: str
    flags: int


class Trace(NamedTuple):
    """A request's place in its trace; ids in lower-case hex."""

    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    state: str
    attempt_id: str  # the span of its first attempt


def parse_traceparent(value: bytes) -> TraceParent | None:
    """The caller's span, or None if the header is malformed: then a new trace begins."""
    match = _PARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or trace_id == _ZERO_TRACE or span_id == _ZERO_SPAN or (more and version == b"00"):
        return None
    return TraceParent(trace_id.decode(), span_id.decode(), int(flags, 16) & KNOWN_FLAGS)


def clean_tracestate(value: bytes) -> str:
    """The entries as they may be passed on: "" if any is malformed, stands twice, or there are more than 32; of more than
    512 characters first the entries over 128 are left out, then the last ones, as W3C says.
    """
    try:
        entries = [entry.strip(" \t") for entry in value.decode("ascii").split(",")]
    except UnicodeDecodeError:
        return ""
    entries = [entry for entry in entries if entry]
    keys = {entry.partition("=")[0] for entry in entries}
    if len(keys) != len(entries) or len(entries) > MAX_ENTRIES or not all(map(_ENTRY.fullmatch, entries)):
        return ""
    while len(",".join(entries)) > MAX_LENGTH:
        long = [at for at, entry in enumerate(entries) if len(entry) > LONG_ENTRY]
        del entries[long[-1] if long else -1]
    return ",".join(entries)


def extend(own: str, value: bytes) -> str:
    """A `tracestate` to send on: our own entry (key=value) first, the caller's behind it without an older one of ours, at
    most 32 in all. What the caller sent is left out if it is malformed.
    """
    key = own.partition("=")[0] + "="
    others = [entry for entry in clean_tracestate(value).split(",") if entry and not entry.startswith(key)]
    return ",".join([own, *others[: MAX_ENTRIES - 1]])


def below(share: float) -> str:
    """What the last 16 hex digits of a sampled trace's id are less than, as strings: OpenTelemetry's TraceIdRatioBased."""
    return "g" if share >= 1 else f"{round(share * (1 << 64)):016x}"
