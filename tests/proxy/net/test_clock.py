"""Two clocks: one that only goes forward, one that people read."""

import email.utils
import time

from proxy.net import clock


def test_unix_offset() -> None:
    """Monotonic plus offset is Unix time, to a second."""
    assert abs(clock.now() + clock.unix_offset() - time.time_ns()) < 10**9


def test_http_date() -> None:
    """As RFC 9110 writes dates."""
    parsed = email.utils.parsedate_to_datetime(clock.http_date().decode())
    assert abs(parsed.timestamp() - time.time()) < 5
