"""Routing reads few fields, names the one at fault, and changes only what it must."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import request
from proxy.core.errors import BadRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "JSON object"),
        (b"{", None, "JSON object"),
        (b"[]", None, "object"),
        (b'{"stream":true}', "model", "model"),
        (b'{"model":3}', "model", "str"),
        (b'{"model":""}', "model", "1 to 256"),
        (b'{"model":"m","stream":"yes"}', "stream", "bool"),
        (b'{"model":"m","max_tokens":"x"}', "max_tokens", "int"),
        (b'{"model":"m","stream_options":{"include_usage":1}}', "stream_options.include_usage", "bool"),
        (b'{"model":"\xff"}', None, "JSON"),
        (b'{"model":"m","x":' + b"[" * 100_000, None, "JSON"),
        (b'{"model":"m","\xff":1}', None, "utf-8"),
        (b'{"model":"m","\xed\xa0\x80":1}', None, "utf-8"),
        (b'{"model":"m","stream_options":{"\xff":1}}', None, "utf-8"),
    ],
)
def test_bad_bodies(body: bytes, param: str | None, words: str) -> None:
    """The message names the field and the rule."""
    with pytest.raises(BadRequest, match=words) as caught:
        request.read(body)
    assert param == caught.value.param


@given(st.binary(max_size=300))
def test_nothing_else_escapes(data: bytes) -> None:
    """Any bytes are read or refused."""
    with contextlib.suppress(BadRequest):
        request.read(data)


PIECES = st.lists(
    st.sampled_from(
        [b"a", b"\xff", b"\xe6\xbc\xa2", b"\xed\xa0\x80", b"\\ud800", b"\\udc00", b"\\u0000", b"\\n", b"\\", b"\n"]
    ),
    max_size=3,
).map(b"".join)


@given(st.lists(st.tuples(PIECES, st.booleans()), max_size=4))
def test_what_was_read_can_be_rewritten(names: list[tuple[bytes, bool]]) -> None:
    """No name of a member, ours or nested, that passes the reading fails when a body is made for an engine."""
    own, nested = (b"".join(b',"%b":1' % name for name, inner in names if inner is where) for where in (False, True))
    body = b'{"model":"m","stream_options":{"include_usage":false%b}%b}' % (nested, own)
    with contextlib.suppress(BadRequest):
        fields = request.read(body)
        rewritten = request.read(request.rewrite(body, fields, "theirs", True))
        assert ("theirs", True) == (rewritten.model, request.asks_usage(rewritten))


def test_untouched() -> None:
    """Without a reason the very same bytes go on."""
    body = b' { "model" : "m", "x": 1e400 }'
    assert body is request.rewrite(body, request.read(body), "m", False)


@given(
    st.dictionaries(st.text(max_size=8).filter(lambda k: k not in ("model", "stream_options")), JSON, max_size=5),
    st.sampled_from([None, {}, {"include_usage": False}, {"x": 1}, "absent"]),
    st.text(min_size=1, max_size=9),
)
def test_rewrite_changes_two_fields_only(rest: dict[str, object], options: object, name: str) -> None:
    """Model and stream_options become what the engine needs; every other member stays as it was."""
    rest = {
        k: v for k, v in rest.items() if k not in ("stream", "max_tokens", "max_completion_tokens", "max_output_tokens")
    }
    whole: dict[str, object] = {**rest, "model": "m"}
    if options != "absent":
        whole["stream_options"] = options
    body = json.dumps(whole).encode()
    out = json.loads(request.rewrite(body, request.read(body), name, True))
    expected = {
        **whole,
        "model": name,
        "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True},
    }
    assert expected == out


def test_escaped_key_is_not_doubled() -> None:
    """A key written with escapes is still the key."""
    body = b'{"model":"m","stream_opt\\u0069ons":{"include_usage":false}}'
    out = json.loads(request.rewrite(body, request.read(body), "m", True), object_pairs_hook=list)
    assert [("model", "m"), ("stream_options", [("include_usage", True)])] == out
