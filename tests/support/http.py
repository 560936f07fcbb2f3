"""Plain HTTP for tests: one request, one JSON answer, nothing kept open."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

POLL_SECONDS = 0.02


def fetch_json(url: str, *, seconds: float = 10.0) -> Any:
    """GET; raises urllib's HTTPError for a status of 400 or more."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        return json.load(answer)


def fetch_text(url: str, *, seconds: float = 10.0) -> str:
    """GET, decoded as UTF-8."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        text: str = answer.read().decode()
        return text


def post_json(url: str, body: object = None, *, seconds: float = 30.0) -> Any:
    """POST; the answer decoded, None if it is empty."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        content = answer.read()
    return json.loads(content) if content.strip() else None


def eventually(holds: Callable[[], object], what: str, *, seconds: float = 10.0) -> None:
    """Asks until it holds; an AssertionError saying `what` did not come true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(POLL_SECONDS)
