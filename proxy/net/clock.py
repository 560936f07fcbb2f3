"""Time for the hot path: monotonic nanoseconds for everything that is compared, Unix nanoseconds for what is written down."""

import time

now = time.monotonic_ns


def unix_offset() -> int:
    """What to add to a monotonic time to get a Unix time, both in ns. Read anew now and then: the wall clock moves."""
    return time.time_ns() - time.monotonic_ns()


def http_date() -> bytes:
    """The current time as HTTP writes it."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()
