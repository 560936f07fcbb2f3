"""What happens when (DESIGN 7): the queue fills, files run out, a client leaves; with real processes."""

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from tests.support.http import eventually, fetch_json, fetch_text, post_json
from tests.support.servers import Engine, Location

Start = Callable[..., Location]
StartEngine = Callable[..., Engine]


def admin_of(engine: Engine) -> str:
    """Where a simulated engine is broken and healed."""
    eventually(lambda: "admin on " in engine.output, "the engine names its admin address")
    return engine.output.partition("admin on ")[2].split()[0]


def ask(location: Location, prompt: str = "hi", request_id: str = "") -> tuple[int, str, str]:
    """One request: its status, its id, its `retry-after`."""
    body = {"model": "demo", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    headers = {"content-type": "application/json"} | ({"x-request-id": request_id} if request_id else {})
    request = urllib.request.Request(f"{location.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["x-request-id"], ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["x-request-id"], error.headers.get("retry-after", "")


def connect(location: Location) -> socket.socket:
    parts = urlsplit(location.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def metric(location: Location, pattern: str) -> float:
    """The sum of a metric's samples."""
    return sum(map(float, re.findall(rf"^{pattern} (\S+)", location.metrics(), re.MULTILINE)))


def test_the_queue(start_location: Start, start_engine: StartEngine) -> None:
    """With its one instance saturated requests wait; beyond the queue's end they are told when to come back."""
    engine = start_engine()
    admin = admin_of(engine)
    location = start_location({"demo": [engine.url]}, limits={"queue": 2, "first_byte_timeout": "6s"})
    post_json(f"{admin}/admin/fail", {"fail": "stall-before"})
    long = "word " * 12_000
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, location, long)
        eventually(lambda: location.outstanding() > 0, "the first is at the engine")
        waiting = [pool.submit(ask, location, request_id=f"waiting-{number}") for number in range(2)]
        eventually(lambda: metric(location, r"headrace_queue_depth\{.*\}") == 2, "two wait")
        places = [fetch_json(f"{location.admin}/api/requests/waiting-{number}") for number in range(2)]
        assert [("waiting", 1), ("waiting", 2)] == sorted((one["state"], one["queue_position"]) for one in places)
        status, _, retry_after = ask(location)
        assert 429 == status
        assert int(retry_after) >= 1
        post_json(f"{admin}/admin/fail", {"fail": None})
        assert 504 == first.result()[0]
        answers = [waiter.result() for waiter in waiting]
    assert [200, 200] == [answer[0] for answer in answers]
    for _, request_id, _ in answers:
        eventually(lambda i=request_id: location.record(i) is not None, "its record")  # type: ignore[misc]
        assert location.record(request_id)["queued"] > 0
    eventually(lambda: location.outstanding() == 0, "every outstanding count is 0")
    outcomes = {"ok": 2, "shed": 1, "timeout": 1}
    eventually(lambda: location.state()["totals"]["outcomes"] == outcomes, "one outcome each")


def test_a_client_that_leaves(start_location: Start, start_engine: StartEngine) -> None:
    """The engine's work is cancelled, its tokens leave the ledger, the record says who left."""
    engine = start_engine(profile="l4")
    location = start_location({"demo": [engine.url]})
    body = json.dumps(
        {"model": "demo", "prompt": "x", "max_tokens": 4000, "stream": True, "metadata": {"output_tokens": 4000}}
    ).encode()

    def running() -> float:
        found = re.search(r"^vllm:num_requests_running\S* (\S+)", fetch_text(f"{engine.url}/metrics"), re.MULTILINE)
        assert found is not None
        return float(found[1])

    with connect(location) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: edge\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = client.recv(65536)
        assert head.startswith(b"HTTP/1.1 200")
        assert 1 == running()
    eventually(lambda: running() == 0, "the engine stopped")
    eventually(lambda: location.outstanding() == 0, "every outstanding count is 0")
    eventually(lambda: location.state()["totals"]["outcomes"] == {"client_gone": 1}, "its outcome")


def test_out_of_files(start_location: Start, start_engine: StartEngine) -> None:
    """Accepting pauses before descriptors run out, which is counted; with room again all who waited are served."""
    location = start_location({"demo": [start_engine().url]}, descriptors=160)
    paused = r'headrace_accept_pauses_total\{reason="descriptors"\}'
    assert 200 == ask(location)[0]
    held = [connect(location) for _ in range(64)]
    try:
        eventually(lambda: metric(location, paused) >= 1, "accepting has paused", seconds=20)
        late = [connect(location) for _ in range(8)]  # the kernel's queue takes them
    finally:
        for client in held:
            client.close()
    for client in late:
        with client:
            client.sendall(b"GET /livez HTTP/1.1\r\nhost: edge\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert 200 == ask(location)[0]
