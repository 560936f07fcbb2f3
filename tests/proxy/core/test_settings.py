"""The limits' defaults are the documented ones."""

from proxy.core.settings import Limits


def test_defaults() -> None:
    """As the config's documentation says."""
    limits = Limits()
    assert (32768, 8388608, 10, 75, 300, 300) == (
        limits.header_bytes, limits.body_bytes, limits.header_timeout, limits.idle_timeout,
        limits.first_byte_timeout, limits.stream_idle_timeout,
    )  # fmt: skip
    assert (10000, 1024, 30) == (limits.connections, limits.queue, limits.queue_timeout)
