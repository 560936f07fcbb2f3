"""`headrace trace`: a line a span, children below their parents."""

import io
from typing import Any

from rich.console import Console

from proxy.control.traces import shown
from proxy.waterfall import waterfall
from telemetry.record import Phases
from telemetry.tree import spans
from tests.support.records import MS, START, attempt, record


def lines(found: Any) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=160).print(waterfall(found))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_tree() -> None:
    """The engine's own span hangs below its attempt; the first token is a mark on the bar."""
    phases = Phases(0.02, 0.06, 0.4, 0.018, "a" * 16, START + 10 * MS, START + 480 * MS)
    bad = attempt("gpu-2", span_id="1" * 16, start=START + MS, end=START + 2 * MS, outcome="reset", status=0)
    one = record(attempts=[bad, attempt(engine=phases)])
    text = lines(shown(one, spans(one, {})))
    assert "r-1" in text[0]
    assert one.trace_id in text[0]
    names = ["POST /v1/chat/completions", "  headrace.route", "  chat llama", "    POST", "    POST", "      engine"]
    assert all(line.startswith(name) for name, line in zip(sorted(names), sorted(text[2:]), strict=True))
    assert text[-1].startswith("      engine")
    assert sum("●" in line for line in text) == 2  # the first token of the chat, the reset of the first attempt
    assert any("retried after reset" in line for line in text), text
