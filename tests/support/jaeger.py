"""Jaeger: its binary, built once from its Go module, and its server, which keeps traces in memory."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from fixtures.demo_processes import free_ports
from tests.support.http import eventually, fetch_json
from tests.support.otlp import Seen, seen
from tests.support.process import Child

VERSION = "v1.76.0"  # of the module, the same code as Jaeger 2.13: /cmd/jaeger is the second version's program
PACKAGE = "github.com/jaegertracing/jaeger/cmd/jaeger"
FETCH_SECONDS = 300.0
BUILD_SECONDS = 600.0
IDS = ("traceId", "spanId", "parentSpanId")  # hex in OTLP's JSON, base64 in protobuf's


class NotToBeHadError(Exception):
    """There is no Jaeger here, and why."""


def cached() -> Path:
    """Where the binary is, once built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "headrace" / f"jaeger-{VERSION}" / "jaeger"


def binary() -> Path:
    """The binary; built if this is the first time, which takes minutes."""
    path = cached()
    if not path.exists():
        _build(path)
    return path


def _build(path: Path) -> None:
    """Go builds a dependency with replaced modules only from within a module, so one is made for the while."""
    go = shutil.which("go")
    if go is None:
        raise NotToBeHadError("Jaeger is built from its Go module, and there is no go in PATH")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        _run([go, "mod", "init", "headrace.test/jaeger"], folder, FETCH_SECONDS)
        code, output = _run([go, "get", "-tool", f"{PACKAGE}@{VERSION}"], folder, FETCH_SECONDS)
        if code:
            *_, last = ("go says nothing", *output.splitlines())
            raise NotToBeHadError(f"Jaeger's modules are not to be had: {last}")
        code, output = _run([go, "build", "-trimpath", "-o", "jaeger", PACKAGE], folder, BUILD_SECONDS)
        assert code == 0, output
        Path(folder, "jaeger").replace(path)


def _run(argv: list[str], folder: str, seconds: float) -> tuple[int, str]:
    """Exit code and output of a step of the build, which is ended with all its compilers when its time is over."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    with subprocess.Popen(
        argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NotToBeHadError(f"not within {seconds:.0f} s: {' '.join(argv)}") from None
            raise
    return process.returncode, output


class Jaeger(Child):
    """Takes OTLP over gRPC and answers queries over HTTP, both on free loopback ports."""

    def __init__(self, program: Path, folder: Path) -> None:
        otlp, query, grpc, health = (f"127.0.0.1:{port}" for port in free_ports(4))
        config = folder / "jaeger.yaml"
        config.write_text(json.dumps(_config(otlp, query, grpc, health)))  # JSON is YAML
        super().__init__([str(program), "--config", str(config)], r"Everything is ready")
        self.otlp, self.url, self.health = f"http://{otlp}", f"http://{query}", f"http://{health}"

    def trace(self, trace_id: str, count: int, seconds: float = 20.0) -> dict[str, Seen]:
        """The spans of a trace by their ids as they came, once so many are there."""
        found: dict[str, Seen] = {}

        def enough() -> bool:
            try:
                answer = fetch_json(f"{self.url}/api/v3/traces/{trace_id}?raw_traces=true")["result"]
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 404:
                    raise
                return False  # none of it has come yet
            data = json_format.ParseDict(_with_bytes(answer), TracesData())
            found.update({span.span_id: span for span in seen(data.resource_spans)})
            return len(found) >= count

        eventually(enough, f"{count} spans of trace {trace_id}; there are {len(found)}", seconds=seconds)
        return found


def _with_bytes(value: Any) -> Any:
    """OTLP's JSON as protobuf's own."""
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode() if key in IDS else _with_bytes(item)
        for key, item in value.items()
    }


def _config(otlp: str, query: str, grpc: str, health: str) -> dict[str, Any]:
    """Spans from OTLP's receiver to the memory, without a batch in between, and from there to the query API."""
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 1000}}}},
            "jaeger_query": {
                "storage": {"traces": "memory"}, "http": {"endpoint": query}, "grpc": {"endpoint": grpc},
                "enable_tracing": False,  # of its own queries, to whoever has port 4317
            },
            "healthcheckv2": {"use_v2": True, "http": {"endpoint": health}},
        },
    }  # fmt: skip
