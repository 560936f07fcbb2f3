"""What was said in a request, as OpenTelemetry's GenAI conventions write it. Only where the operator wants it in spans. Pure.

Prompts and answers were cut to size by the worker; what is cut in the middle is read as far as it goes, or given raw.
"""

import contextlib
from typing import Any

import httptools
import msgspec

from telemetry import names
from telemetry.record import Content

MOST = 16384  # characters of text in an attribute


class _Body:
    """The body of the answer that a client got (httptools calls its methods)."""

    def __init__(self) -> None:
        self.body = b""

    def on_body(self, data: bytes) -> None:
        self.body += data


def messages(content: Content) -> dict[str, str]:
    """The attributes with the prompt and the answer, JSON as text, size-bounded."""
    asked, left = _asked(content.prompt), MOST
    for message in reversed(asked):  # the last ones matter most
        part = message["parts"][0]
        part["content"] = part["content"][:left]
        left -= len(part["content"])
    return {
        names.GEN_AI_INPUT: _json([message for message in asked if message["parts"][0]["content"]]),
        names.GEN_AI_OUTPUT: _json([_message("assistant", _answered(content.answer)[:MOST])]),
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _asked(prompt: bytes) -> list[dict[str, Any]]:
    try:
        body = msgspec.json.decode(prompt)
    except msgspec.DecodeError:
        body = None
    if not isinstance(body, dict):
        return [_message("user", prompt.decode(errors="replace"))]
    said = body.get("messages", body.get("input", body.get("prompt", "")))
    if not isinstance(said, list):
        return [_message("user", _text(said))]
    return [
        _message(str(m.get("role", "user")), _text(m.get("content", "")))
        if isinstance(m, dict)
        else _message("user", _text(m))
        for m in said
    ]


def _text(said: object) -> str:
    return said if isinstance(said, str) else msgspec.json.encode(said).decode()


def _answered(answer: bytes) -> str:
    """The text of an answer: of a head and body as they went to the client, or of a JSON body."""
    if answer.startswith(b"HTTP/"):
        reader = _Body()
        with contextlib.suppress(httptools.HttpParserError):  # as far as it goes
            httptools.HttpResponseParser(reader).feed_data(answer)
        answer = reader.body
    pieces = [line[5:].strip() for line in answer.splitlines() if line.startswith(b"data:")] or [answer]
    return "".join(map(_spoken, pieces))


def _spoken(piece: bytes) -> str:
    """What one event, or a whole answer, adds to the first choice's text."""
    try:
        chunk = msgspec.json.decode(piece)
    except msgspec.DecodeError:
        return "" if piece == b"[DONE]" else piece.decode(errors="replace")
    try:
        choice = chunk["choices"][0]
    except (LookupError, TypeError):
        return ""
    said = choice.get("delta") or choice.get("message") or choice
    text = said.get("content", said.get("text"))
    return text if isinstance(text, str) else ""
