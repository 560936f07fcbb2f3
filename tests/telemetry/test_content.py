"""What was said, as the conventions write it, whatever was cut off."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import names
from telemetry.content import MOST, messages
from telemetry.record import Content

CHAT = b'{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    """An event as it goes to a client, in a chunk of its own."""
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def said(attributes: dict[str, str]) -> tuple[list[tuple[str, str]], str]:
    asked = [(m["role"], m["parts"][0]["content"]) for m in json.loads(attributes[names.GEN_AI_INPUT])]
    return asked, json.loads(attributes[names.GEN_AI_OUTPUT])[0]["parts"][0]["content"]


def test_a_stream() -> None:
    """The prompt's messages, and the pieces of the answer put together."""
    answer = HEAD + chunk("Good") + chunk(" morning") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    asked, answered = said(messages(Content(CHAT, answer)))
    assert [("system", "be brief"), ("user", "hello")] == asked
    assert "Good morning" == answered


def test_a_whole_answer() -> None:
    """A JSON body alone."""
    body = b'{"choices":[{"message":{"role":"assistant","content":"Hi"}}]}'
    assert "Hi" == said(messages(Content(b'{"prompt":"hello"}', body)))[1]


def test_cut_in_the_middle() -> None:
    """What came of it."""
    asked, answered = said(messages(Content(CHAT[:60], (HEAD + chunk("Good") + chunk(" morning"))[:-20])))
    assert [("user", CHAT[:60].decode())] == asked
    assert answered.startswith("Good")


@pytest.mark.parametrize("size", [100, 100_000])
def test_bounded(size: int) -> None:
    """No attribute is larger than it may be."""
    asked, answered = said(messages(Content(b'{"prompt":"' + b"x" * size + b'"}', b"y" * size)))
    assert [("user", "x" * min(size, MOST))] == asked
    assert "y" * min(size, MOST) == answered


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes(prompt: bytes, answer: bytes) -> None:
    """Nothing escapes."""
    messages(Content(prompt, answer))
    messages(Content(prompt, HEAD + answer))
