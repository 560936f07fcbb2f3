"""The servers that tests start: a location, a simulated engine, llama.cpp."""

import json
import re
import sys
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fixtures.demo_processes import free_ports
from tests.support.http import fetch_json, fetch_text
from tests.support.process import Child

Engines = Sequence[str | Mapping[str, object]]


class Location(Child):
    """`headrace run` on free loopback ports."""

    def __init__(
        self,
        folder: Path,
        models: Mapping[str, Engines | Mapping[str, object]],
        descriptors: int = 0,
        **options: object,
    ) -> None:
        """`models` maps a name to its engines (URLs or config mappings) or to the config's whole mapping; `descriptors`: how
        many files each of its processes may open, 0 for as many as here.
        """
        listen, admin = free_ports(2)
        self.config = {
            "location": "test",
            "listen": f"127.0.0.1:{listen}",
            "admin": f"127.0.0.1:{admin}",
            "models": {name: self._model(value) for name, value in models.items()},
            **options,
        }
        self.file = folder / "headrace.yaml"
        self.write()
        argv = [sys.executable, "-m", "proxy", "run", str(self.file)]
        super().__init__(
            ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *argv] if descriptors else argv,
            r"headrace: location \S+ ready on (https?://\S+:\d+), admin (https?://\S+:\d+), (\d+) worker",
        )
        self.url, self.admin = self.match[1], self.match[2]

    @staticmethod
    def _model(value: Engines | Mapping[str, object]) -> Mapping[str, object]:
        if isinstance(value, Mapping):
            return value
        return {"engines": [{"url": engine} if isinstance(engine, str) else engine for engine in value]}

    def write(self) -> None:
        """Writes `self.config` (JSON is YAML), for the start or before a reload."""
        self.file.write_text(json.dumps(self.config))

    def state(self) -> Any:
        """What `/api/state` says."""
        return fetch_json(f"{self.admin}/api/state")

    @property
    def pids(self) -> dict[int, int]:
        """Worker number to process id."""
        return {worker["worker"]: worker["pid"] for worker in self.state()["workers"]}

    def metrics(self) -> str:
        """The text of `/metrics`."""
        return fetch_text(f"{self.admin}/metrics")

    def outstanding(self) -> float:
        """Requests in flight and outstanding tokens, of all instances together."""
        pattern = r"^headrace_instance_(?:inflight_requests|outstanding_tokens)\{.*\} (\S+)"
        figures = re.findall(pattern, self.metrics(), re.M)
        assert figures, "no such metrics"
        return sum(map(float, figures))

    def record(self, request_id: str) -> Any:
        """One request's record, None while the agent does not have it, perhaps because the request is in flight."""
        try:
            found = fetch_json(f"{self.admin}/api/requests/{request_id}")
            return None if "state" in found else found
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return None


class Engine(Child):
    """`headrace engine`: one simulated engine on a free loopback port."""

    def __init__(
        self, *, model: str = "demo", profile: str = "fast", fail: str | None = None, otlp: str | None = None
    ) -> None:
        argv = [sys.executable, "-m", "proxy", "engine", "--port", "0", "--profile", profile, "--model", model]
        argv += ["--fail", fail] if fail else []
        argv += ["--otlp", otlp] if otlp else []
        super().__init__(argv, r"listening on (http://\S+:\d+)")
        self.url = self.match[1]


class Llama(Child):
    """llama.cpp's server with four slots of 2,048 tokens; generation may go on for ever (the context shifts)."""

    exit_code = None  # it ends by the signal or cleanly, both are its own business

    def __init__(self, server: Path, model: Path, *, slots: int = 4) -> None:
        argv = [str(server), "-m", str(model), "--host", "127.0.0.1", "--port", "0", "-np", str(slots)]
        argv += ["-c", str(slots * 2048), "--threads", "1", "--metrics", "--slots", "--no-ui", "--context-shift"]
        super().__init__(argv, r"listening on (http://\S+:\d+)")
        self.url = self.match[1]

    def busy(self) -> int:
        """Slots at work."""
        return sum(slot["is_processing"] for slot in fetch_json(f"{self.url}/slots"))
