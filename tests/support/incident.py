"""Two locations through a bad half-minute: all that the dashboards and rules look at happens once.

Both locations get bursts and refuse each other's requests; a model of ams fails more often than the retry budget has retries
for; one of ams's engines breaks and heals; then ams is asked for twice what it sustains, so that requests leave for lhr, and the
link is cut for a while. All along some streams break, some clients leave, some speak no HTTP, some forge hops.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fixtures.demo_locations import Wires, arrivals
from fixtures.demo_processes import free_ports
from fixtures.load import Load
from fixtures.traces import Arrival
from tests.support.http import eventually, post_json
from tests.support.otlp import Backend
from tests.support.servers import Engine, Location

SECONDS = 20.0
FLEETS = {"ams": ("a100", "a100"), "lhr": ("a100", "h100")}
FAILING = 100  # requests to the model that fails, each of which asks twice for a retry; the budget has some 140 in 10 s
BURST = 16  # long prompts, of which a location has its hands full
WAIT = 60.0  # s for one answer

Body = dict[str, object]


class Ports(NamedTuple):
    """A location's."""

    listen: int
    admin: int
    mesh: int
    spans: int


def ports() -> dict[str, Ports]:
    """Of all locations: Prometheus takes 5 s to look at its targets, so it is told before they are there."""
    return {name: Ports(*free_ports(4)) for name in FLEETS}


class Incident:
    """Engines, links, locations, and a backend for their spans."""

    def __init__(self, folder: Path, stack: ExitStack, ports: Mapping[str, Ports]) -> None:
        """Started, and in sight of each other; all is stopped with the stack."""
        self.locations: dict[str, Location] = {}
        self.engines: dict[str, Engine] = {}
        self.backend = stack.enter_context(Backend())
        self.wires = Wires()
        stack.callback(self.wires.close)
        for name in FLEETS:
            self._start_engines(name, f"http://127.0.0.1:{ports[name].spans}", stack)
        for name in FLEETS:
            (other,) = set(FLEETS) - {name}
            mesh, listen = self.wires.lay(name, other, (ports[other].mesh, ports[other].listen))
            far = {other: {"mesh": f"127.0.0.1:{mesh}", "url": f"http://127.0.0.1:{listen}"}}
            (folder / name).mkdir()
            self.locations[name] = stack.enter_context(
                Location(
                    folder / name, self._models(name), location=name, listen=f"127.0.0.1:{ports[name].listen}",
                    admin=f"127.0.0.1:{ports[name].admin}",
                    mesh={"listen": f"127.0.0.1:{ports[name].mesh}", "insecure": True, "locations": far},
                    telemetry={"otlp": self.backend.url, "listen": f"127.0.0.1:{ports[name].spans}", "sample": 1.0},
                )
            )  # fmt: skip
        eventually(lambda: all(map(self._sees, FLEETS)), "the locations see each other", seconds=20)

    def _start_engines(self, name: str, otlp: str, stack: ExitStack) -> None:
        for number, profile in enumerate(FLEETS[name], 1):
            self.engines[f"{name}-{number}"] = stack.enter_context(Engine(profile=profile, otlp=otlp))
        if name == "ams":
            self.engines["fragile"] = stack.enter_context(Engine(model="fragile"))

    def _models(self, name: str) -> dict[str, list[dict[str, object]]]:
        """No weights: it is the tuner's task to find that lhr's second engine is the fastest."""
        models: dict[str, list[dict[str, object]]] = {
            "demo": [
                {"url": self.engines[f"{name}-{n}"].url, "name": f"{profile}-{n}"}
                for n, profile in enumerate(FLEETS[name], 1)
            ]
        }
        if name == "ams":
            url = self.engines["fragile"].url
            also = url.replace("127.0.0.1", "localhost")
            models["fragile"] = [{"url": url, "name": "old-1"}, {"url": also, "name": "old-2"}]
        return models

    def _sees(self, name: str) -> bool:
        return all(peer["up"] and peer["models"] for peer in self.locations[name].state()["locations"].values())

    def run(self) -> None:
        """Half a minute of it."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        asked = arrivals(len(FLEETS), SECONDS)
        loads = [Load(asked[name], self.locations[name].url, "demo").run() for name in FLEETS]
        plan = [(0.02, self._crowd), (0.05, self._fail), (0.15, self._crowd), (0.25, self._break), (0.5, self._cut)]
        plan += [(0.9, self._crowd)]
        plan += [(share / 10, self._abuse) for share in range(1, 10)]
        await asyncio.gather(*loads, *(self._at(*step) for step in plan))

    async def _at(self, share: float, happens: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(share * SECONDS)
        await happens()

    async def _break(self) -> None:
        """One of the engines in ams answers 503 to everything."""
        engine = self.engines["ams-2"]
        admin = engine.output.partition("admin on ")[2].split()[0]
        await asyncio.to_thread(post_json, f"{admin}/admin/fail", {"fail": "error:503"})
        await asyncio.sleep(0.12 * SECONDS)
        await asyncio.to_thread(post_json, f"{admin}/admin/fail", {"fail": None})

    async def _cut(self) -> None:
        self.wires.cut()
        await asyncio.sleep(0.2 * SECONDS)
        self.wires.heal()

    async def _crowd(self) -> None:
        """Both locations' clients want much at the same moment: what ams sends to lhr, knowing nothing yet, is refused."""
        loads = [Load([Arrival(0.0, 2000, 20)] * BURST, one.url, "demo") for one in self.locations.values()]
        await asyncio.gather(*(load.run() for load in loads))

    async def _fail(self) -> None:
        """The fragile model fails each request before its first byte; and the client asks again and again."""
        body = chat("fragile", fail="error:503")
        for _ in range(FAILING // 10):
            await asyncio.gather(*(asyncio.to_thread(ask, self.locations["ams"].url, body) for _ in range(10)))
            await asyncio.sleep(0.15)

    async def _abuse(self) -> None:
        """A stream that breaks, a client that leaves, one that speaks no HTTP, one that forges a hop, one of low priority."""
        for location in self.locations.values():
            url = location.url
            hop = f"1;lhr;ams;abcdef;0;;{time.monotonic_ns()};id;{'0' * 64}"
            await asyncio.gather(
                asyncio.to_thread(ask, url, chat("demo", fail="reset-after:3", stream=True)),
                asyncio.to_thread(leave, url, chat("demo", stream=True)),
                asyncio.to_thread(garble, url),
                asyncio.to_thread(ask, url, chat("demo", tokens=2), {"x-headrace-hop": hop}),
                asyncio.to_thread(ask, url, chat("demo"), {"x-headrace-priority": "batch"}),
                asyncio.to_thread(ask, url, chat("unknown")),
            )


def chat(model: str, *, fail: str = "", stream: bool = False, tokens: int = 40) -> Body:
    """A small request; `fail`: how its engine is to break it."""
    metadata = {"output_tokens": str(tokens), **({"fail": fail} if fail else {})}
    message = {"role": "user", "content": "What now?"}
    return {"model": model, "messages": [message], "max_tokens": tokens, "stream": stream, "metadata": metadata}


def ask(url: str, body: Body, headers: dict[str, str] | None = None) -> None:
    """Sends it, reads whatever comes."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=WAIT)
    with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException, ConnectionError):
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json", **(headers or {})}
        )
        connection.getresponse().read()


def leave(url: str, body: Body) -> None:
    """Sends it and goes once the answer has begun."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=WAIT)
    with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException, ConnectionError):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        connection.getresponse().read(100)


def garble(url: str) -> None:
    """Two lengths that contradict each other: a smuggler's request."""
    parts = urllib.parse.urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=WAIT) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            while connection.recv(4096):
                pass
