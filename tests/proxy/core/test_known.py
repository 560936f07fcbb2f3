"""Known heads: equal but for the length's digits, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.known import MAX_KEPT, MAX_SIZE, Known

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX: y\r\n\r\n"


def kept(head: bytes = HEAD, length: int = 12) -> Known[str]:
    known: Known[str] = Known()
    known.keep(head, "meaning", length)
    return known


def test_only_the_length_may_differ() -> None:
    """The same head, and the same with another length, are known; the length is the new one's."""
    known = kept()
    assert ("meaning", 12) == known.find(HEAD)
    assert ("meaning", 9876) == known.find(HEAD.replace(b"12", b"9876"))


@pytest.mark.parametrize(
    "changed",
    [HEAD.replace(b"12", digits) for digits in (b"+1", b"", b" 1", b"1 ", b"1\n", b"0" * 40, b"1_2", b"0x1")]
    + [
        HEAD[:-2], HEAD + b"x", HEAD.replace(b"X", b"Z"), HEAD.replace(b": 12", b":12"),
        HEAD.replace(b"Content-L", b"Content-l"), HEAD.replace(b"Content-L", b"content-l"),
        HEAD.replace(b"Content-Length: 12\r\n", b""), HEAD.replace(b"X: y", b"Content-Length: 12"),
    ],
)  # fmt: skip
def test_what_is_not_known(changed: bytes) -> None:
    """Anything else must be read anew."""
    assert kept().find(changed) is None


@given(st.binary(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_nothing_slips_in(inserted: bytes, start: int, end: int) -> None:
    """However a head is changed, it is known only if taking its digits back gives the head that was kept."""
    changed = HEAD[:start] + inserted + HEAD[max(start, end) :]
    found = kept().find(changed)
    if found is not None:
        before, _, rest = changed.partition(b"Content-Length: ")
        digits, _, after = rest.partition(b"\r\n")
        assert HEAD == before + b"Content-Length: 12\r\n" + after
        assert (digits.isdigit(), int(digits)) == (True, found[1])


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (HEAD, 13), (HEAD, -1), (b"X: my content-length: 12\r\n\r\n", 12), (HEAD.replace(b"12", b"012"), 12),
        (HEAD.replace(b"X: y", b"X: " + b"y" * MAX_SIZE), 12), (b"A: b\r\n\r\n", 3), (b"A: b\r\n\r\n", -1),
    ],
)  # fmt: skip
def test_what_is_not_kept(head: bytes, length: int) -> None:
    """Where the digits are not plainly the length's own, or the head is large, nothing is kept."""
    assert not kept(head, length)


def test_bounded() -> None:
    """There is an end to what is kept."""
    known: Known[int] = Known()
    for i in range(3 * MAX_KEPT):
        known.keep(HEAD.replace(b"y", b"%d" % i), i, 12)
        assert len(known) <= MAX_KEPT
    known.clear()
    assert not known
