"""Trace context: what W3C says is valid, and nothing else."""

import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from telemetry.context import (
    MAX_ENTRIES,
    MAX_LENGTH,
    TraceParent,
    below,
    clean_tracestate,
    extend,
    parse_traceparent,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"
HEX = "0123456789abcdef"


def test_valid_traceparent() -> None:
    """The caller's trace, span and flags."""
    assert TraceParent(TRACE, SPAN, 1) == parse_traceparent(VALID.encode())


@pytest.mark.parametrize(("sent", "kept"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("f8", 0)])
def test_flags_without_meaning_are_not_passed_on(sent: str, kept: int) -> None:
    """W3C: a flag that this version does not define goes on as 0."""
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-{sent}".encode())
    assert parent is not None
    assert kept == parent.flags


@pytest.mark.parametrize(
    "value",
    [
        "",
        VALID.upper(),
        VALID.replace("-", "_"),
        VALID + " ",
        " " + VALID,
        VALID + "\n",
        VALID[:-1],
        VALID + "0",
        VALID + "-",
        VALID + "-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"{VALID},{VALID}",
    ],
)
def test_malformed_traceparent(value: str) -> None:
    """None: a new trace begins."""
    assert None is parse_traceparent(value.encode())


@pytest.mark.parametrize("more", ["", "-", "-what-the-future-brings"])
def test_future_version(more: str) -> None:
    """A version that is not known yet is read by its first four fields."""
    assert TraceParent(TRACE, SPAN, 1) == parse_traceparent(f"cc-{TRACE}-{SPAN}-01{more}".encode())


@given(st.binary(max_size=80))
def test_any_bytes_give_a_parent_or_none(value: bytes) -> None:
    """Nothing escapes; what is accepted is in lower-case hex and of the right lengths."""
    parent = parse_traceparent(value)
    if parent is not None:
        assert (32, 16) == (len(parent.trace_id), len(parent.span_id))


@given(st.text(HEX, min_size=32, max_size=32), st.text(HEX, min_size=16, max_size=16), st.integers(0, 3))
def test_round_trip(trace_id: str, span_id: str, flags: int) -> None:
    """What we would send we accept, but for ids of zeros only."""
    parent = parse_traceparent(f"00-{trace_id}-{span_id}-{flags:02x}".encode())
    valid = trace_id.strip("0") and span_id.strip("0")
    assert (TraceParent(trace_id, span_id, flags) if valid else None) == parent


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("", ""),
        ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE"),
        ("rojo=1,congo=2", "rojo=1,congo=2"),
        ("rojo=1 ,\tcongo=2", "rojo=1,congo=2"),
        ("rojo=1,,congo=2,", "rojo=1,congo=2"),
        ("fw529a3039@dt=FfAAAAAAAA", "fw529a3039@dt=FfAAAAAAAA"),
        ("a=inner space", "a=inner space"),
    ],
)
def test_valid_tracestate(value: str, kept: str) -> None:
    """Entries in order, the white space around them and empty ones gone."""
    assert kept == clean_tracestate(value.encode())


@pytest.mark.parametrize(
    "value",
    [
        "rojo",
        "rojo=",
        "=1",
        "Rojo=1",
        "rojo=1;x,congo=a=b",
        "a=1,a=2",
        "a=\x01",
        "a=\xe9",
        "a@b@c=1",
        "a b=1",
        "a=1\r\nx: y",
    ],
)
def test_malformed_tracestate(value: str) -> None:
    """One bad entry, or a key twice, and all of it is dropped."""
    assert "" == clean_tracestate(value.encode())


def test_number_of_entries() -> None:
    """Thirty-two entries pass, one more and all are dropped."""
    entries = [f"k{n}=v" for n in range(MAX_ENTRIES + 1)]
    assert ",".join(entries[1:]) == clean_tracestate(",".join(entries[1:]).encode())
    assert "" == clean_tracestate(",".join(entries).encode())


def test_long_entries_go_first() -> None:
    """Of too long a state entries over 128 characters are left out before short ones, then the last ones."""
    short = [f"s{n}={'v' * 90}" for n in range(4)]
    long = f"long={'v' * 150}"
    assert ",".join(short) == clean_tracestate(",".join([short[0], long, *short[1:]]).encode())
    many = [f"s{n}={'v' * 90}" for n in range(8)]
    assert ",".join(many[:5]) == clean_tracestate(",".join(many).encode())


_entry = st.builds(
    "{}={}".format,
    st.text(string.ascii_lowercase, min_size=1, max_size=8),
    st.text(string.ascii_letters + string.digits, min_size=1, max_size=200),
)


@given(st.lists(_entry, max_size=40))
def test_tracestate_is_bounded(entries: list[str]) -> None:
    """What is passed on is short enough, and made of entries that came, in their order."""
    kept = clean_tracestate(",".join(entries).encode())
    assert len(kept) <= MAX_LENGTH
    came = iter(entries)
    assert all(entry in came for entry in kept.split(",") if entry)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_clean_state(value: bytes) -> None:
    """Nothing escapes, and cleaning twice changes nothing."""
    kept = clean_tracestate(value)
    assert kept == clean_tracestate(kept.encode())


def test_our_entry_comes_first() -> None:
    """It takes the place of an older one of ours; 32 stay; what is malformed is left out whole."""
    many = ",".join(f"k{n}=1" for n in range(32))
    assert "headrace=ams,a=1,b=2" == extend("headrace=ams", b"a=1,headrace=lhr,b=2")
    assert 32 == len(extend("headrace=ams", many.encode()).split(","))
    assert "headrace=ams" == extend("headrace=ams", b"a=1,a=2")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_the_ids(share: float) -> None:
    """As OpenTelemetry's own sampler decides, so that all along a trace decide alike."""
    draw, sampler = Random(1).getrandbits, TraceIdRatioBased(share)
    for trace_id in (draw(128) for _ in range(2000)):
        sampled = sampler.should_sample(None, trace_id, "").decision.is_sampled()
        assert sampled == (f"{trace_id:032x}"[16:] < below(share))
