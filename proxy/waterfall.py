"""What `headrace trace` prints: one request's spans as a waterfall."""

import json
import sys
import urllib.parse
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from proxy.console import Unreachable, fetch
from telemetry import names

WIDTH = 40  # characters of a bar's line
SHOWN = {  # attributes by what they are called here
    names.INSTANCE: "instance", names.HTTP_STATUS: "status", names.ERROR_TYPE: "error", names.RETRY_REASON: "retried after",
    names.SPILL_TO: "spilled to", names.OUTCOME: "outcome", names.QUEUE_WAIT_MS: "waited ms", names.ROUTE_REASON: "reason",
    names.GEN_AI_OUTPUT_TOKENS: "output tokens", names.TPOT_MS: "TPOT ms",
    names.ENGINE_QUEUE: "queue s", names.ENGINE_PREFILL: "prefill s", names.ENGINE_DECODE: "decode s",
}  # fmt: skip


def trace(url: str, request_id: str, *, as_json: bool) -> int:
    """The command; its exit code."""
    try:
        found = fetch(url, f"/api/requests/{urllib.parse.quote(request_id, safe='')}/trace")
    except Unreachable as error:
        sys.stderr.write(f"headrace trace: {error}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        Console().print(waterfall(found))
    return 0


def waterfall(found: Any) -> Group:
    """The tree, a line a span: what, when, how long, and what is worth knowing of it."""
    spans = found["spans"]
    head = Text.assemble(
        ("request ", "dim"), (found["request_id"], "bold"), ("  trace ", "dim"), found["trace_id"], ("  at ", "dim"),
        found["location"],
    )  # fmt: skip
    table = Table(box=None, pad_edge=False)
    start, end = spans[0]["start"], max(span["end"] for span in spans)
    ordered = _in_order(spans)
    widest = max(2 * depth + len(span["name"]) for depth, span in ordered)
    for title, right, width in (("span", False, widest), ("starts at", True, 9), ("ms", True, 8), ("", False, WIDTH)):
        table.add_column(title, justify="right" if right else "left", min_width=width)
    table.add_column("")
    for depth, span in ordered:
        took = f"{(span['end'] - span['start']) / 1e6:.2f}"
        name = Text("  " * depth + span["name"], style="red" if span["error"] else "")
        table.add_row(name, f"{(span['start'] - start) / 1e6:.2f}", took, _bar(span, start, end), _facts(span))
    return Group(head, table)


def _in_order(spans: list[Any]) -> list[tuple[int, Any]]:
    """Each span with its depth below the first, children after their parent by when they began."""
    known = {span["span_id"] for span in spans}
    below: dict[str, list[Any]] = {}
    for span in sorted(spans, key=lambda span: span["start"]):
        below.setdefault(span["parent_id"] if span["parent_id"] in known else "", []).append(span)
    ordered = []
    waiting = [(0, span) for span in reversed(below.get("", []))]
    while waiting:
        depth, span = waiting.pop()
        ordered.append((depth, span))
        waiting += [(depth + 1, child) for child in reversed(below.get(span["span_id"], []))]
    return ordered


def _bar(span: Any, start: int, end: int) -> Text:
    scale = WIDTH / max(1, end - start)
    left = min(WIDTH - 1, int((span["start"] - start) * scale))
    length = max(1, min(WIDTH - left, round((span["end"] - span["start"]) * scale)))
    bar = [" "] * left + ["━"] * length + [" "] * (WIDTH - left - length)
    for event in span["events"]:
        bar[min(WIDTH - 1, max(0, int((event["at"] - start) * scale)))] = "●"
    return Text("".join(bar), style="red" if span["error"] else "green")


def _facts(span: Any) -> Text:
    facts = [f"{SHOWN[key]} {_short(value)}" for key, value in span["attributes"].items() if key in SHOWN]
    return Text("  ".join([*facts, *(event["name"] for event in span["events"])]), style="dim")


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
