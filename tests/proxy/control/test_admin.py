"""The admin API by HTTP, with an agent that no supervisor and no worker runs."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from balancer.board import Board
from proxy.config import Address, Config, Engine, Model, ServerTls
from proxy.config import Admin as AdminConfig
from proxy.control.agent import Agent
from proxy.control.link import Link
from proxy.control.messages import Batch, Process, Processes, ReloadResult
from telemetry.record import Record
from tests.proxy.control.test_weights import SECOND, TRACE, teach
from tests.support.records import record, refusal

Client = TestClient[Any, Any]
ENGINES = (
    Engine("http://127.0.0.1:9", "gpu-1", api_key="sk-secret"),
    Engine("http://127.0.0.1:10", "gpu-2", weight=2.0),
)
CONFIG = Config("ams", Address("127.0.0.1", 8080), {"llama": Model(ENGINES)}, admin=AdminConfig(token=None))


def serve(
    talk: Callable[[Agent, Client], Awaitable[object]], records: Iterable[Record] = (), token: str | None = None
) -> None:
    """Runs `talk` with a configured agent of one worker, and a client of its admin API."""

    async def go() -> None:
        board = Board.create(1, 8)
        agent = Agent(board)
        agent.session = aiohttp.ClientSession()
        agent.config, agent.cells, agent.generation = CONFIG, {e.url: n for n, e in enumerate(ENGINES)}, 3
        agent.admin._config = AdminConfig(token=token)
        agent.probes = agent._probes_for(CONFIG, agent.cells)
        agent.weights.configure(CONFIG)
        agent.push()
        agent.on_control(Processes([Process(0, 4321, 0, 2)], 1, False))
        agent.workers[agent.worker_link()] = 0
        agent._count(0, Batch(1, list(records), {"headrace_retries_total|reset": 2}, [0.001], ["gpu-2"]))
        try:
            async with TestClient(TestServer(agent.admin.application())) as client:
                await talk(agent, client)
        finally:
            await agent.session.close()
            board.close()

    asyncio.run(go())


def fetch(path: str, *, status: int = 200, records: Iterable[Record] = (), **headers: str) -> Any:
    """What a GET answers as JSON, its status checked."""
    found: list[Any] = []

    async def talk(agent: Agent, client: Client) -> None:
        async with client.get(path, headers=headers) as answer:
            assert status == answer.status
            assert "application/json" == answer.content_type
            found.append(await answer.json())

    serve(talk, records)
    return found[0]


class Supervisor(Link):
    """The agent's link to its supervisor, whose answers are given."""

    def __init__(self, on_send: Callable[[object], None]) -> None:
        super().__init__(lambda frame: frame, lambda message: None, lambda: None)
        self.on_send = on_send

    def send(self, message: object) -> bool:
        self.on_send(message)
        return True


def test_state() -> None:
    """The location, its processes, its instances, its totals."""
    state = fetch("/api/state", records=[record(), record(request_id="r-2"), refusal(request_id="r-3")])
    assert ("ams", 3, False) == (state["location"], state["generation"], state["draining"])
    worker = {"worker": 0, "pid": 4321, "restarts": 2, "connected": True, "ejected": ["gpu-2"]}
    assert [worker] == state["workers"]
    assert 1 == state["agent"]["restarts"]
    assert {"ok": 2, "bad_request": 1} == state["totals"]["outcomes"]
    assert (3, 2) == (state["totals"]["requests"], state["totals"]["retries"])
    assert {"p50": 100.0, "p99": 100.0} == state["ttft_ms"]
    first, second = state["models"]["llama"]
    assert ("gpu-1", True, 1.0, []) == tuple(first[key] for key in ("name", "ready", "weight", "ejected_by"))
    assert ("gpu-2", 2.0, [0]) == tuple(second[key] for key in ("name", "weight", "ejected_by"))
    assert {"prefill": 0, "decode": 0, "requests": 0} == first["outstanding"]
    assert state["version"]


def test_state_shows_the_board_and_the_probes() -> None:
    """Outstanding work is the workers', load and readiness the probe's."""

    async def talk(agent: Agent, client: Client) -> None:
        base = agent.board.base(0)
        agent.board.ints[base : base + 3] = memoryview(b"".join(n.to_bytes(8, "little") for n in (10, 20, 3))).cast("q")
        known = agent.probes[ENGINES[0].url].state
        known.ready, known.problem, known.kind = False, "GET /health answered 503", "vllm"
        agent.probes[ENGINES[1].url].state.served = ("another",)
        async with client.get("/api/state") as answer:
            first, second = (await answer.json())["models"]["llama"]
        assert {"prefill": 10, "decode": 20, "requests": 3} == first["outstanding"]
        assert (False, "vllm", "GET /health answered 503") == (first["ready"], first["kind"], first["problem"])
        assert "its /v1/models does not list 'llama'" == second["problem"]

    serve(talk)


@pytest.mark.parametrize("path", ["/api/state", "/api/weights", "/api/requests/r-1", "/metrics"])
def test_no_secret_is_shown(path: str) -> None:
    """An engine's key stays inside."""

    async def talk(agent: Agent, client: Client) -> None:
        async with client.get(path) as answer:
            assert "sk-secret" not in await answer.text()

    serve(talk, [record()])


def test_requests_are_listed_newest_first() -> None:
    """Summaries: who, what, how long."""
    found = fetch("/api/requests", records=[record(), refusal(request_id="r-2")])["requests"]
    assert ["r-2", "r-1"] == [one["request_id"] for one in found]
    assert (100.0, 500.0, "gpu-1") == (found[1]["ttft_ms"], found[1]["total_ms"], found[1]["instance"])
    assert (None, "", 0) == (found[0]["ttft_ms"], found[0]["instance"], found[0]["attempts"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=2", ["r-5", "r-4"]),
        ("outcome=bad_request", ["r-5", "r-3", "r-1"]),
        ("outcome=bad_request&limit=1", ["r-5"]),
        ("model=llama", ["r-4", "r-2", "r-0"]),
        ("model=none", []),
        ("limit=1000", ["r-5", "r-4", "r-3", "r-2", "r-1", "r-0"]),
    ],
)
def test_requests_are_filtered(query: str, expected: list[str]) -> None:
    """By outcome and by model; so many at most."""
    records = [(refusal if n % 2 else record)(request_id=f"r-{n}") for n in range(6)]
    found = fetch(f"/api/requests?{query}", records=records)["requests"]
    assert expected == [one["request_id"] for one in found]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        *[(f"limit={value}", "limit must be") for value in ("0", "1001", "-1", "x", "", "²", "9" * 5000)],
        ("outcome=fine", "outcome must be one of ok,"),
    ],
)
def test_bad_queries(query: str, said: str) -> None:
    """400, which rule, in OpenAI's shape."""
    error = fetch(f"/api/requests?{query}", status=400)["error"]
    assert ("bad_request", None) == (error["code"], error["param"])
    assert said in error["message"]


def test_fifty_by_default() -> None:
    """A list without a limit is short."""
    assert 50 == len(fetch("/api/requests", records=[record(request_id=str(n)) for n in range(60)])["requests"])


def test_one_request() -> None:
    """All of the record, the timeline in ms, the reason in words."""
    found = fetch("/api/requests/r-1", records=[record()])
    assert ("p2c", "the lower score of the instances drawn") == (found["reason"], found["why"])
    timeline = {"routed": 0.5, "connected": 1.0, "sent": 1.0, "first_byte": 90.0, "first_token": 100.0}
    assert {**timeline, "last_byte": 500.0, "done": 500.0} == found["timeline"]
    assert ["gpu-1", "gpu-2"] == [candidate["instance"] for candidate in found["candidates"]]


def test_request_id_with_a_slash() -> None:
    """A client's own request id may need quoting."""
    assert "a/b c" == fetch("/api/requests/a%2Fb%20c", records=[record(request_id="a/b c")])["request_id"]


def test_unknown_request() -> None:
    """404, with a word where ids are found."""
    error = fetch("/api/requests/none", status=404, records=[record()])["error"]
    assert "not_found" == error["code"]
    assert "among the last 1." in error["message"]
    assert "x-request-id" in error["message"]


def test_weights() -> None:
    """Each instance's weight and where it is from."""
    found = fetch("/api/weights")
    assert ["gpu-1", "gpu-2"] == [one["instance"] for one in found["models"]["llama"]]
    for key in ("weight", "configured", "tuner"):
        assert [1.0, 2.0] == [one[key] for one in found["models"]["llama"]]
    assert ("on", {"llama": 0.0}, []) == (found["tuner"], found["input_age_s"], found["history"])


def test_changed_weights() -> None:
    """What was changed, when, why, and by which traces; state and metrics show the new weight."""

    async def talk(agent: Agent, client: Client) -> None:
        teach(agent.weights, SECOND)
        assert agent.weights.tick(6 * SECOND)
        agent.push()
        async with client.get("/api/weights") as answer:
            found = await answer.json()
        newest = found["history"][0]
        assert {"gpu-1", "gpu-2"} == {change["instance"] for change in found["history"]}
        assert ("llama", "update", "on") == (newest["model"], newest["kind"], newest["mode"])
        assert abs(time.time_ns() - newest["at"]) < 60 * SECOND
        assert {TRACE} == set(newest["traces"])
        first, second = found["models"]["llama"]
        assert first["weight"] == first["tuner"] > first["configured"]
        assert second["weight"] < 2.0
        async with client.get("/api/state") as answer:
            shown = (await answer.json())["models"]["llama"]
        assert [first["weight"], second["weight"]] == [one["weight"] for one in shown]
        async with client.get("/metrics") as answer:
            text = await answer.text()
        assert 'headrace_tuner_updates_total{model="llama",reason="update"} 2.0' in text
        assert f'headrace_tuner_weight{{instance="gpu-1",model="llama"}} {first["weight"]}' in text
        assert f'headrace_instance_weight{{instance="gpu-1",model="llama"}} {first["weight"]}' in text

    serve(talk)


def test_unknown_paths_and_methods() -> None:
    """Errors are JSON in OpenAI's shape there too."""
    assert "There is nothing at /nowhere." == fetch("/nowhere", status=404)["error"]["message"]
    assert "/api/drain takes POST, got GET." == fetch("/api/drain", status=405)["error"]["message"]


@pytest.mark.parametrize(
    ("accept", "kind", "exemplars"),
    [
        ("*/*", "text/plain", False),
        ("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5", "application/openmetrics-text", True),
    ],
)
def test_metrics(accept: str, kind: str, exemplars: bool) -> None:
    """Prometheus' text, or OpenMetrics with exemplars for those who take it."""

    async def talk(agent: Agent, client: Client) -> None:
        async with client.get("/metrics", headers={"accept": accept}) as answer:
            assert kind == answer.content_type
            text = await answer.text()
        assert exemplars == (" # {trace_id=" in text)
        assert exemplars == text.endswith("# EOF\n")
        if not exemplars:
            families = {family.name for family in text_string_to_metric_families(text)}
            assert {"headrace_requests", "headrace_instance_state", "headrace_records_kept"} <= families

    serve(talk, [record()])


def test_gauges_of_instances() -> None:
    """One state is 1; ejected by any worker counts as ejected; the moving average is there once it is known."""

    async def talk(agent: Agent, client: Client) -> None:
        agent.probes[ENGINES[0].url].state.ready = False
        agent.push()
        async with client.get("/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        samples = [(s.name, s.labels, s.value) for family in families for s in family.samples]
        states = {
            (labels["instance"], labels["state"])
            for name, labels, value in samples
            if name.endswith("_state") and value
        }
        assert {("gpu-1", "down"), ("gpu-2", "ejected")} == states
        ttft = [(labels["instance"], value) for name, labels, value in samples if name.endswith("ttft_ewma_seconds")]
        assert [("gpu-1", pytest.approx(0.1))] == ttft

    serve(talk, [record()])


def test_readiness() -> None:
    """Ready with a worker and a ready instance; draining comes first."""

    async def talk(agent: Agent, client: Client) -> None:
        async def ready() -> tuple[int, str]:
            async with client.get("/readyz") as answer:
                return answer.status, await answer.text()

        assert (200, "ready\n") == await ready()
        for probe in agent.probes.values():
            probe.state.ready = False
        assert (503, "no instance is ready\n") == await ready()
        agent.workers.clear()
        assert (503, "no worker is connected\n") == await ready()
        agent.on_control(Processes([], 0, True))
        assert (503, "draining\n") == await ready()
        async with client.get("/livez") as answer:
            assert 200 == answer.status

    serve(talk)


def test_token() -> None:
    """Everything but the two probes needs it, byte for byte."""

    async def talk(agent: Agent, client: Client) -> None:
        async def status(path: str, authorization: str | None) -> int:
            headers = {} if authorization is None else {"authorization": authorization}
            async with client.get(path, headers=headers) as answer:
                return answer.status

        for path in ("/api/state", "/metrics", "/nowhere"):
            for wrong in (None, "", "Bearer", "Bearer t0ke", "t0ken", "Basic t0ken", "Bearer é"):
                assert 401 == await status(path, wrong), wrong
        assert [200, 200] == [await status("/api/state", good) for good in ("Bearer t0ken", "bearer t0ken")]
        assert [200, 200] == [await status(path, None) for path in ("/livez", "/readyz")]

    serve(talk, token="t0ken")


def test_token_that_is_no_text() -> None:
    """Bytes that are not UTF-8 are a wrong token like any other."""

    async def talk(agent: Agent, client: Client) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(
            b"GET /api/state HTTP/1.1\r\nhost: a\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b"HTTP/1.1 401" == answer[:12]

    serve(talk, token="t0ken")


def test_web_pages_cannot_drain() -> None:
    """A browser says where a page is from: without a token nothing is done for it."""

    async def talk(agent: Agent, client: Client) -> None:
        async with client.post("/api/drain", headers={"origin": "http://evil.test"}) as answer:
            assert 403 == answer.status

    serve(talk)


def test_drain() -> None:
    """202, and the supervisor hears of it."""

    async def talk(agent: Agent, client: Client) -> None:
        sent: list[object] = []
        agent.control = Supervisor(sent.append)
        async with client.post("/api/drain") as answer:
            assert (202, {"draining": True}) == (answer.status, await answer.json())
        assert ["DrainRequest"] == [type(message).__name__ for message in sent]

    serve(talk)


@pytest.mark.parametrize("problems", [[], ["listen: a change needs a restart", "models: at least one"]])
def test_reload(problems: list[str]) -> None:
    """200 with the generation, or 422 with every problem; the metric follows."""

    async def talk(agent: Agent, client: Client) -> None:
        agent.control = Supervisor(lambda message: agent.on_control(ReloadResult(4, problems)))
        async with client.post("/api/reload") as answer:
            status, found = answer.status, await answer.json()
        if problems:
            assert (422, problems) == (status, found["error"]["problems"])
            assert all(problem in found["error"]["message"] for problem in problems)
        else:
            assert (200, {"reloaded": True, "generation": 4}) == (status, found)
        assert (not problems) == agent.reload_ok

    serve(talk)


def test_reload_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """504 when the supervisor says nothing."""
    monkeypatch.setattr("proxy.control.agent.RELOAD_TIMEOUT", 0.01)

    async def talk(agent: Agent, client: Client) -> None:
        agent.control = Supervisor(lambda message: None)
        async with client.post("/api/reload") as answer:
            assert 504 == answer.status

    serve(talk)


def test_tls_and_a_renewed_certificate(tmp_path: Any) -> None:
    """The API is served with the configured certificate; after a renewal new connections see the new one; a broken one is
    refused and the good one stays.
    """
    authority = trustme.CA()
    cert, key = tmp_path / "admin.pem", tmp_path / "admin.key"

    def issue() -> None:
        issued = authority.issue_cert("admin.test")
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    async def serial(port: int, context: ssl.SSLContext) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="admin.test")
        found = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        await writer.wait_closed()
        return str(found)

    async def go() -> None:
        issue()
        board = Board.create(1, 1)
        admin = Agent(board).admin
        admin.listening = socket.create_server(("127.0.0.1", 0))
        port = admin.listening.getsockname()[1]
        context = ssl.create_default_context()
        authority.configure_trust(context)
        config = AdminConfig(tls=ServerTls(str(cert), str(key)))
        try:
            await admin.configure(config)
            first = await serial(port, context)
            assert first == await serial(port, context)
            issue()
            await admin.configure(config)
            second = await serial(port, context)
            assert first != second
            cert.write_text("broken")
            with pytest.raises(OSError, match=r"PEM|SSL"):
                await admin.configure(config)
            assert second == await serial(port, context)
        finally:
            await admin.close()
            admin.listening.close()
            board.close()

    asyncio.run(go())
