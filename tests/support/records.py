"""Records as a worker makes them, for tests of what reads them."""

import msgspec

from telemetry.record import Attempt, Record

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
MS = 1_000_000


def attempt(instance: str = "gpu-1", **changes: object) -> Attempt:
    """A good attempt, from 2 ms to 500 ms after the request's head."""
    made = Attempt(instance, "b7ad6b7169203331", START + 2 * MS, START + 500 * MS, "ok", 200, 0)
    return msgspec.structs.replace(made, **changes)


def record(**changes: object) -> Record:
    """A stream that went well: 1 ms here, first token after 100 ms, 40 more over 400 ms; 20 were predicted."""
    made = Record(
        request_id="r-1", trace_id="4bf92f3577b34da6a3ce929d0e0e4736", span_id="00f067aa0ba902b7", parent_id="",
        trace_flags=1, tracestate="", location="ams", worker=0, tenant="t", method="POST", route="/v1/chat/completions",
        model="llama", stream=True, priority=1, hop=0, prompt_bytes=800, max_tokens=100, prompt_tokens_estimated=200,
        prompt_tokens=210, output_tokens_predicted=20, output_tokens=41, cached_tokens=16,
        accepted=START, queued=0, routed=START + MS // 2, connected=START + MS, sent=START + MS,
        first_byte=START + 90 * MS, first_token=START + 100 * MS, last_byte=START + 500 * MS, done=START + 500 * MS,
        attempts=[attempt()],
        candidates=(("gpu-1", 0.25, 100, 50, 0, 0, 0.1, 1.0), ("gpu-2", 0.5, 300, 70, 5, 9, 0.2, 2.0)),
        reason="p2c", table_version=7, spill_from="", spill_to="", outcome="ok", status=200, error="",
        bytes_in=900, bytes_out=4000, events=42, gap_max_ns=20 * MS, gaps_over_1s=0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def refusal(**changes: object) -> Record:
    """A request that never went to an engine: its body was bad."""
    return record(
        model="", stream=False, routed=0, connected=0, sent=0, first_byte=0, first_token=0, last_byte=0, attempts=[],
        candidates=(), reason="", outcome="bad_request", status=400, error="bad_request", prompt_tokens=0,
        output_tokens=0, cached_tokens=0, **changes,
    )  # fmt: skip
