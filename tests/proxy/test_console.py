"""What `status` and `explain` print, and what they say when there is nothing to print."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fixtures.demo_processes import free_ports
from proxy import console
from proxy.control import views
from tests.support.records import MS, START, attempt, record, refusal

INSTANCE: dict[str, Any] = {
    "name": "gpu-1", "url": "http://gpu-1:8000", "kind": "vllm", "ready": True, "weight": 1.5,
    "outstanding": {"prefill": 300, "decode": 100, "requests": 7}, "kv_use": 0.25, "running": 6, "waiting": 1, "background": 0,
    "ejected_by": [], "serves": ["llama"], "problem": "",
}  # fmt: skip
STATE: dict[str, Any] = {
    "location": "ams", "draining": False, "connections": 12, "queued": 3,
    "workers": [{"worker": 0, "pid": 4321, "restarts": 2, "connected": False, "ejected": []}],
    "models": {"llama": [INSTANCE, {**INSTANCE, "name": "gpu-2", "outstanding": {"prefill": 0, "decode": 100, "requests": 1}}]},
    "totals": {"requests": 9, "outcomes": {"ok": 8, "shed": 1}, "retries": 4},
    "ttft_ms": {"p50": 41.4, "p99": 250.0},
}  # fmt: skip


class Admin(ThreadingHTTPServer):
    """An admin API whose answers by path are given: status and body."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.seen: list[tuple[str, str | None]] = []

    def says(self, path: str, *bodies: object, status: int = 200) -> None:
        """Answers with these, one after the other, the last one for good."""
        self.answers[path] = [
            (status, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies
        ]


class Handler(BaseHTTPRequestHandler):
    server: Admin

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["authorization"]))
        answers = self.server.answers.get(self.path, [(404, b"{}")])
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def admin() -> Iterator[Admin]:
    """An admin API on a free port."""
    with Admin() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not folded, and no environment of the developer's gets in."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("HEADRACE_ADMIN_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def text(view: RenderableType) -> str:
    """What a view looks like, without colours."""
    out = Console(file=io.StringIO(), width=200)
    out.print(view)
    printed = out.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue()


def row(shown: str, name: str) -> list[str]:
    """The words of the first line that begins so, behind its name."""
    lines = (line.strip() for line in shown.splitlines())
    return next(line.removeprefix(name).split() for line in lines if line.startswith(name + " "))


# status


def test_state() -> None:
    """The location in two lines, a table of instances for each model."""
    shown = text(console.state_view(STATE))
    assert (
        "location ams  12 connections, 3 queued, requests: 8 ok, 1 shed, 4 retries, TTFT p50 41 ms, p99 250 ms" in shown
    )
    assert "workers: 0 (pid 4321, 2 restarts, not connected)" in shown
    assert ["ready", "1.50", "7", "300", "100", "80%", "25%", "1"] == row(shown, "gpu-1")
    assert "20%" == row(shown, "gpu-2")[5]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "ready"),
        ({"ejected_by": [0]}, "ejected"),
        ({"ready": False}, "down"),
        ({"ready": False, "ejected_by": [0]}, "down"),
    ],
)
def test_states_of_an_instance(changes: dict[str, object], state: str) -> None:
    """Down is worse than ejected."""
    assert state == row(text(console.state_view({**STATE, "models": {"m": [{**INSTANCE, **changes}]}})), "gpu-1")[0]


def test_eighty_columns() -> None:
    """An ordinary terminal is wide enough: instances and figures are whole."""
    out = io.StringIO()
    far = {**INSTANCE, "name": "100.100.100.100:18000", "ejected_by": [0]}
    Console(file=out, width=80).print(console.state_view({**STATE, "models": {"m": [far]}}))
    assert "100.100.100.100:18000 ejected" in out.getvalue()
    assert "…" not in out.getvalue()


def test_idle_location() -> None:
    """No work and no requests yet: no share to divide by zero, no outcomes to list."""
    idle = {**INSTANCE, "outstanding": {"prefill": 0, "decode": 0, "requests": 0}}
    shown = text(console.state_view({**STATE, "models": {"m": [idle]}, "totals": {"outcomes": {}, "retries": 0}}))
    assert "requests: none" in shown
    assert "0%" == row(shown, "gpu-1")[5]


def test_draining_is_said() -> None:
    """Who looks sees it first."""
    assert "location ams  draining" in text(console.state_view({**STATE, "draining": True}))


def test_names_are_no_markup() -> None:
    """Names and problems that look like the terminal library's markup are printed as they are."""
    odd = {**INSTANCE, "name": "[red]gpu[/nothing]", "problem": "[/] Errno [bold]111"}
    shown = text(console.state_view({**STATE, "models": {"[/x]": [odd]}}))
    for part in ("[red]gpu[/nothing]", "[/] Errno [bold]111", "[/x]"):
        assert part in shown


def test_status_once(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed once where there is no terminal."""
    admin.says("/api/state", STATE)
    assert 0 == console.status(admin.url + "/", as_json=False, once=False)
    assert "gpu-1" in capsys.readouterr().out
    assert [("/api/state", None)] == admin.seen


def test_status_as_json(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the state, for other programs."""
    admin.says("/api/state", STATE)
    assert 0 == console.status(admin.url, as_json=True, once=False)
    assert json.loads(capsys.readouterr().out) == STATE


def test_status_goes_on_until_ctrl_c(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is refreshed; an agent that is away for a moment is no reason to end; Ctrl-C is, with 0."""
    out = io.StringIO()
    monkeypatch.setattr(console, "Console", lambda: Console(file=out, force_terminal=True, width=200))
    admin.says("/api/state", STATE, b"gone", {**STATE, "location": "lhr"})
    looks = iter(range(2))

    def sleep(seconds: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(console.time, "sleep", sleep)
    assert 0 == console.status(admin.url, as_json=False, once=False)
    assert "this is what was last known" in out.getvalue()
    assert "lhr" in out.getvalue()


# explain


def explained(**changes: object) -> str:
    """How a record is explained."""
    return text(console.explanation(views.detail(record(**changes))))


def test_a_request_in_flight() -> None:
    """Where it is; behind how many it waits, if it does."""
    found = {
        "request_id": "id-1", "state": "relaying", "worker": 0, "model": "m", "tenant": "t", "priority": 1,
        "instance": "gpu-1", "age_ms": 1500.0, "queue_position": 0, "queued_elsewhere": 0, "waiting_ms": 0.0,
        "expected_wait_ms": 0.0,
    }  # fmt: skip
    shown = text(console.standing(found))
    assert "in flight relaying for 1.5 s at gpu-1 (worker 0)" in shown
    assert "queue" not in shown
    found |= {
        "state": "waiting",
        "instance": "",
        "queue_position": 3,
        "queued_elsewhere": 2,
        "expected_wait_ms": 2340.0,
    }
    assert "queue position 3, 2 more at other workers; its turn is expected in 2.3 s" in text(console.standing(found))


def test_explanation() -> None:
    """What it was, where it went and why, the terms of each score."""
    shown = explained()
    assert "request r-1  /v1/chat/completions  llama  stream" in shown
    assert "outcome ok (200)  tokens 210 in, 41 out  (expected 200 in, 20 out)" in shown
    assert "why gpu-1: p2c: the lower score of the instances drawn  (table 7)" in shown
    assert ["0.2500", "100", "50", "0", "0", "10%", "1.00"] == row(shown, "gpu-1")
    assert ["0.5000", "300", "70", "5", "9", "20%", "2.00"] == row(shown, "gpu-2")


def test_attempts() -> None:
    """Each with its outcome and its time since the request's head."""
    failed = attempt("gpu-2", start=START + MS, end=START + 3 * MS, outcome="refused", status=0, connect_ns=2 * MS)
    shown = explained(attempts=[failed, attempt()], reason="retry")
    assert ["gpu-2", "refused", "-", "1.00", "3.00", "2.00", "-"] == row(shown, "1")
    assert ["gpu-1", "ok", "200", "2.00", "500.00", "0.00", "-"] == row(shown, "2")


def test_waterfall() -> None:
    """A bar for each moment: how long after the one before it, from where that one ended."""
    shown = explained()
    assert "100.00" == row(shown, "first token")[0]
    bars = {
        name: row(shown, name)[1].count("━") for name in ("routed", "first byte", "first token", "last byte", "done")
    }
    assert {"routed": 0, "first byte": 7, "first token": 0, "last byte": 32, "done": 0} == bars


def test_explanation_of_a_refusal() -> None:
    """No engine ever saw it: why not, and no empty tables."""
    shown = text(console.explanation(views.detail(refusal())))
    assert "outcome bad_request (400 bad_request)" in shown
    assert "no instance was chosen: bad_request" in shown
    assert "candidates" not in shown
    assert "attempts" not in shown


def test_explain(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """The command asks for the quoted id and prints the answer."""
    admin.says("/api/requests/a%2Fb%3F", views.detail(record(request_id="a/b?")))
    assert 0 == console.explain(admin.url, "a/b?", as_json=False)
    assert "request a/b?" in capsys.readouterr().out


def test_explain_as_json(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """The record as it is."""
    found = views.detail(record())
    admin.says("/api/requests/r-1", found)
    assert 0 == console.explain(admin.url, "r-1", as_json=True)
    assert json.loads(json.dumps(found)) == json.loads(capsys.readouterr().out)


# what goes wrong


def test_unknown_id(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """1, with what the admin API says."""
    admin.says("/api/requests/x", {"error": {"message": "No request of this id is among the last 5."}}, status=404)
    assert 1 == console.explain(admin.url, "x", as_json=False)
    assert f"headrace explain: {admin.url}: No request of this id is among the last 5.\n" == capsys.readouterr().err


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """1, and one line instead of a traceback."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert 1 == console.status(url, as_json=False, once=True)
    assert 1 == console.explain(url, "x", as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert [f"headrace status: {url}: ", f"headrace explain: {url}: "] == [line.partition("[")[0] for line in lines]
    assert all("Connection refused" in line for line in lines)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8081", "file:///etc/passwd", "ftp://x", "http://", "http://[bad", "http://x:port", ""]
)
def test_bad_urls(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """1 and why, without any file being opened."""
    assert 1 == console.status(url, as_json=False, once=True)
    assert capsys.readouterr().err.startswith("headrace status: ")


@pytest.mark.parametrize("body", [b"hello", b"[]", b"\xff", b""])
def test_something_else_there(admin: Admin, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an admin API: said with a hint."""
    admin.says("/api/state", body)
    assert 1 == console.status(admin.url, as_json=False, once=True)
    assert "is this the address of `admin` in the config?" in capsys.readouterr().err


def test_error_without_words(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """The status at least."""
    admin.says("/api/state", b"<html>", status=500)
    assert 1 == console.status(admin.url, as_json=False, once=True)
    assert "the admin API answered 500" in capsys.readouterr().err


def test_token_is_sent(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, as a bearer token; a redirect does not get it."""
    monkeypatch.setenv("HEADRACE_ADMIN_TOKEN", "t0ken")
    admin.says("/api/state", b"", status=302)
    assert 1 == console.status(admin.url, as_json=False, once=True)
    assert [("/api/state", "Bearer t0ken")] == admin.seen


def test_other_locations() -> None:
    """One row for each model that a location tells of; one without any for a location that is not there."""
    told = {"accepting": False, "instances": 4, "running": 7, "waiting_tokens": 1234.0, "tokens_a_second": 57143}
    places = {
        "lhr": {"up": True, "rtt_ms": 40.25, "age_s": 0.62, "models": {"m": told}},
        "nyc": {"up": False, "rtt_ms": 0.0, "age_s": 0.0, "models": {}},
    }
    lines = text(console.state_view({**STATE, "locations": places})).splitlines()
    (lhr,), (nyc,) = ([line.split() for line in lines if line.split()[:1] == [name]] for name in ("lhr", "nyc"))
    assert ["lhr", "up", "40.2", "0.6", "m", "no", "4", "7", "1,234", "57,143"] == lhr
    assert ["nyc", "down", "0.0", "0.0"] == nyc
