"""Probes: when an engine is ready, of which kind it is, how loaded, whatever it answers."""

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import msgspec
import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from fixtures.engine.server import SimulatedEngine
from proxy.config import Engine, EngineTls
from proxy.control import probe as probes
from proxy.control.gauges import Load
from proxy.control.probe import FAILURES, MAX_BODY, MODELS_EVERY, NEW_REQUEST_TOKENS, Probe, State

VLLM = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc 0.5\n"
FILLER = "# HELP filler " + "x" * 1000 + "\n"
NOTHING = (0, 0, 0)
Answer = tuple[int, str]


# the state


def test_two_failures_in_a_row() -> None:
    """One failure changes nothing, the second does, a third not again."""
    state = State()
    assert [False, True, False] == [state.fail("broken", now) for now in (1, 2, 3)]
    assert (False, "broken", 3, 3) == (state.ready, state.problem, state.failures, state.probed)


def test_one_success_brings_it_back() -> None:
    """It is ready at once, and new since then, for its slow start."""
    state = State(ready=False, failures=5, problem="broken")
    assert [True, False] == [state.succeed(7), state.succeed(9)]
    assert (True, 7, 0, "", 9) == (state.ready, state.since, state.failures, state.problem, state.probed)


def test_failures_with_successes_between() -> None:
    """They do not add up; an engine that never went has no slow start."""
    state = State()
    for now in range(1, 10, 2):
        assert not state.fail("now and then", now)
        assert not state.succeed(now + 1)
    assert (True, 0) == (state.ready, state.since)


@given(st.lists(st.booleans(), max_size=40))
def test_readiness_follows_the_last_probes(results: list[bool]) -> None:
    """Not ready if and only if the last FAILURES probes failed, since the last success; True is said at each change."""
    state, before = State(), True
    for now, good in enumerate(results, 1):
        changed = state.succeed(now) if good else state.fail("broken", now)
        last = results[:now][-FAILURES:]
        assert (any(last) or len(last) < FAILURES) == state.ready
        assert (before != state.ready) == changed
        before = state.ready


# the probe


class FakeEngine:
    """Answers by path, 404 where nothing is said; notes what it was asked."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = {"/" + path.replace("_", "/"): answer for path, answer in answers.items()}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request.path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        status, text = self.answers.get(request.path, (404, "not here"))
        if "gzip" in request.headers.get("accept-encoding", "") and status == 200:
            return web.Response(body=gzip.compress(text.encode()), headers={"content-encoding": "gzip"})
        headers = {"location": "/health2"} if 300 <= status < 400 else {}
        return web.Response(status=status, text=text, headers=headers)


def models(*names: str, owner: str = "") -> Answer:
    """What /v1/models says."""
    return 200, msgspec.json.encode({"data": [{"id": name, "owned_by": owner} for name in names]}).decode()


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    tls: trustme.LeafCert | None = None,
    port: int = 0,
) -> AsyncIterator[str]:
    """An HTTP server on a loopback port, a free one if none is given; its URL."""
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.configure_cert(context)
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def probing(engine: Engine, own: tuple[int, int, int] = NOTHING) -> AsyncIterator[Probe]:
    """A probe of this engine with a session as the agent's."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Probe(engine, session, lambda: own, lambda at_once: None)


def probe_of(fake: FakeEngine, rounds: int = 1, own: tuple[int, int, int] = NOTHING, **options: object) -> State:
    """What is known of a fake engine after so many probes."""

    async def go() -> State:
        async with serving(fake.handle) as url, probing(Engine(url, "gpu", **options), own) as probe:  # type: ignore[arg-type]
            for _ in range(rounds):
                await probe.once()
            return probe.state

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("fake", "kind"),
    [
        (FakeEngine(health=(200, ""), v1_models=models("llama", owner="vllm"), metrics=(200, VLLM)), "vllm"),
        (FakeEngine(health=(200, ""), v1_models=models("llama", owner="vllm")), "vllm"),
        (FakeEngine(health=(200, ""), v1_models=models("llama", owner="me"), metrics=(200, VLLM)), "vllm"),
        (FakeEngine(health=(200, ""), v1_models=models("llama", owner="sglang")), "sglang"),
        (FakeEngine(health=(200, '{"status":"ok"}'), v1_models=models("llama", owner="llamacpp")), "llamacpp"),
        (FakeEngine(v1_models=models("llama", owner="organization")), "openai"),
        (FakeEngine(health=(200, "")), "openai"),
        (FakeEngine(health=(200, ""), v1_models=(200, "[]"), metrics=(200, "<html>")), "openai"),
    ],
)
def test_kind_is_found_out(fake: FakeEngine, kind: str) -> None:
    """By the owner of its models, else by the prefix of its metrics, else it is some OpenAI API; it is ready."""
    state = probe_of(fake, rounds=FAILURES + MODELS_EVERY)
    assert (kind, True, "") == (state.kind, state.ready, state.problem)


def test_kind_that_the_config_says() -> None:
    """It stays, whatever the engine says."""
    fake = FakeEngine(health=(200, ""), v1_models=models("llama", owner="vllm"), metrics=(200, VLLM))
    assert "sglang" == probe_of(fake, kind="sglang").kind


def test_openai_is_asked_for_models_only() -> None:
    """A configured `openai` may be a hosted API: neither /health nor /metrics."""
    fake = FakeEngine(v1_models=models("gpt-9"))
    state = probe_of(fake, rounds=3, kind="openai")
    assert (True, ("gpt-9",), {"/v1/models"}) == (state.ready, state.served, set(fake.asked))


def test_load() -> None:
    """The engine's gauges, and when they were read."""
    state = probe_of(FakeEngine(health=(200, ""), v1_models=models("llama"), metrics=(200, VLLM)))
    assert Load(3, 1, 0.5) == state.load
    assert state.scraped > 0


def test_long_metrics_are_read_whole() -> None:
    """Metrics come in many pieces; the gauges at the end count."""
    fake = FakeEngine(health=(200, ""), metrics=(200, FILLER * 600 + VLLM))
    assert Load(3, 1, 0.5) == probe_of(fake).load


def test_too_long_metrics_are_left_alone() -> None:
    """More than 1 MiB says nothing, and does not make the engine unready."""
    fake = FakeEngine(health=(200, ""), metrics=(200, VLLM + FILLER * (MAX_BODY // 1000)))
    state = probe_of(fake, rounds=FAILURES)
    assert (True, Load(), 0) == (state.ready, state.load, state.scraped)


def test_nothing_compressed_is_asked_for() -> None:
    """vLLM compresses its metrics for those who say they take it."""
    fake = FakeEngine(health=(200, ""), v1_models=models("llama"), metrics=(200, VLLM))
    assert Load(3, 1, 0.5) == probe_of(fake).load
    assert {"identity"} == {headers["accept-encoding"] for headers in fake.headers}


def test_api_key_is_sent() -> None:
    """As a bearer token, with every question; nothing without one."""
    fake = FakeEngine(health=(200, ""), v1_models=models("llama"))
    probe_of(fake, api_key="sk-1")
    assert {"Bearer sk-1"} == {headers.get("authorization") for headers in fake.headers}
    fake = FakeEngine(health=(200, ""))
    probe_of(fake)
    assert {None} == {headers.get("authorization") for headers in fake.headers}


@pytest.mark.parametrize(
    ("fake", "problem"),
    [
        (FakeEngine(health=(503, '{"error":{"message":"Loading model"}}')), "GET /health answered 503"),
        (FakeEngine(health=(302, "")), "GET /health answered 302"),
        (FakeEngine(), "GET /v1/models answered 404"),
        (FakeEngine(v1_models=(200, "hello")), "GET /v1/models is not a list of models"),
        (FakeEngine(v1_models=(200, " " * (MAX_BODY + 1))), "GET /v1/models is not a list of models"),
    ],
)
def test_not_ready(fake: FakeEngine, problem: str) -> None:
    """Two probes of this kind, and it is not ready; the reason is told."""
    for rounds, ready in ((1, True), (FAILURES, False)):
        state = probe_of(fake, rounds)
        assert (ready, problem) == (state.ready, state.problem)


def test_redirects_are_not_followed() -> None:
    """A redirect is an answer like any other."""
    fake = FakeEngine(health=(302, ""), health2=(200, ""))
    probe_of(fake)
    assert ["/health"] == fake.asked


def test_nobody_there() -> None:
    """A refused connection, then one that works: not ready, ready again with a slow start."""

    async def go() -> None:
        fake = FakeEngine(health=(200, ""))
        async with serving(fake.handle) as url:
            pass
        async with probing(Engine(url, "gpu")) as probe:
            assert [False, True] == [await probe.once(), await probe.once()]
            assert "onnect" in probe.state.problem
            async with serving(fake.handle, port=int(url.rpartition(":")[2])):
                assert await probe.once()
                assert (True, True) == (probe.state.ready, probe.state.since > 0)

    asyncio.run(go())


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that accepts and says nothing fails after the timeout, in words."""
    monkeypatch.setattr(probes, "TIMEOUT", 0.05)

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async def go() -> str:
        async with serving(never) as url, probing(Engine(url, "gpu")) as probe:
            await probe.once()
            return probe.state.problem

    assert "no answer within 0.05 s" == asyncio.run(go())


@pytest.mark.parametrize("garbage", [b"\x00" * 200, b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
def test_garbage(garbage: bytes) -> None:
    """What is not HTTP is a failed probe, not the agent's end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(garbage)
        writer.close()

    async def go() -> State:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, probing(Engine(f"http://127.0.0.1:{port}", "gpu")) as probe:
            for _ in range(FAILURES):
                await probe.once()
            return probe.state

    state = asyncio.run(go())
    assert not state.ready
    assert state.problem


def test_health_that_appears_later() -> None:
    """A 404 of something that stood in the engine's place is forgotten when the probe fails."""

    async def go() -> list[str]:
        fake = FakeEngine()
        async with serving(fake.handle) as url, probing(Engine(url, "gpu")) as probe:
            await probe.once()
            fake.answers["/health"] = (200, "")
            fake.asked.clear()
            await probe.once()
            assert probe.state.ready
            return fake.asked[:1]

    assert ["/health"] == asyncio.run(go())


def test_what_is_known_goes_on() -> None:
    """A probe of a changed config keeps the state; a configured kind wins."""

    async def go() -> None:
        known = State(ready=False, failures=9, kind="vllm", served=("llama",))
        async with aiohttp.ClientSession() as session:
            kept = Probe(Engine("http://gpu:1", "gpu"), session, lambda: NOTHING, lambda at_once: None, known)
            assert (False, "vllm", ("llama",)) == (kept.state.ready, kept.state.kind, kept.state.served)
            said = Engine("http://gpu:1", "gpu", kind="sglang")
            assert "sglang" == Probe(said, session, lambda: NOTHING, lambda at_once: None, known).state.kind

    asyncio.run(go())


@pytest.mark.parametrize(
    ("own", "background"),
    [(NOTHING, 4 * NEW_REQUEST_TOKENS), ((100, 300, 2), 2 * 200), ((900, 100, 4), 0), ((900, 100, 9), 0)],
)
def test_foreign_traffic(own: tuple[int, int, int], background: int) -> None:
    """Requests that are not ours weigh as ours do on average, 256 tokens if there is none."""

    async def go() -> int:
        fake = FakeEngine(health=(200, ""), metrics=(200, VLLM))
        async with serving(fake.handle) as url, probing(Engine(url, "gpu"), own) as probe:
            probe._foreign.SECONDS = 1e-9  # no memory: the average is the last scrape
            for _ in range(2):
                await probe.once()
            return probe.state.background

    assert background == asyncio.run(go())


def test_gauges_are_read_between_probes() -> None:
    """Only from an engine that has some; whether it is ready is not asked, and a failure says nothing about that."""

    async def go() -> None:
        fake = FakeEngine(health=(200, ""), metrics=(200, VLLM))
        async with serving(fake.handle) as url, probing(Engine(url, "gpu")) as probe:
            assert not await probe.refresh()
            await probe.once()
            fake.asked.clear()
            fake.answers["/metrics"] = (200, VLLM.replace("running 3", "running 9"))
            assert await probe.refresh()
            assert (9, ["/metrics"]) == (probe.state.load.running, fake.asked)
            fake.answers["/metrics"] = (500, "")
            assert not await probe.refresh()
            assert (True, 0) == (probe.state.ready, probe.state.failures)

    asyncio.run(go())


def test_simulated_engine() -> None:
    """The fixture engine is found out as vLLM, its models are known, its gauges read."""

    async def go() -> None:
        engine = SimulatedEngine("fast", "demo")
        await engine.start()
        try:
            async with probing(Engine(engine.url, "gpu")) as probe:
                await probe.once()
                state = probe.state
                assert ("vllm", ("demo",), True) == (state.kind, state.served, state.scraped > 0)
        finally:
            await engine.close()

    asyncio.run(go())


def test_tls() -> None:
    """An engine's certificate is verified by its authority, under the name that the config says, or not at all."""
    authority = trustme.CA()
    certificate = authority.issue_cert("gpu.test")

    async def problem_with(url: str, ca: str, **tls: object) -> str:
        options = EngineTls(ca=ca, **tls)  # type: ignore[arg-type]
        async with probing(Engine(url, "gpu", tls=options)) as probe:
            await probe.once()
            return probe.state.problem

    async def go() -> None:
        fake = FakeEngine(health=(200, ""))
        with authority.cert_pem.tempfile() as ca, trustme.CA().cert_pem.tempfile() as other:
            async with serving(fake.handle, certificate) as url:
                assert "" == await problem_with(url, ca, server_name="gpu.test")
                assert "" == await problem_with(url, other, insecure=True)
                assert "ertificate" in await problem_with(url, ca)
                assert "ertificate" in await problem_with(url, other, server_name="gpu.test")

    asyncio.run(go())


def test_run_tells_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe says that there is news, and whether it is about readiness."""
    monkeypatch.setattr(probes, "INTERVAL", 0.0)

    async def go() -> list[bool]:
        told: list[bool] = []
        enough = asyncio.Event()

        def on_change(at_once: bool) -> None:
            told.append(at_once)
            if len(told) == FAILURES + 1:
                enough.set()

        fake = FakeEngine()
        async with serving(fake.handle) as url, aiohttp.ClientSession() as session:
            task = asyncio.create_task(Probe(Engine(url, "gpu"), session, lambda: NOTHING, on_change).run())
            await asyncio.wait_for(enough.wait(), 5.0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return told[: FAILURES + 1]

    assert [False, True, False] == asyncio.run(go())
