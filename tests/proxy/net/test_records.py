"""Records tell what happened, in order, and hold no content."""

import msgspec
import pytest

from proxy.net import clock
from proxy.net.plane import LEARNED
from telemetry.record import Record
from tests.support.plane import Bench, answer, post


def test_moments_are_in_order() -> None:
    """Accepted, routed, connected, sent, first byte, done: monotonic times that never go back."""
    bench = Bench()
    before = clock.now()
    client, _ = bench.client()
    client.data_received(
        post(messages=[{"role": "user", "content": "canary"}], head=b"authorization: Bearer canary\r\n")
    )
    connection, _ = bench.engine_of(client)
    connection.data_received(answer(b'{"usage":{"prompt_tokens":9,"completion_tokens":4}}'))
    (record,) = bench.plane.take_records()
    moments = [record.accepted, record.routed, record.connected, record.sent, record.first_byte, record.done]
    assert sorted(moments) == moments
    assert before <= record.accepted
    assert (9, 4, 1) == (record.prompt_tokens, record.output_tokens, len(record.attempts))
    assert "canary" not in repr(record)


def test_learning() -> None:
    """Finished requests teach the estimator; failed ones do not."""
    bench = Bench()
    for status in (200, 404):
        client, _ = bench.client()
        client.data_received(post(prompt="x" * 100))
        connection, _ = bench.engine_of(client)
        connection.data_received(answer(b'{"usage":{"prompt_tokens":9,"completion_tokens":7}}', status))
    bench.plane.take_records()
    assert 7 == bench.router.estimator("m").snapshot()["output"][0]  # type: ignore[index]
    assert 1 == bench.router.estimator("m").snapshot()["output"][1]  # type: ignore[index]


def test_of_many_only_some_teach() -> None:
    """A large batch teaches the estimator by every k-th; all are recorded."""
    bench = Bench()
    for _ in range(10 * LEARNED):
        client, _ = bench.client()
        client.data_received(post())
        connection, _ = bench.engine_of(client)
        connection.data_received(answer(b'{"usage":{"prompt_tokens":9,"completion_tokens":7}}'))
    assert 10 * LEARNED == len(bench.plane.take_records())
    assert 0 < bench.router.estimator("m").snapshot()["output"][1] <= LEARNED  # type: ignore[index]


def test_bytes_in_are_exact() -> None:
    """Head and body as they came, by the short way too, where the head was read from another request."""
    bench = Bench()
    sizes = [10, 5000]
    requests = [post(prompt="x" * size) for size in sizes]
    for request in requests:
        client, _ = bench.client()
        client.data_received(request)
        bench.engine_of(client)[0].data_received(answer())
    assert [len(request) for request in requests] == [record.bytes_in for record in bench.plane.take_records()]


@pytest.mark.parametrize("huge", [2**64, 10**400], ids=["2**64", "10**400"])
def test_numbers_beyond_all_reason_stay_out_of_records(huge: int) -> None:
    """A client's cap or an engine's usage that no message can carry would take a whole batch of records with it."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(max_tokens=huge))
    connection, _ = bench.engine_of(client)
    connection.data_received(answer(b'{"usage":{"prompt_tokens":%d,"completion_tokens":%d}}' % (huge, huge)))
    (record,) = bench.plane.take_records()
    assert record == msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Record)
    assert "ok" == record.outcome
