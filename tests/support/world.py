"""Several locations as real processes, with links between them that are as slow as the world."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from fixtures.demo_processes import free_ports
from fixtures.wan import Link, Shape
from tests.support.http import eventually
from tests.support.servers import Engines, Location

INTERVAL = 0.3  # s between digests


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

    def build(self, engines: Mapping[str, Engines], delay: dict[frozenset[str], float], **options: Any) -> None:
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
                mesh={"listen": f"127.0.0.1:{ports[name][1]}", "insecure": True, "interval": f"{INTERVAL}s", "locations": others},
                **{**options.get("all", {}), **own},
            )  # fmt: skip

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between the two any more."""
        for pair in ((one, other), (other, one)):
            for link in self.links[pair]:
                self.loop.call_soon_threadsafe(link.cut)

    def cut_one_way(self, one: str, other: str) -> None:
        """Nothing of the first reaches the second any more."""
        for link in self.links[one, other]:
            self.loop.call_soon_threadsafe(link.cut, "there")
        for link in self.links[other, one]:
            self.loop.call_soon_threadsafe(link.cut, "back")

    def heal(self) -> None:
        for links in self.links.values():
            for link in links:
                self.loop.call_soon_threadsafe(link.heal)

    def up(self, name: str, *others: str) -> bool:
        shown = self.locations[name].state()["locations"]
        return all(shown[other]["up"] and shown[other]["models"] for other in others)

    def meshed(self, seconds: float = 15.0) -> None:
        """Waits until all see each other."""
        names = list(self.locations)
        eventually(
            lambda: all(self.up(one, *(other for other in names if other != one)) for one in names),
            "all locations see each other", seconds=seconds,
        )  # fmt: skip

    def close(self) -> None:
        for location in self.locations.values():
            location.stop()
        for links in self.links.values():
            for link in links:
                self.run(link.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


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
