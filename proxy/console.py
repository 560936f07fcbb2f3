"""What `headrace status` and `headrace explain` print, from the admin API."""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

TIMEOUT = 5.0
EVERY = 1.0  # s between two looks of the live table
NOT_ADMIN = "no answer of an admin API; is this the address of `admin` in the config?"
WORDS = ("instance", "state", "outcome", "moment", "bar")  # columns of text
WIDTH = 40  # characters of the waterfall


class Unreachable(Exception):
    """Why the admin API gave nothing, in words for the user."""


def fetch(url: str, path: str) -> dict[str, Any]:
    """JSON from the admin API; raises Unreachable. HEADRACE_ADMIN_TOKEN is sent if it is set."""
    if not url.startswith(("http://", "https://")):
        raise Unreachable(f"the URL must begin with http:// or https://, got {url!r}")
    token = os.environ.get("HEADRACE_ADMIN_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url.rstrip("/") + path, headers=headers)  # noqa: S310
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise Unreachable(f"{url}: {_message(error)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise Unreachable(f"{url}: {NOT_ADMIN}")
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they would carry the token elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return NOT_ADMIN
    return str(getattr(error, "reason", error))


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return f"the admin API answered {error.code}"


def status(url: str, *, as_json: bool, once: bool) -> int:
    """The command; its exit code."""
    console = Console()
    try:
        found = fetch(url, "/api/state")
        if as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        elif once or not console.is_terminal:
            console.print(state_view(found))
        else:
            _watch(console, url, found)
    except Unreachable as error:
        sys.stderr.write(f"headrace status: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _watch(console: Console, url: str, found: Any) -> None:
    with Live(state_view(found), console=console, auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(EVERY)
            try:
                found = fetch(url, "/api/state")
                view = state_view(found)
            except Unreachable as error:  # the agent may be starting again
                view = Group(state_view(found), Text(f"{error}; this is what was last known", style="red"))
            live.update(view, refresh=True)


def _locations_table(locations: dict[str, Any]) -> Table:
    """The other locations, one row for each model they tell of."""
    columns = (
        "location",
        "state",
        "rtt, ms",
        "age, s",
        "model",
        "takes",
        "instances",
        "running",
        "waiting",
        "tokens/s",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("location", "state", "model", "takes") else "right")
    for name, peer in locations.items():
        place = (name, "up" if peer["up"] else "down", f"{peer['rtt_ms']:.1f}", f"{peer['age_s']:.1f}")
        if not peer["models"]:
            table.add_row(*place)
        for model, told in peer["models"].items():
            table.add_row(
                *place, model, "yes" if told["accepting"] else "no", str(told["instances"]), str(told["running"]),
                f"{told['waiting_tokens']:,.0f}", f"{told['tokens_a_second']:,.0f}",
            )  # fmt: skip
    return table


def state_view(found: Any) -> Group:
    """A location's state as tables."""
    totals = found["totals"]
    outcomes = ", ".join(f"{n} {name}" for name, n in sorted(totals["outcomes"].items())) or "none"
    head = Text.assemble(
        ("location ", "dim"), (found["location"], "bold"), ("  draining" if found["draining"] else "", "yellow"),
        f"  {found['connections']} connections, {found['queued']} queued, requests: {outcomes}, {totals['retries']} retries, "
        f"TTFT p50 {found['ttft_ms']['p50']:.0f} ms, p99 {found['ttft_ms']['p99']:.0f} ms",
    )  # fmt: skip
    workers = Text("workers: " + ", ".join(
        f"{w['worker']} (pid {w['pid']}, {w['restarts']} restarts{'' if w['connected'] else ', not connected'})"
        for w in found["workers"]
    ), style="dim")  # fmt: skip
    problems = {i["name"]: i["problem"] for rows in found["models"].values() for i in rows if i["problem"]}
    return Group(
        head, workers, *(_model_table(name, rows) for name, rows in found["models"].items()),
        *([_locations_table(found["locations"])] if found.get("locations") else []),
        *(Text(f"{name}: {problem}", style="yellow") for name, problem in problems.items()),
    )  # fmt: skip


def _table(title: Text, *columns: str) -> Table:
    """A table that fits 80 columns: figures to the right, instances never cut."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right", no_wrap=column == "instance")
    return table


def _model_table(name: str, instances: list[Any]) -> Table:
    columns = ("instance", "state", "weight", "in\nflight", "prefill", "decode", "share", "KV", "queue")
    table = _table(Text(name), *columns)
    table.padding = (0, 0, 0, 0)
    work = sum(i["outstanding"]["prefill"] + i["outstanding"]["decode"] for i in instances)
    for i in instances:
        state = "[red]down" if not i["ready"] else "[yellow]ejected" if i["ejected_by"] else "[green]ready"
        out = i["outstanding"]
        share = (out["prefill"] + out["decode"]) / work if work else 0.0
        table.add_row(
            Text(i["name"]), state, f"{i['weight']:.2f}", str(out["requests"]), str(out["prefill"]), str(out["decode"]),
            f"{share:.0%}", f"{i['kv_use']:.0%}", str(i["waiting"]),
        )  # fmt: skip
    return table


def explain(url: str, request_id: str, *, as_json: bool) -> int:
    """The command; its exit code."""
    try:
        found = fetch(url, "/api/requests/" + urllib.parse.quote(request_id, safe=""))
    except Unreachable as error:
        sys.stderr.write(f"headrace explain: {error}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        Console().print(standing(found) if "state" in found else explanation(found))
    return 0


def standing(found: Any) -> Text:
    """A request that has not ended: where it is, and if it waits, behind how many."""
    text = Text.assemble(
        ("request ", "dim"), (found["request_id"], "bold"), "  ", found["model"], "\n",
        ("in flight ", "dim"), (found["state"], "yellow"), f" for {found['age_ms'] / 1e3:.1f} s",
        f" at {found['instance']}" if found["instance"] else "", f" (worker {found['worker']})",
    )  # fmt: skip
    if found["queue_position"]:
        elsewhere = f", {found['queued_elsewhere']} more at other workers" if found["queued_elsewhere"] else ""
        text.append(
            f"\nqueue position {found['queue_position']}{elsewhere}; its turn is expected in"
            f" {found['expected_wait_ms'] / 1e3:.1f} s"
        )
    return text


def explanation(found: Any) -> Group:
    """One request: what it was, why it went where it went, what happened when."""
    tokens = f"{found['prompt_tokens'] or found['prompt_tokens_estimated']} in, {found['output_tokens']} out"
    expected = f"{found['prompt_tokens_estimated']} in, {found['output_tokens_predicted']} out"
    good = found["outcome"] == "ok"
    head = Text.assemble(
        ("request ", "dim"), (found["request_id"], "bold"), "  ", found["route"], "  ", found["model"] or "-",
        "  stream" if found["stream"] else "", "\n", ("outcome ", "dim"), (found["outcome"], "green" if good else "red"),
        f" ({found['status']}{' ' + found['error'] if found['error'] else ''})", ("  tokens ", "dim"), tokens,
        (f"  (expected {expected})", "dim"),
    )  # fmt: skip
    parts: list[Any] = [head]
    if found["reason"]:
        chosen = found["attempts"][-1]["instance"] if found["attempts"] else "-"
        why = (chosen, "bold"), f": {found['reason']}: {found['why']}", (f"  (table {found['table_version']})", "dim")
        parts += [Text.assemble(("why ", "dim"), *why), _candidates(found["candidates"], chosen)]
    else:
        parts.append(Text.assemble(("why ", "dim"), found["why"]))
    if found["attempts"]:
        parts.append(_attempts(found))
    parts.append(_waterfall(found["timeline"]))
    return Group(*parts)


def _candidates(candidates: list[Any], chosen: str) -> Table:
    title = Text("candidates of the last decision (outstanding tokens)")
    table = _table(title, "instance", "score, s", "prefill", "decode", "background", "phantom", "KV", "weight")
    for c in candidates:
        style = "bold" if c["instance"] == chosen else ""
        table.add_row(
            Text(c["instance"], style), f"{c['score']:.4f}", str(c["prefill"]), str(c["decode"]), str(c["background"]),
            str(c["phantom"]), f"{c['kv_use']:.0%}", f"{c['weight']:.2f}",
        )  # fmt: skip
    return table


def _attempts(found: Any) -> Table:
    table = _table(
        Text("attempts"), "", "instance", "outcome", "status", "from, ms", "to, ms", "connecting, ms",
        "engine: queue, prefill, decode, network, ms",
    )  # fmt: skip
    for number, attempt in enumerate(found["attempts"], 1):
        begin, end = ((attempt[key] - found["accepted"]) / 1e6 for key in ("start", "end"))
        colour = "green" if attempt["outcome"] == "ok" else "red"
        table.add_row(
            str(number), Text(attempt["instance"]), f"[{colour}]{attempt['outcome']}", str(attempt["status"] or "-"),
            f"{begin:.2f}", f"{end:.2f}", f"{attempt['connect_ns'] / 1e6:.2f}",
            ", ".join(f"{ms:.2f}" for ms in attempt.get("engine_ms", {}).values()) or "-",
        )  # fmt: skip
    return table


def _waterfall(timeline: dict[str, float]) -> Table:
    table = _table(Text("timeline, ms since the request's head"), "moment", "ms", "bar")
    table.show_header = False
    whole = max([*timeline.values(), 1e-9])
    before = 0.0
    for name, moment in sorted(timeline.items(), key=lambda item: item[1]):
        start, length = int(WIDTH * before / whole), int(WIDTH * (moment - before) / whole)
        table.add_row(name.replace("_", " "), f"{moment:.2f}", " " * start + "━" * length + "╸")
        before = moment
    return table
