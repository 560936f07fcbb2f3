"""Limits and timeouts as the data plane uses them: seconds and bytes, already validated."""

import msgspec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`limits` in the config. Times in seconds, sizes in bytes, counts for the whole location."""

    header_bytes: int = 32768
    body_bytes: int = 8388608
    header_timeout: float = 10.0  # from a request's first byte to its head's last
    body_timeout: float = 60.0  # silence inside a request's body
    idle_timeout: float = 75.0  # a kept-alive connection without a request
    connect_timeout: float = 5.0  # to an engine, TLS included
    first_byte_timeout: float = 300.0  # from a request's sending to its answer's head
    stream_idle_timeout: float = 300.0  # silence inside an answer
    request_timeout: float = 3600.0  # a whole request, whatever it does
    connections: int = 10000
    queue: int = 1024
    queue_timeout: float = 30.0
