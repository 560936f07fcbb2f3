"""Streams are cut at event boundaries and lose nothing but the usage event nobody asked for."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.sse import HOLD, EventStream, Said, read_body, usage_in_body

CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" h\xc3\xa9llo"}}]}'
USAGE = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}'
)
NULL_USAGE = b'data: {"id":"c","choices":[{"delta":{}}],"usage":null}'
DONE = b"data: [DONE]"


def stream(*events: bytes, end: bytes = b"\n\n") -> bytes:
    return b"".join(event + end for event in events)


def through(pieces: list[bytes], hide: bool) -> tuple[bytes, EventStream]:
    events = EventStream(hide)
    out = [events.feed(piece) for piece in pieces]
    return b"".join(out) + events.finish(), events


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("hide", [False, True])
def test_every_cut_gives_the_same_bytes(end: bytes, hide: bool) -> None:
    """Split in two at every byte: the same bytes, events and usage."""
    whole = stream(
        CHUNK,
        NULL_USAGE,
        b": ping",
        b"event: x" + end[: len(end) // 2] + b"data: a" + end[: len(end) // 2] + b"data: b",
        USAGE,
        DONE,
        end=end,
    )
    expected = whole.replace(USAGE + end, b"") if hide else whole
    for at in range(len(whole) + 1):
        out, events = through([whole[:at], whole[at:]], hide)
        assert expected == out
        assert events.usage is not None
        assert (7, 3, 2) == (events.usage.prompt, events.usage.output, events.usage.cached)


def test_byte_by_byte() -> None:
    """One byte at a time, nothing comes out but whole events."""
    events = EventStream(True)
    out = [piece for byte in stream(CHUNK, USAGE, DONE) if (piece := events.feed(bytes([byte])))]
    assert [CHUNK + b"\n\n", DONE + b"\n\n"] == out


@given(st.binary(max_size=400), st.randoms(use_true_random=False))
def test_arbitrary_bytes_are_never_changed(data: bytes, rng: random.Random) -> None:
    """Whatever an engine sends as a stream arrives, at whatever cuts."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert data == through(pieces, False)[0]


@settings(max_examples=25)
@given(st.integers(1, 200_000), st.integers(100, 70_000))
def test_large_events_flow(size: int, piece: int) -> None:
    """An event larger than what is kept back flows through, and the next boundary is found again."""
    whole = stream(b"data: " + b"x" * size, USAGE, DONE)
    events = EventStream(True)
    out = b""
    for start in range(0, len(whole), piece):
        out += events.feed(whole[start : start + piece])
        assert len(events.tail) <= HOLD
    assert whole.replace(USAGE + b"\n\n", b"") == out + events.finish()
    assert events.at_boundary


def test_a_megabyte_event_is_not_kept() -> None:
    """Nothing of ours may be said inside an event that has partly gone on."""
    events = EventStream(False)
    events.feed(b"data: " + b"x" * 1_000_000)
    assert not events.at_boundary
    assert b"\n\n" == events.feed(b"\n\n")
    assert events.at_boundary


def test_usage_the_client_asked_for_stays() -> None:
    """Only the event that was asked for on the client's behalf is hidden."""
    whole = stream(CHUNK, USAGE, DONE)
    assert whole == through([whole], False)[0]


def test_usage_with_choices_stays() -> None:
    """An event that carries usage beside text is not hidden."""
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    out, events = through([stream(event)], True)
    assert stream(event) == out
    assert events.usage is not None


def test_responses_usage() -> None:
    """The Responses API nests usage and names it otherwise."""
    event = (
        b'event: response.completed\ndata: {"type":"response.completed",'
        b'"response":{"usage":{"input_tokens":5,"output_tokens":6}}}'
    )
    _, events = through([stream(event)], True)
    assert events.usage is not None
    assert (5, 6) == (events.usage.prompt, events.usage.output)


def test_quoted_usage_is_text() -> None:
    """The word in a model's own text is not usage."""
    event = b'data: {"choices":[{"delta":{"content":"\\"usage\\": {\\"prompt_tokens\\": 9}"}}]}'
    assert through([stream(event)], True)[1].usage is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4},"x":null}', (3, 4)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens_details":{"a":1}}}', (3, 0)),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":1}"}', None),
        (b'{"usage":null}', None),
        (b"", None),
    ],
)
def test_usage_in_a_body(body: bytes, expected: tuple[int, int] | None) -> None:
    """Usage is found near the end of a JSON answer."""
    usage = usage_in_body(body)
    assert expected == ((usage.prompt, usage.output) if usage else None)


def test_what_an_answer_says_of_itself() -> None:
    """Its id, its model, why each choice ended; not what its text says, and no more than a bounded part."""
    choice = {"text": '"finish_reason":"no"', "finish_reason": "stop"}
    text = json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": {"prompt_tokens": 3}}).encode()
    usage, said = read_body(text)
    assert usage is not None
    assert (3, Said("x", "m", ("stop",))) == (usage.prompt, said)
    many = b'{"id":"' + b"i" * 999 + b'","choices":[' + b",".join([b'{"finish_reason": "length"}'] * 20) + b"]}"
    _, said = read_body(many)
    assert (256, "", ("length",) * 16) == (len(said.id), said.model, said.finish_reasons)
    assert (None, Said()) == read_body(b"no JSON")
