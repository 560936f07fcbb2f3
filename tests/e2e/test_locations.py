"""Several locations as real processes, with links between them that are as slow as the world."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fixtures.wan import Link, Shape
from tests.support.http import eventually
from tests.support.servers import Engine, Location, free_ports

StartEngine = Callable[..., Engine]


class World:
    """Links on a loop of their own, and the locations between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.links: dict[tuple[str, str], list[Link]] = {}
        self.locations: dict[str, Location] = {}

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def build(self, engines: dict[str, list[str]], delay: dict[frozenset[str], float], **options: Any) -> None:
        """Starts a location for each name; `delay`: s one way between two of them."""
        ports = {name: free_ports(3) for name in engines}
        for one in engines:
            for other in engines:
                if one != other:
                    shape = Shape(delay[frozenset((one, other))])
                    _, mesh, listen = ports[other]
                    self.links[one, other] = [Link(("127.0.0.1", port), shape, Random(1)) for port in (mesh, listen)]
                    for link in self.links[one, other]:
                        self.run(link.start())
        for name, urls in engines.items():
            folder = self.folder / name
            folder.mkdir()
            others = {
                other: {
                    "mesh": f"127.0.0.1:{self.links[name, other][0].port}",
                    "url": f"http://127.0.0.1:{self.links[name, other][1].port}",
                }
                for other in engines
                if other != name
            }
            own = options.get(name, {})
            self.locations[name] = Location(
                folder, {"demo": urls}, location=name, listen=f"127.0.0.1:{ports[name][2]}",
                mesh={"listen": f"127.0.0.1:{ports[name][1]}", "insecure": True, "interval": "300ms", "locations": others},
                **{**options.get("all", {}), **own},
            )  # fmt: skip

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two any more."""
        for pair in ((one, other), (other, one)):
            for link in self.links[pair]:
                self.loop.call_soon_threadsafe(link.cut)

    def heal(self) -> None:
        for links in self.links.values():
            for link in links:
                self.loop.call_soon_threadsafe(link.heal)

    def up(self, name: str, *others: str) -> bool:
        shown = self.locations[name].state()["locations"]
        return all(shown[other]["up"] and shown[other]["models"] for other in others)

    def close(self) -> None:
        for location in self.locations.values():
            location.stop()
        for links in self.links.values():
            for link in links:
                self.run(link.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def ask(url: str, words: int, tokens: int = 40) -> tuple[int, dict[str, str], Any]:
    """One request of so many words, not streamed."""
    body = {
        "model": "demo", "max_tokens": tokens, "metadata": {"output_tokens": tokens},
        "messages": [{"role": "user", "content": "word " * words}],
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.loads(error.read())


def test_what_one_cannot_take_goes_to_the_other(world: World, start_engine: StartEngine) -> None:
    """A burst at one location is spilled, comes back whole, says so, and crosses once."""
    world.build(
        {"ams": [start_engine(profile="l4").url], "lhr": [start_engine(profile="h100").url]},
        {frozenset(("ams", "lhr")): 0.02},
    )
    ams, lhr = world.locations["ams"], world.locations["lhr"]
    eventually(lambda: world.up("ams", "lhr") and world.up("lhr", "ams"), "the mesh is there")
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
    assert f'headrace_spills_total{{location="lhr",outcome="answered"}} {len(spilled)}.0' in ams.metrics()
