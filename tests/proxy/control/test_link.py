"""Frames: whole, byte by byte, at random cuts, too long, not msgpack; and a peer that does not read."""

import asyncio
import itertools
import socket
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control import link as link_module
from proxy.control.link import MAX_FRAME, MAX_QUEUED, Link, frame
from proxy.control.messages import Ack, Drain, Failed, Ready, ToSupervisor

MESSAGES = [Ready(3), Failed(4, "é" * 300), Ready(2**40), Failed(0, "")]


class Transport(asyncio.Transport):
    """Takes what is written; says that so many bytes wait."""

    def __init__(self, waiting: int = 0) -> None:
        super().__init__()
        self.waiting = waiting
        self.written = b""
        self.end = ""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.end != ""

    def close(self) -> None:
        self.end = "closed"

    def abort(self) -> None:
        self.end = "aborted"


def linked(waiting: int = 0) -> tuple[Link, Transport, list[object]]:
    """A link, its transport, and what it hears: messages, and `"lost"`."""
    heard: list[object] = []
    link = Link(msgspec.msgpack.Decoder(ToSupervisor).decode, heard.append, lambda: heard.append("lost"))
    transport = Transport(waiting)
    link.connection_made(transport)
    return link, transport, heard


def test_whole() -> None:
    """Several messages in one piece are all heard, in order."""
    link, _, heard = linked()
    link.data_received(b"".join(map(frame, MESSAGES)))
    assert MESSAGES == heard


def test_byte_by_byte() -> None:
    """Each message is heard with its last byte, not before."""
    link, _, heard = linked()
    for n, message in enumerate(MESSAGES):
        *most, last = frame(message)
        for byte in most:
            link.data_received(bytes([byte]))
        assert MESSAGES[:n] == heard
        link.data_received(bytes([last]))
    assert MESSAGES == heard


@given(
    st.lists(st.builds(Failed, st.integers(0, 2**60), st.text(max_size=50)), max_size=8), st.lists(st.integers(0, 600))
)
def test_random_cuts(messages: list[Failed], cuts: list[int]) -> None:
    """However the bytes are cut, the messages are the same."""
    data = b"".join(map(frame, messages))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    link, transport, heard = linked()
    for start, end in itertools.pairwise(places):
        link.data_received(data[start:end])
    assert messages == heard
    assert "" == transport.end


@given(st.binary(max_size=200))
def test_garbage_raises_nothing(data: bytes) -> None:
    """Whatever comes, a message is heard, or more is waited for, or the link ends."""
    link, _, _ = linked()
    link.data_received(data)


def test_too_long() -> None:
    """A frame that says to be too long ends the link before its body is waited for."""
    link, transport, heard = linked()
    link.data_received(frame(Ready(1)) + struct.pack("!I", MAX_FRAME + 1))
    assert ([Ready(1)], "aborted") == (heard, transport.end)


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode(Drain()), msgspec.msgpack.encode([1])])
def test_not_a_message(body: bytes) -> None:
    """What is no msgpack, or another direction's message, ends the link."""
    link, transport, heard = linked()
    link.data_received(struct.pack("!I", len(body)) + body + frame(Ready(1)))
    assert ([], "aborted") == (heard, transport.end)


def test_send() -> None:
    """A message goes out as its frame."""
    link, transport, _ = linked()
    assert link.send(Ack(7))
    assert frame(Ack(7)) == transport.written
    assert (len(transport.written) - 4).to_bytes(4, "big") == transport.written[:4]


def test_send_refuses_what_nobody_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message over the limit is the sender's mistake, and nothing of it is written."""
    monkeypatch.setattr(link_module, "MAX_FRAME", 64)
    link, transport, _ = linked()
    with pytest.raises(ValueError, match=r"^Failed: \d+ bytes, at most 64$"):
        link.send(Failed(1, "x" * 100))
    assert b"" == transport.written


@pytest.mark.parametrize(("waiting", "sent"), [(MAX_QUEUED, True), (MAX_QUEUED + 1, False)])
def test_send_is_bounded(waiting: int, sent: bool) -> None:
    """Nothing more is queued for a peer that has not read for too long."""
    link, transport, _ = linked(waiting)
    assert (sent, sent) == (link.send(Ack(1)), transport.written != b"")


@pytest.mark.parametrize("end", [Link.close, Link.abort])
def test_after_the_end(end: Any) -> None:
    """A link that was ended, by either side, sends nothing, says so once, and can be ended again."""
    link, transport, heard = linked()
    end(link)
    assert not link.send(Ack(1))
    link.connection_lost(None)
    assert ([b"", False], ["lost"]) == ([transport.written, link.open], heard)
    end(link)
    assert not link.send(Ack(1))


def test_over_a_socket() -> None:
    """Two ends of a real socket pair hear each other, and one hears that the other is gone."""

    async def go() -> list[object]:
        loop = asyncio.get_running_loop()
        heard: list[object] = []
        gone = asyncio.Event()
        decode = msgspec.msgpack.Decoder(ToSupervisor).decode
        ends = socket.socketpair()
        _, one = await loop.create_connection(lambda: Link(decode, heard.append, gone.set), sock=ends[0])
        _, other = await loop.create_connection(lambda: Link(decode, heard.append, lambda: None), sock=ends[1])
        for message in MESSAGES:
            other.send(message)
        other.close()
        await asyncio.wait_for(gone.wait(), 10)
        one.close()
        return heard

    assert MESSAGES == asyncio.run(go())
