"""What happens when (DESIGN 7): processes and engines die in the middle of 200 streams."""

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from fixtures.figures import Result
from fixtures.load import Load
from fixtures.traces import Arrival
from tests.support.http import eventually, fetch_json, fetch_text, post_json
from tests.support.servers import Engine, Location

STREAMS, TOKENS = 200, 150
Start = Callable[..., Location]
StartEngine = Callable[..., Engine]


def in_flight(location: Location) -> tuple[int, int]:
    """Requests the engines have, and prompt tokens without a first token yet."""
    instances = location.state()["models"]["demo"]
    return sum(i["outstanding"]["requests"] for i in instances), sum(i["outstanding"]["prefill"] for i in instances)


def during_streams(location: Location, act: Callable[[], None]) -> list[Result]:
    """Sends 200 streams, acts when all have had their first token, waits for their ends."""

    async def scenario() -> list[Result]:
        load = Load([Arrival(i / STREAMS, 20, TOKENS) for i in range(STREAMS)], location.url, "demo")
        running = asyncio.create_task(load.run())
        await asyncio.to_thread(
            eventually, lambda: in_flight(location) == (STREAMS, 0), "all streams have begun", seconds=30
        )
        await asyncio.to_thread(act)
        await running
        return load.results

    return asyncio.run(scenario())


def failures(results: list[Result]) -> Counter[str]:
    assert len(results) == STREAMS
    return Counter(r.failure for r in results)


def ask(location: Location) -> str:
    """One small request; its answer's text."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = post_json(f"{location.url}/v1/chat/completions", body)
    text: str = answer["choices"][0]["message"]["content"]
    return text


def empty(location: Location) -> None:
    eventually(lambda: location.outstanding() == 0, "every outstanding count is 0")


@pytest.fixture
def engines(start_engine: StartEngine) -> list[Engine]:
    """Two engines that take seconds for 100 streams each."""
    return [start_engine(profile="a100") for _ in range(2)]


def test_agent_killed(start_location: Start, engines: list[Engine]) -> None:
    """No stream notices; a new agent comes and counts every record that was made meanwhile."""
    location = start_location({"demo": [e.url for e in engines]})
    before = location.state()["agent"]["pid"]
    results = during_streams(location, lambda: os.kill(before, signal.SIGKILL))
    assert Counter({"": STREAMS}) == failures(results)
    assert {TOKENS} == {r.output_tokens for r in results}
    eventually(lambda: location.state()["totals"]["requests"] == STREAMS, "all records were kept for the new agent")
    state = location.state()
    assert (1, True) == (state["agent"]["restarts"], state["agent"]["pid"] != before)
    assert 0 == state["totals"]["records_dropped"]
    empty(location)


def test_worker_killed(start_location: Start, engines: list[Engine]) -> None:
    """Its streams are cut, the other worker's go on; it is restarted, its row is zeroed, it is counted."""
    location = start_location({"demo": [e.url for e in engines]}, workers=2)
    before = location.pids
    results = during_streams(location, lambda: os.kill(before[0], signal.SIGKILL))
    found = failures(results)
    assert {"", "incomplete"} == set(found)
    assert {TOKENS} == {r.output_tokens for r in results if r.ok}
    eventually(lambda: location.pids[0] != before[0], "a new worker")
    assert before[1] == location.pids[1]
    assert [1, 0] == [w["restarts"] for w in location.state()["workers"]]
    eventually(lambda: all(w["connected"] for w in location.state()["workers"]), "the agent hears of it")
    assert all("tok0 tok1" == ask(location) for _ in range(8))
    empty(location)


def test_engine_killed(start_location: Start, engines: list[Engine]) -> None:
    """Its streams end with an error event, the other's are whole, and new requests go to the other."""
    location = start_location({"demo": [e.url for e in engines]})
    victim = engines[0]
    victim.exit_code = None
    results = during_streams(location, victim.kill)
    found = failures(results)
    assert {"", "error_event"} == set(found)
    name = victim.url.removeprefix("http://")
    assert {name} == {r.engine for r in results if not r.ok}
    assert name not in {r.engine for r in results if r.ok}
    assert all("tok0 tok1" == ask(location) for _ in range(8))
    eventually(lambda: location.state()["totals"]["requests"] == STREAMS + 8, "one outcome each")
    outcomes = location.state()["totals"]["outcomes"]
    assert {"ok": found[""] + 8, "upstream_error": found["error_event"]} == outcomes
    empty(location)


def test_bad_reload(start_location: Start, engines: list[Engine]) -> None:
    """The old config stays, the caller hears all that is wrong, a metric shows it; no stream notices."""
    location = start_location({"demo": [e.url for e in engines]})

    def reload() -> None:
        location.config["models"] = {"demo": {"engines": [{"url": "ftp://x"}], "alias": []}}
        location.write()
        with pytest.raises(urllib.error.HTTPError) as caught:
            post_json(f"{location.admin}/api/reload")
        with caught.value:
            assert 422 == caught.value.code
            told = caught.value.read().decode()
        assert "models.demo.engines[0].url" in told
        assert "models.demo.alias" in told

    assert Counter({"": STREAMS}) == failures(during_streams(location, reload))
    assert "headrace_config_reload_success 0.0" in location.metrics()
    assert "tok0 tok1" == ask(location)


def test_good_reload(start_location: Start, start_engine: StartEngine, engines: list[Engine]) -> None:
    """Another engine takes over; streams on those that left end as they would have."""
    location = start_location({"demo": [e.url for e in engines]})
    other = start_engine()

    def reload() -> None:
        location.config["models"] = {"demo": {"engines": [{"url": other.url}]}}
        location.write()
        assert 2 == post_json(f"{location.admin}/api/reload")["generation"]
        assert "tok0 tok1" == ask(location)

    assert Counter({"": STREAMS}) == failures(during_streams(location, reload))
    assert [other.url] == [i["url"] for i in location.state()["models"]["demo"]]
    empty(location)


def test_sigterm(start_location: Start, engines: list[Engine]) -> None:
    """Readiness fails first, streams finish, new answers say close, then exit 0 (which the fixture asserts)."""
    location = start_location({"demo": [e.url for e in engines]})

    def unready() -> bool:
        try:
            fetch_text(f"{location.url}/readyz")
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 503
        return False

    def drain() -> None:
        location.process.send_signal(signal.SIGTERM)
        eventually(unready, "readiness fails while streams run")
        with urllib.request.urlopen(f"{location.url}/v1/models", timeout=5) as answer:
            assert "close" == answer.headers["connection"]
        assert fetch_json(f"{location.admin}/api/state")["draining"]

    assert Counter({"": STREAMS}) == failures(during_streams(location, drain))
    assert 0 == location.process.wait(20)


def test_every_engine_gone(start_location: Start, start_engine: StartEngine) -> None:
    """A clear error, and nothing left on the ledger."""
    engine = start_engine()
    engine.exit_code = None
    location = start_location({"demo": [engine.url]})
    assert "tok0 tok1" == ask(location)
    engine.kill()
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(location)
    with caught.value:
        assert caught.value.code in (502, 503)
    empty(location)


FAULTS = ("reset-after:2", None, "error:503", "reset-before", "garbage", "error:429", "slow:3x", None)


def reached(load: Load, sent: int) -> bool:
    return load.sent >= sent


def test_five_thousand_requests(start_location: Start, start_engine: StartEngine) -> None:
    """One of three engines breaks in every way in turn: each request has one outcome, and nothing is left behind."""
    engines = [start_engine() for _ in range(3)]
    location = start_location({"demo": [e.url for e in engines]}, workers=2)
    eventually(lambda: "admin on " in engines[0].output, "the engine names its admin address")
    admin = engines[0].output.partition("admin on ")[2].split()[0]
    count = 5000

    async def scenario() -> list[Result]:
        load = Load([Arrival(i / 350, 10, 4) for i in range(count)], location.url, "demo")
        running = asyncio.create_task(load.run())
        for step, fault in enumerate(FAULTS, 1):
            share = step * count // (len(FAULTS) + 1)
            await asyncio.to_thread(eventually, partial(reached, load, share), "the load goes on", seconds=60)
            await asyncio.to_thread(post_json, f"{admin}/admin/fail", {"fail": fault})
        await running
        return load.results

    results = asyncio.run(scenario())
    failed = Counter(r.failure for r in results if not r.ok)
    assert count == len(results)
    assert set(failed) <= {"error_event"}  # only a break after the first byte is seen
    eventually(lambda: location.state()["totals"]["requests"] == count, "a record for every request")
    outcomes = location.state()["totals"]["outcomes"]
    assert {"ok": count - failed["error_event"], "upstream_error": failed["error_event"]} == outcomes
    empty(location)
