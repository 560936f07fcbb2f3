"""Requests in flight can be asked for, at no cost to those nobody asks for."""

import asyncio
from typing import Any

import msgspec

from proxy.control.inflight import Finder, look, overdue
from proxy.control.messages import Find, Found, InFlight, ToAgent
from tests.support.plane import EVENT, STREAM_HEAD, Bench, chunk, post

HERE = InFlight("id-1", "waiting", 0, "m", "t", 1, "", 5.0, 1)


def test_a_relayed_request() -> None:
    """Where it is and who has it; when it has ended it is not in flight."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(head=b"x-request-id: id-1\r\n", stream=True))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    found = look(bench.plane, "id-1", bench.now + 10_000_000_000)
    assert found is not None
    assert ("relaying", connection.pool.upstream.name, 0) == (found.state, found.instance, found.queue_position)
    assert 9000 < found.age_ms <= 10_000
    assert look(bench.plane, "id-2", bench.now) is None
    client.connection_lost(None)
    assert look(bench.plane, "id-1", bench.now) is None


def test_waiting_requests() -> None:
    """The place in the queue, and how long it has waited and will."""
    bench = Bench(engines=1)
    prompt = "x" * 60_000
    for number in range(4):
        client, _ = bench.client()
        client.data_received(post(head=b"x-request-id: id-%d\r\n" % number, prompt=prompt))
    seen = [look(bench.plane, f"id-{number}", bench.now + 2_000_000_000) for number in range(4)]
    assert ["sent", "waiting", "waiting", "waiting"] == [one.state for one in seen if one is not None]
    assert [0, 1, 2, 3] == [one.queue_position for one in seen if one is not None]
    first, *others = (one.expected_wait_ms for one in seen[1:] if one is not None)
    assert 0 == first
    assert others == sorted(others)
    assert 0 < others[0]
    assert all(1000 < one.waiting_ms <= 2000 for one in seen[1:] if one is not None)


def test_overdue_streams() -> None:
    """Those that wait for their first token longer than twice what was predicted, and no others."""
    bench = Bench(engines=1)
    client, _ = bench.client()
    client.data_received(post(stream=True, prompt="x" * 400))
    whole, _ = bench.client()
    whole.data_received(post())
    exchange = client.exchange
    assert exchange is not None
    assert exchange.decision is not None
    patience = int(2e9 * exchange.decision.ttft)
    assert [] == overdue(bench.plane, exchange.sent + patience - 1000)
    (late,) = overdue(bench.plane, exchange.sent + patience + 1_000_000)
    assert ("m", "one", exchange.decision.ttft) == (late.model, late.instance, late.predicted)
    assert late.work == exchange.decision.prompt_tokens > 0
    assert patience < late.waited
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD)
    assert 1 == len(overdue(bench.plane, exchange.sent + 10 * patience))
    connection.data_received(chunk(EVENT))
    assert [] == overdue(bench.plane, exchange.sent + 10 * patience)


class Links:
    """Workers that answer a question as they are told."""

    def __init__(self, finder: Finder, *answers: InFlight | None) -> None:
        self.links: list[Any] = [self] * len(answers)
        self.answers = list(answers)
        self.finder = finder

    def send(self, message: Find) -> bool:
        answer = Found(message.number, self.answers.pop(0))
        passed = msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=ToAgent)
        assert isinstance(passed, Found)
        asyncio.get_running_loop().call_soon(self.finder.answered, passed)
        return True


async def ask(*answers: InFlight | None) -> InFlight | None:
    finder = Finder()
    return await finder.find("id-1", Links(finder, *answers).links)


def test_who_has_it_answers() -> None:
    """One worker has it; if none has, nobody waits for longer than the last answer."""
    assert HERE == asyncio.run(ask(None, HERE, None))
    assert None is asyncio.run(ask(None, None))
    assert None is asyncio.run(ask())


def test_a_late_answer_is_nobodys() -> None:
    """An answer to a question that is no longer asked does nothing."""
    Finder().answered(Found(7, HERE))
