"""Three locations on networks of their own, with mutual TLS between them; one's link goes down and comes back."""

import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from tests.support.http import eventually
from tests.support.netns import Net, available
from tests.support.process import Child

pytestmark = pytest.mark.skipif(not available(), reason="needs root, ip and network namespaces")

NAMES = {"ams": "l4", "lhr": "h100", "nyc": "h100"}
OUT = 10.0  # s that a link is down
CLIENTS = 10
BODY = {
    "model": "demo", "max_tokens": 20, "metadata": {"output_tokens": 20},
    "messages": [{"role": "user", "content": "word " * 600}],
}  # fmt: skip


class Answer(NamedTuple):
    begun: float
    ended: float
    status: int
    spill: str


class Nets:
    """The locations, each in its namespace, and a client outside that asks ams."""

    def __init__(self, net: Net, folder: Path) -> None:
        self.net = net
        self.ca = trustme.CA()
        self.children: list[Child] = []
        authority = folder / "ca.pem"
        authority.write_bytes(self.ca.cert_pem.bytes())
        for name, profile in NAMES.items():
            engine = self._start(
                name, ["engine", "--port", "9000", "--profile", profile, "--model", "demo"], r"listening on http"
            )
            assert engine.match
            config = folder / f"{name}.json"
            config.write_text(json.dumps(self._config(name, folder, authority)))
            self._start(name, ["run", str(config)], r"headrace: location \S+ ready")
        self.trust = ssl.create_default_context()
        self.ca.configure_trust(self.trust)
        self.answers: list[Answer] = []

    def _start(self, name: str, arguments: list[str], ready: str) -> Child:
        child = Child(self.net.inside(name, sys.executable, "-m", "proxy", *arguments), ready)
        self.children.insert(0, child)
        return child

    def _pair(self, folder: Path, file: str, name: str) -> dict[str, str]:
        pair = self.ca.issue_cert(name)
        cert, key = folder / f"{file}.pem", folder / f"{file}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        key.write_bytes(pair.private_key_pem.bytes())
        return {"cert": str(cert), "key": str(key)}

    def _config(self, name: str, folder: Path, authority: Path) -> dict[str, Any]:
        address = self.net.addresses
        others = {
            other: {"mesh": f"{address[other]}:7443", "url": f"https://{address[other]}:8443"}
            for other in NAMES
            if other != name
        }
        return {
            "location": name,
            "listen": f"{address[name]}:8443",
            "tls": self._pair(folder, f"{name}-edge", address[name]),
            "admin": "127.0.0.1:8081",
            "models": {"demo": {"engines": [{"url": "http://127.0.0.1:9000"}]}},
            "mesh": {
                "listen": f"{address[name]}:7443",
                "tls": {**self._pair(folder, f"{name}-mesh", name), "ca": str(authority)},
                "locations": others,
            },
            "drain_timeout": "2s",
        }

    def state(self, name: str) -> Any:
        """What its admin API says, which listens on the namespace's loopback."""
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/api/state').read().decode())"
        done = subprocess.run(
            self.net.inside(name, sys.executable, "-c", code), capture_output=True, text=True, timeout=20, check=True
        )
        return json.loads(done.stdout)

    def up(self, name: str, other: str) -> bool:
        peer = self.state(name)["locations"][other]
        return bool(peer["up"] and peer["models"] and peer["age_s"] < 3)

    def meshed(self) -> bool:
        return all(self.up(one, other) for one in NAMES for other in NAMES if one != other)

    def ask(self) -> None:
        """One request to ams, noted."""
        url = f"https://{self.net.addresses['ams']}:8443/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(BODY).encode(), {"content-type": "application/json"})
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.trust) as answer:
                answer.read()
                status, spill = answer.status, answer.headers.get("x-headrace-spill") or ""
        except urllib.error.HTTPError as error:
            with error:
                status, spill = error.code, ""
        self.answers.append(Answer(begun, time.monotonic(), status, spill))

    def load(self, until: Callable[[], bool]) -> list[threading.Thread]:
        """Clients that ask one request after the other."""

        def client() -> None:
            while not until():
                self.ask()

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        for child in self.children:
            child.stop()


@pytest.fixture
def nets(tmp_path: Path) -> Iterator[Nets]:
    with Net(*NAMES) as net:
        made = Nets(net, tmp_path)
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize("how", ["down", "asymmetric"])
def test_a_partition_fails_nobody(nets: Nets, how: str) -> None:
    """While a location is cut off, what was under way there is served elsewhere and nothing more goes there; afterwards it is
    one of them again.
    """
    eventually(nets.meshed, "all locations see each other", seconds=30)
    over = threading.Event()
    threads = nets.load(over.is_set)
    eventually(lambda: any(a.spill == "ams>lhr" for a in nets.answers), "it spills to lhr", seconds=30)
    if how == "down":
        nets.net.down("lhr")
    else:
        nets.net.deafen("lhr", "ams")
    cut = time.monotonic()
    time.sleep(OUT)
    assert not nets.up("ams", "lhr")
    if how == "down":
        nets.net.up("lhr")
    else:
        nets.net.hearken("lhr", "ams")
    healed = time.monotonic()
    eventually(nets.meshed, "all locations see each other again", seconds=30)
    converged = time.monotonic() - healed
    eventually(
        lambda: any(a.begun > healed and a.spill == "ams>lhr" for a in nets.answers),
        "it spills to lhr again",
        seconds=60,
    )
    over.set()
    for thread in threads:
        thread.join()
    failed = [a for a in nets.answers if a.status != 200]
    late = [a for a in nets.answers if cut + 4 < a.begun < healed and a.spill == "ams>lhr"]
    print(f"{len(nets.answers)} requests, converged {converged:.1f} s after the heal")
    assert [] == failed
    assert [] == late, "3 intervals of 1 s and a round trip after the cut nothing goes there"
