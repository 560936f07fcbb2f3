"""Heads read before: what equals one in all but its Content-Length means the same and need not be read again.

A client sends the same lines with every request, an engine with every answer; only the length differs. A head is kept,
with its length cut out, after the strict reading took it. The cut is made where a line is `Content-Length: `, in
either usual spelling, so that nothing but the digits of that one line can differ.
"""

from typing import Generic, TypeVar

T = TypeVar("T")

MAX_KEPT = 512  # heads; when there are more, all are forgotten
MAX_SIZE = 4096  # bytes of a head that is kept
MAX_DIGITS = 15
_MARK = b"ength: "
_LINES = (b"\r\nContent-L", b"\r\ncontent-l")


class Known(Generic[T]):
    """What heads meant, by their bytes."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes], T] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, head: bytes) -> tuple[T, int] | None:
        """What a head means and its Content-Length, if its like was kept."""
        before, _, rest = head.partition(_MARK)
        digits, _, after = rest.partition(b"\r\n")
        value = self._kept.get((before, after))
        if value is None or not digits.isdigit() or len(digits) > MAX_DIGITS:
            return None
        return value, int(digits)

    def keep(self, head: bytes, value: T, length: int) -> None:
        """Keeps a head that was read, `length` being its Content-Length. One that is too large, or does not write the line
        as nearly all do, is not kept.
        """
        before, _, rest = head.partition(_MARK)
        digits, _, after = rest.partition(b"\r\n")
        if len(head) > MAX_SIZE or not before.endswith(_LINES) or digits != b"%d" % length:
            return
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[before, after] = value

    def clear(self) -> None:
        """Forgets all: what they mean may have changed."""
        self._kept.clear()
