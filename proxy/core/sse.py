"""What the relay must see in a stream of server-sent events, and no more.

Rules. Bytes go on as they came. They go on at event boundaries only, so that a client never gets half an event and
a comment or an error event of ours never lands inside one: the unfinished rest is kept back until it is whole, or
until it passes `HOLD` bytes (then it flows through, and nothing is injected until the next boundary). An event ends
with an empty line; lines end with LF, CRLF or CR. A usage event that the client did not ask for is taken out.
"""

import re
from typing import NamedTuple

import msgspec

from balancer.estimate import MAX_TOKENS

HOLD = 16384
MOST_NAME = 256  # characters of an id or a model's name that are kept
MOST_CHOICES = 16
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\r\n|\n\n|\r\r")
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"')
_USAGE_OBJECT = re.compile(rb'(?<!\\)"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


def _count(said: int | None) -> int:
    """Tokens as an engine said them, within what a count can be: nothing else may get into records."""
    return min(max(said or 0, 0), MAX_TOKENS)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Token counts as engines report them, in the words of either OpenAI API."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None

    @property
    def prompt(self) -> int:
        return _count(self.prompt_tokens or self.input_tokens)

    @property
    def output(self) -> int:
        return _count(self.completion_tokens or self.output_tokens)

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details or self.input_tokens_details
        return _count(details.cached_tokens if details else 0)


class _Response(msgspec.Struct):
    usage: Usage | None = None


class _Chunk(msgspec.Struct):
    usage: Usage | None = None
    choices: list[msgspec.Raw] | None = None
    response: _Response | None = None
    id: str | None = None
    model: str | None = None


class Said(NamedTuple):
    """What an answer says of itself."""

    id: str = ""
    model: str = ""
    finish_reasons: tuple[str, ...] = ()


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_usage = msgspec.json.Decoder(Usage).decode


def read_body(tail: bytes) -> tuple[Usage | None, Said]:
    """The usage in a JSON answer, or in its end, and what the answer says of itself if it is whole; decoded once."""
    try:
        chunk = _decode_chunk(tail)
    except msgspec.DecodeError:
        return usage_in_body(tail), Said()
    return chunk.usage, _said(chunk, tail)


def _said(chunk: _Chunk, text: bytes) -> Said:
    found = _FINISH.findall(text)
    reasons = (found[0].decode(),) if len(found) == 1 else tuple([reason.decode() for reason in found[:MOST_CHOICES]])
    made = ((chunk.id or "")[:MOST_NAME], (chunk.model or "")[:MOST_NAME], reasons)
    return tuple.__new__(Said, made)  # a NamedTuple's own constructor costs twice as much, on every request


def usage_in_body(tail: bytes) -> Usage | None:
    """The last `usage` object in the end of a JSON answer (or in all of it), or None."""
    try:
        return _decode_chunk(tail).usage
    except msgspec.DecodeError:
        pass  # only an end, or no JSON
    found = None
    for match in _USAGE_OBJECT.finditer(tail):
        try:
            found = _decode_usage(match[1])
        except msgspec.DecodeError:
            continue
    return found


def _payload(event: bytes) -> bytes:
    lines = [line for line in re.split(rb"\r\n|\n|\r", event) if line.startswith(b"data:")]
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


class EventStream:
    """The bytes of one stream, cut at event boundaries. `feed` returns what may go on now, `finish` the rest."""

    __slots__ = ("events", "hide_usage", "inside", "last", "said", "tail", "usage")

    def __init__(self, hide_usage: bool) -> None:
        self.hide_usage = hide_usage
        self.events = 0  # `data:` lines seen: close to tokens, set right by usage
        self.usage: Usage | None = None
        self.said = Said()  # known with usage
        self.last = b""  # the piece before: why the answer ended stands ahead of its usage
        self.tail = b""  # an event's beginning, kept back
        self.inside = False  # part of an event too large to keep back has gone on

    @property
    def at_boundary(self) -> bool:
        """Whether a comment or an event of ours may be sent now."""
        return not self.inside

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the stream, returns those that may go on (perhaps none)."""
        if self.tail:
            data = self.tail + data
            self.tail = b""
        if not data.endswith(_ENDS):
            data = self._cut(data)
            if not data:
                return b""
        else:
            self.inside = False
        self.events += data.count(b"\ndata:")
        if data.startswith(b"data:"):
            self.events += 1
        if b'"usage"' in data:
            return self._inspect(data)
        self.last = data
        return data

    def _cut(self, data: bytes) -> bytes:
        """Keeps back what follows the last boundary; gives up keeping when that is too much."""
        end = max(at + len(ending) if (at := data.rfind(ending)) >= 0 else 0 for ending in _ENDS)
        if end:
            self.inside = False
        if len(data) - end <= HOLD and not self.inside:
            self.tail = data[end:]
            return data[:end]
        self.inside = True
        line_ends = min(3, len(data) - len(data.rstrip(b"\r\n")))  # perhaps half of a boundary
        self.tail = data[len(data) - line_ends :]
        return data[: len(data) - line_ends]

    def finish(self) -> bytes:
        """The stream is over as it should be: what was kept back goes on."""
        rest, self.tail = self.tail, b""
        if rest:
            self.events += rest.count(b"\ndata:") + rest.startswith(b"data:")
            if b'"usage"' in rest:
                rest = self._inspect(rest)
        return rest

    def _inspect(self, data: bytes) -> bytes:
        """Reads usage where an event holds some; leaves out the event that only we asked for."""
        if not _USAGE.search(data):
            return data
        kept, start = [], 0
        ends = [m.end() for m in _BOUNDARY.finditer(data)]
        if not ends or ends[-1] != len(data):
            ends.append(len(data))
        for end in ends:
            event = data[start:end]
            start = end
            if not self._is_hidden(event):
                kept.append(event)
            self.last = event
        return b"".join(kept)

    def _is_hidden(self, event: bytes) -> bool:
        if not _USAGE.search(event):
            return False
        try:
            chunk = _decode_chunk(_payload(event))
        except msgspec.DecodeError:
            return False
        usage = chunk.usage or (chunk.response.usage if chunk.response else None)
        if usage is not None:
            self.usage, self.said = usage, _said(chunk, self.last + event)
        return self.hide_usage and usage is not None and chunk.choices == []
