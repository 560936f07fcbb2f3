"""Several locations as real processes: what one cannot take, what is cut, who is killed."""

import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures.demo_processes import free_ports
from tests.support.http import eventually
from tests.support.servers import Engine, Location
from tests.support.world import INTERVAL, World, ask

StartEngine = Callable[..., Engine]
NEAR = {frozenset(("ams", "lhr")): 0.02}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def two(world: World, start_engine: StartEngine) -> World:
    """A slow engine in ams, a fast one in lhr, which see each other."""
    world.build({"ams": [start_engine(profile="l4").url], "lhr": [start_engine(profile="h100").url]}, NEAR)
    world.meshed()
    return world


def burst(url: str, count: int = 24, words: int = 400) -> list[tuple[int, dict[str, str], Any]]:
    """So many requests at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: ask(url, words), range(count)))


def spilled(answers: list[tuple[int, dict[str, str], Any]]) -> int:
    return sum(bool(headers.get("x-headrace-spill")) for _, headers, _ in answers)


def counted(metrics: str, name: str) -> float:
    """The sum of a counter over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", metrics, re.M))


def test_what_one_cannot_take_goes_to_the_other(world: World, start_engine: StartEngine) -> None:
    """A burst at one location is spilled, comes back whole, says so, and crosses once."""
    world.build(
        {"ams": [start_engine(profile="l4").url], "lhr": [start_engine(profile="h100").url]},
        {frozenset(("ams", "lhr")): 0.02},
    )
    ams, lhr = world.locations["ams"], world.locations["lhr"]
    world.meshed()
    shown = ams.state()["locations"]["lhr"]
    assert 40 <= shown["rtt_ms"] < 1000
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(ams.url, 400), range(24)))
    assert [200] * 24 == [status for status, _, _ in answers]
    spilled = [headers for _, headers, _ in answers if headers.get("x-headrace-spill")]
    assert spilled, "none was spilled"
    for headers in spilled:
        assert ("ams>lhr", "ams") == (headers["x-headrace-spill"], headers["x-headrace-location"])
        assert headers["x-headrace-instance"].startswith("lhr/")
        request_id = headers["x-request-id"]
        eventually(lambda ident=request_id: ams.record(ident) and lhr.record(ident), "both have recorded it")
        sent, taken = ams.record(request_id), lhr.record(request_id)
        assert ("ams", "lhr", 0, "spill") == (sent["spill_from"], sent["spill_to"], sent["hop"], sent["reason"])
        assert ("ams", "lhr", 1) == (taken["spill_from"], taken["spill_to"], taken["hop"])
        assert sent["trace_id"] == taken["trace_id"]
        assert sent["tenant"] == taken["tenant"]
        assert taken["parent_id"] == sent["attempts"][-1]["span_id"]
        assert all(attempt["instance"] not in ("ams", "lhr") for attempt in taken["attempts"]), "it crossed twice"
    eventually(lambda: 0.0 == ams.outstanding() == lhr.outstanding(), "the ledgers are empty")
    assert f'headrace_spill_total{{from="ams",outcome="answered",to="lhr"}} {len(spilled)}.0' in ams.metrics()


@pytest.mark.parametrize("way", ["both", "there", "back"])
def test_a_cut_fails_nobody(two: World, way: str) -> None:
    """What was under way there and had no first byte is served here; nothing more goes there; when it heals, all is as before."""
    ams = two.locations["ams"]
    with ThreadPoolExecutor(24) as pool:
        under_way = [pool.submit(ask, ams.url, 400) for _ in range(24)]
        time.sleep(0.05)
        if way == "both":
            two.cut("ams", "lhr")
        else:
            two.cut_one_way(*(("ams", "lhr") if way == "there" else ("lhr", "ams")))
        assert [200] * 24 == [task.result()[0] for task in under_way]
    eventually(lambda: not two.up("ams", "lhr"), "the cut is seen")
    time.sleep(4 * INTERVAL)  # the last digest is no longer believed
    answers = burst(ams.url, 12)
    assert [200] * 12 == [status for status, _, _ in answers]
    assert 0 == spilled(answers)
    two.heal()
    two.meshed()
    eventually(lambda: spilled(burst(ams.url)) > 0, "it spills again", seconds=30)


def test_an_agent_killed(two: World) -> None:
    """No request notices; the next one is on the mesh again, with new secrets."""
    ams = two.locations["ams"]
    pid = ams.state()["agent"]["pid"]
    with ThreadPoolExecutor(24) as pool:
        under_way = [pool.submit(ask, ams.url, 400) for _ in range(24)]
        os.kill(pid, signal.SIGKILL)
        assert [200] * 24 == [task.result()[0] for task in under_way]

    def back() -> bool:
        try:
            return bool(ams.state()["agent"]["pid"] != pid and two.up("ams", "lhr") and two.up("lhr", "ams"))
        except OSError:
            return False

    eventually(back, "a new agent is on the mesh", seconds=20)
    eventually(lambda: spilled(burst(ams.url)) > 0, "it spills again", seconds=30)
    assert 0 == counted(two.locations["lhr"].metrics(), "headrace_hops_rejected_total")


def test_a_location_killed(two: World) -> None:
    """What it had not begun to answer is served at home."""
    ams, lhr = two.locations["ams"], two.locations["lhr"]
    with ThreadPoolExecutor(24) as pool:
        under_way = [pool.submit(ask, ams.url, 400) for _ in range(24)]
        time.sleep(0.1)
        lhr.exit_code = None
        lhr.kill()
        assert [200] * 24 == [task.result()[0] for task in under_way]
    eventually(lambda: not two.up("ams", "lhr"), "it is seen to be gone")
    assert 0 == spilled(burst(ams.url, 6))
    two.locations.pop("lhr")


def test_a_location_without_engines(world: World, start_engine: StartEngine) -> None:
    """Spills all, and says so."""
    dead = start_engine(profile="fast")
    world.build({"ams": [dead.url], "lhr": [start_engine(profile="h100").url]}, NEAR)
    world.meshed()
    dead.stop()
    ams = world.locations["ams"]
    eventually(lambda: not ams.state()["models"]["demo"][0]["ready"], "the engine is seen to be gone")

    def all_spilled() -> bool:
        """At once or, should a busy machine have kept a digest back for three intervals, a moment later."""
        answers = burst(ams.url, 8, 20)
        return [200] * 8 == [status for status, _, _ in answers] and spilled(answers) == 8

    eventually(all_spilled, "all is spilled", seconds=20)


def test_everybody_has_too_much(world: World, start_engine: StartEngine) -> None:
    """No ping-pong: a request is sent across once at most, and few are taken there; all are answered or told when to come."""
    engines = {name: [start_engine(profile="l4").url] for name in ("ams", "lhr")}
    world.build(engines, NEAR, all={"limits": {"queue_timeout": "2s"}})
    world.meshed()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: burst(world.locations[name].url, 40, 1500), engines))
    answers = [one for some in found for one in some]
    assert {status for status, _, _ in answers} <= {200, 429}
    for status, headers, _ in answers:
        assert status == 200 or int(headers["retry-after-ms"]) > 0
    metrics = "\n".join(location.metrics() for location in world.locations.values())
    assert counted(metrics, "headrace_spill_total") <= len(answers)
    taken = re.findall(r'^headrace_spill_total\{.*outcome="answered".*\} (\S+)', metrics, re.M)
    assert sum(map(float, taken)) <= 0.2 * len(answers)
    for name, location in world.locations.items():
        eventually(lambda location=location: 0.0 == location.outstanding(), f"the ledger of {name} is empty")


def test_a_forged_hop(two: World) -> None:
    """Is a client's request like any other, counted, and not even spilled."""
    ams = two.locations["ams"]
    body = b'{"model":"demo","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}'
    forged = f"1;lhr;ams;abcdef;0;;{time.monotonic_ns()};id;{'0' * 64}"
    for hop, reason in ((forged, "bad_mac"), ("1;x", "malformed"), (forged.replace("lhr", "nyc"), "unknown_origin")):
        request = urllib.request.Request(f"{ams.url}/v1/chat/completions", body, {"x-headrace-hop": hop})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert 200 == answer.status
            assert "id" != answer.headers["x-request-id"]
        counter = f'headrace_hops_rejected_total{{reason="{reason}"}} 1.0'
        eventually(lambda counter=counter: counter in ams.metrics(), f"{reason} is counted")


def test_two_nodes_of_one_location(tmp_path: Path, start_engine: StartEngine) -> None:
    """They share two engines: what one has put on an engine sends the other's requests to the other engine."""
    engines = [{"url": start_engine(profile="l4").url, "name": name} for name in ("one", "two")]
    ports = free_ports(2)
    nodes = []
    for number, (own, other) in enumerate((ports, ports[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        mesh = {
            "listen": f"127.0.0.1:{own}", "insecure": True, "interval": f"{INTERVAL}s",
            "nodes": {str(1 - number): {"mesh": f"127.0.0.1:{other}"}},
        }  # fmt: skip
        nodes.append(Location(folder, {"demo": engines}, location="ams", node=str(number), mesh=mesh))
    first, second = nodes
    with ThreadPoolExecutor(4) as pool:
        long = [pool.submit(ask, first.url, 50, 120) for _ in range(3)]
        eventually(lambda: first.outstanding() > 0, "they are on their way")
        eventually(lambda: second.outstanding() > 0, "the other node counts them", seconds=20)
        assert [200] * 3 == [task.result()[0] for task in long]
    eventually(lambda: 0.0 == first.outstanding() == second.outstanding(), "both ledgers are empty")
    for node in nodes:
        node.stop()
