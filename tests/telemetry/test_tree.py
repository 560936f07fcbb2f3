"""Spans from records: the right parents, times inside their parents', and what was not known left out."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import names
from telemetry.record import Record
from telemetry.tree import Span, failed, spans
from tests.support.records import MS, START, attempt, record, refusal

ADDRESSES = {"gpu-1": ("10.0.0.1", 8000), "gpu-2": ("10.0.0.2", 8000)}
SECOND_ID = "1111111111111111"


def tree(made: Record) -> dict[str, Span]:
    """The spans by name; attempts by their id."""
    return {span.span_id if span.name == "POST" else span.name: span for span in spans(made, ADDRESSES)}


def retried() -> Record:
    """gpu-2 reset after 30 ms, gpu-1 answered."""
    first = attempt("gpu-2", span_id=SECOND_ID, start=START + MS, end=START + 30 * MS, outcome="reset", status=0)
    return record(attempts=[first, attempt(start=START + 31 * MS)], routed=START + 31 * MS, sent=START + 31 * MS)


def test_one_stream() -> None:
    """Server, route, chat, one attempt."""
    found = spans(record(parent_id="2222222222222222"), ADDRESSES)
    assert ["POST /v1/chat/completions", "headrace.route", "chat llama", "POST"] == [span.name for span in found]
    server, route, chat, post = found
    assert ("2222222222222222", server.span_id, server.span_id, chat.span_id) == tuple(s.parent_id for s in found)
    assert (START, START + 500 * MS) == (server.start, server.end)
    assert (START, START + MS // 2) == (route.start, route.end)
    assert ["gpu-1", "gpu-2"] == route.attributes[names.ROUTE_CANDIDATES]
    assert [125.0, 335.0] == route.attributes[names.ROUTE_TOKENS]
    assert [names.FIRST_TOKEN] == [event.name for event in chat.events]
    assert ("10.0.0.1", 8000, "gpu-1") == tuple(
        post.attributes[key] for key in (names.SERVER_ADDRESS, names.SERVER_PORT, names.INSTANCE)
    )
    assert all(not span.error for span in found)


def test_a_retry() -> None:
    """The failed attempt is an error on its own span; what is above it is not, as a later one succeeded."""
    found = tree(retried())
    bad, good = found[SECOND_ID], found[attempt().span_id]
    assert ("reset", "") == (bad.error, good.error)
    assert names.HTTP_RESENDS not in bad.attributes
    assert (1, "reset") == (good.attributes[names.HTTP_RESENDS], good.attributes[names.RETRY_REASON])
    assert [names.UPSTREAM_RESET] == [event.name for event in bad.events]
    assert "" == found["chat llama"].error == found["POST /v1/chat/completions"].error
    assert (START + 30 * MS, START + 31 * MS) == (found["headrace.route"].start, found["headrace.route"].end)


def test_a_spill() -> None:
    """Its attempt says from where to where."""
    found = tree(record(attempts=[attempt("lhr", location="lhr")], spill_from="ams", spill_to="lhr", reason="spill"))
    post = found[attempt().span_id]
    assert ("ams", "lhr", 1) == tuple(post.attributes[k] for k in (names.SPILL_FROM, names.SPILL_TO, names.SPILL_HOP))
    assert found["headrace.route"].attributes[names.ROUTE_SPILL] is True


def test_one_that_waited() -> None:
    """The queue's span ends where its attempt begins, and the route's begins there."""
    waited = record(queued=START + MS, routed=START + 40 * MS, queue_depth=3, attempts=[attempt(start=START + 40 * MS)])
    found = tree(waited)
    admit = found["headrace.admit"]
    assert (START + MS, START + 40 * MS) == (admit.start, admit.end)
    assert (39.0, 3, "normal") == tuple(
        admit.attributes[key] for key in (names.QUEUE_WAIT_MS, names.QUEUE_DEPTH_THEN, names.PRIORITY)
    )
    assert START + 40 * MS == found["headrace.route"].start


def test_a_refusal() -> None:
    """Nothing but the server's span, no error, for a 400; the reason stands there."""
    (server,) = spans(refusal(), ADDRESSES)
    assert ("", "bad_request") == (server.error, server.attributes[names.ERROR_TYPE])


@pytest.mark.parametrize(
    ("status", "outcome", "expected"),
    [(200, "ok", False), (429, "shed", False), (400, "bad_request", False), (502, "upstream_error", True),
     (504, "timeout", True), (200, "upstream_error", True), (0, "client_gone", False)],
)  # fmt: skip
def test_what_is_an_error(status: int, outcome: str, expected: bool) -> None:
    """5xx and cut streams; neither clients' faults nor clients that leave."""
    assert expected == failed(record(status=status, outcome=outcome))
    assert expected == bool(spans(record(status=status, outcome=outcome), {})[0].error)


def test_a_client_that_left() -> None:
    """An event, no error."""
    server = spans(record(outcome="client_gone", status=0, attempts=[attempt(outcome="cancelled")]), {})[0]
    assert [names.CLIENT_GONE] == [event.name for event in server.events]


times = st.integers(0, 10_000).map(lambda ms: ms * MS)


@given(queue=times, gaps=st.lists(st.tuples(times, times), max_size=4), waits=st.booleans())
def test_children_are_inside(queue: int, gaps: list[tuple[int, int]], waits: bool) -> None:
    """Whatever was tried: parents come first, every span ends after it began and lies inside its parent."""
    at, attempts, routed = START + queue, [], 0
    for gap, length in gaps:
        routed = at + gap
        at = routed + length
        attempts.append(attempt(span_id=f"{len(attempts) + 7:016x}", start=routed, end=at))
    changes: dict[str, Any] = {"attempts": attempts, "routed": routed, "done": at, "queued": START if waits else 0}
    made = spans(record(first_token=0, last_byte=at, **changes), {})
    seen: dict[str, Span] = {}
    for span in made:
        assert span.start <= span.end
        if span.parent_id:
            parent = seen[span.parent_id]
            assert parent.start <= span.start, (parent, span)
            assert span.end <= parent.end, (parent, span)
        seen[span.span_id] = span
    assert len(made) == len(seen)


def test_the_same_record_gives_the_same_spans() -> None:
    """So `headrace trace` shows the ids that were exported."""
    assert spans(retried(), ADDRESSES) == spans(msgspec.structs.replace(retried()), ADDRESSES)


def test_nothing_said_is_in_a_span() -> None:
    """A span holds values of a kind that OTLP has, and no empty ones."""
    for span in spans(retried(), ADDRESSES):
        for value in span.attributes.values():
            assert isinstance(value, (str, int, float, bool, list))
            assert value != ""
