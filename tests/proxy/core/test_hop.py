"""A hop header proves who spilled which request, to whom and when; anything else proves nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.hop import WINDOW, Hop, HopError, read, verify, write

KEY, OTHER = b"k" * 32, b"o" * 32
HOP = Hop("ams", "lhr", "0a1b2c", 1, (("eu", "de"), ("nato",)), 5_000_000_000, "req-1")
REQUEST = (b"POST", b"/v1/chat/completions", b'{"model":"m"}')
VALUE = write(HOP, [KEY], *REQUEST)


def why(
    value: bytes, keys: list[bytes], target: str = "lhr", now: int = HOP.time, request: tuple[bytes, ...] = REQUEST
) -> str:
    """The reason for which a value is refused, "" if it is taken."""
    try:
        verify(read(value), keys, target, now, *request)
    except HopError as error:
        return str(error)
    return ""


def test_what_was_written_is_read() -> None:
    """All that the origin says of its request."""
    assert HOP == read(VALUE).hop
    bare = HOP._replace(residency=())
    assert bare == read(write(bare, [KEY], *REQUEST)).hop


def test_any_node_of_the_target_can_verify() -> None:
    """There is a MAC for each node's secret, and a new secret does not make the old one's hops void at once."""
    value = write(HOP, [OTHER, KEY], *REQUEST)
    assert ["", "", "bad_mac"] == [why(value, [KEY]), why(value, [b"x" * 32, OTHER]), why(value, [b"x" * 32])]
    assert "bad_mac" == why(VALUE, [])


def test_it_is_for_one_target_request_and_time() -> None:
    assert "wrong_target" == why(VALUE, [KEY], "nyc")
    for place, other in ((0, b"PUT"), (1, b"/v1/completions"), (2, b'{"model":"n"}')):
        changed = (*REQUEST[:place], other, *REQUEST[place + 1 :])
        assert "bad_mac" == why(VALUE, [KEY], request=changed)
    assert ["", "expired"] == [why(VALUE, [KEY], now=HOP.time + late) for late in (WINDOW, WINDOW + 1)]
    assert ["", "expired"] == [why(VALUE, [KEY], now=HOP.time - early) for early in (WINDOW, WINDOW + 1)]


@given(st.integers(0, len(VALUE) - 1), st.binary(min_size=1, max_size=1))
def test_no_byte_of_it_can_be_changed(place: int, byte: bytes) -> None:
    """Each is signed, or the signature."""
    changed = VALUE[:place] + byte + VALUE[place + 1 :]
    assert (changed == VALUE) == (why(changed, [KEY]) == "")


@given(st.binary(max_size=300) | st.builds(lambda cut: VALUE[:cut], st.integers(0, len(VALUE) - 1)))
def test_garbage_is_malformed(value: bytes) -> None:
    """And nothing else than HopError comes of it."""
    assert why(value, [KEY]) in ("malformed", "bad_mac", "wrong_target")


@pytest.mark.parametrize("value", [VALUE + b"," + VALUE, VALUE + b".", VALUE.upper(), b"", b"1;" * 2000])
def test_two_are_none(value: bytes) -> None:
    assert "malformed" == why(value, [KEY])
