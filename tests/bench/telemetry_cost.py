"""What telemetry costs: CPU of workers and agent, with it and without, on the same work, in one run.

    python -m tests.bench.telemetry_cost [--rounds 5] [--seconds 3]

Three locations on one engine take turns: `off` (no backend, nothing sampled, no tuner), `on` (10 % sampled and exported, records
in files, the engines' spans taken, the tuner) and `all` (as `on`, everything sampled). CPU is what the kernel accounts
to their processes, so it holds on a busy machine; compare figures of one run only.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from fixtures.demo_processes import free_ports
from tests.support.otlp import Backend
from tests.support.servers import Engine, Location

CONNECTIONS = 8
TOKENS = 128
SETTLE = 2.0  # s until the exporter's last batch is gone


def request(url: str, stream: bool) -> bytes:
    """A small request, or a stream of 128 events."""
    asked = {
        "model": "demo", "stream": stream, "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"output_tokens": TOKENS if stream else 1},
    }  # fmt: skip
    body = json.dumps(asked).encode()
    host = url.removeprefix("http://")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def ask(url: str, text: bytes, stream: bool, until: float) -> int:
    """One connection's requests, one after the other; how many."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    done = 0
    while time.monotonic() < until:
        writer.write(text)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"an answer of {head[:40]!r}")
        if stream:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        done += 1
    writer.close()
    return done


def cpu(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def idle(location: Location) -> float:
    """The share of a CPU that the agent takes when nobody asks anything: probes, and gRPC's threads."""
    agent = location.state()["agent"]["pid"]
    before, began = cpu(agent), time.monotonic()
    time.sleep(3 * SETTLE)
    return (cpu(agent) - before) / (time.monotonic() - began)


def work(location: Location, stream: bool, seconds: float, resting: float) -> tuple[float, float]:
    """CPU of the workers and of the agent for a request, in us; the agent's until it has taken all records, without what it
    takes when `resting`.
    """
    state = location.state()
    workers, agent = [w["pid"] for w in state["workers"]], state["agent"]["pid"]
    before, agent_before, began = sum(map(cpu, workers)), cpu(agent), time.monotonic()

    async def go() -> int:
        text, until = request(location.url, stream), time.monotonic() + seconds
        return sum(await asyncio.gather(*(ask(location.url, text, stream, until) for _ in range(CONNECTIONS))))

    done = asyncio.run(go())
    spent = sum(map(cpu, workers)) - before
    time.sleep(SETTLE)
    agents = cpu(agent) - agent_before - resting * (time.monotonic() - began)
    return spent / done * 1e6, agents / done * 1e6


def main() -> None:
    """Prints a line for each kind of work and location."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend, engine = stack.enter_context(Backend()), stack.enter_context(Engine())
        kinds: dict[str, dict[str, object]] = {"off": {"sample": 0, "tuner": "off"}}
        for name, sample in (("on", "10%"), ("all", "100%")):
            kinds[name] = {
                "otlp": backend.url, "sample": sample, "records": str(folder / f"{name}-records"),
                "listen": f"127.0.0.1:{free_ports(1)[0]}",
            }  # fmt: skip
        locations = {}
        for name, telemetry in kinds.items():
            (folder / name).mkdir()
            locations[name] = stack.enter_context(Location(folder / name, {"demo": [engine.url]}, telemetry=telemetry))
        resting = {name: idle(location) for name, location in locations.items()}
        for stream in (False, True):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in locations}
            for number in range(args.rounds + 1):
                for name, location in locations.items():
                    figures = work(location, stream, args.seconds if number else 1.0, resting[name])
                    found[name] += [figures] if number else []  # the first round warms up
            report("stream of 128 events" if stream else "small request", found)


def report(what: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """Medians over the rounds, and the workers' ratio to `off` round by round."""
    for name, rows in found.items():
        worker, agent = (statistics.median(row[i] for row in rows) for i in (0, 1))
        ratio = statistics.median(row[0] / off[0] for row, off in zip(rows, found["off"], strict=True))
        print(f"{what:22} {name:4} workers {worker:8.1f} us ({ratio:.3f} x off), agent {agent:6.1f} us a request")


if __name__ == "__main__":
    main()
