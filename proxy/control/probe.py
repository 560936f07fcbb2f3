"""Looks after the engines: is each ready and what does it serve (every 2 s), how loaded is it (every second).

Rules. Two failed probes in a row make an engine not ready, one good one makes it ready again (with a slow start). A new
engine counts as ready until it was probed: starting waits for nobody. Redirects are not followed, answers are bounded.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable

import aiohttp
import msgspec

from proxy.config import Engine, Kind
from proxy.control import gauges
from proxy.control.gauges import Foreign, Load
from proxy.control.sites import engine_context

INTERVAL, JITTER = 2.0, 0.1
TIMEOUT = 2.0
MODELS_EVERY = 5  # probes between two looks at /v1/models
MAX_BODY = 2**20
FAILURES = 2
NEW_REQUEST_TOKENS = 256  # what a foreign request weighs before we have any of our own to compare


class State(msgspec.Struct):
    """What is known of one engine. Times in monotonic ns."""

    ready: bool = True
    since: int = 0  # when it came back; 0: it never went
    failures: int = 0
    probed: int = 0
    kind: Kind | None = None
    served: tuple[str, ...] = ()
    problem: str = ""
    load: Load = Load()
    scraped: int = 0
    background: int = 0  # tokens

    def succeed(self, now: int) -> bool:
        """A good probe; True if it made a difference."""
        self.probed, self.failures, self.problem = now, 0, ""
        if self.ready:
            return False
        self.ready, self.since = True, now
        return True

    def fail(self, problem: str, now: int) -> bool:
        """A failed probe; True if it made a difference."""
        self.probed, self.problem = now, problem
        self.failures += 1
        if not self.ready or self.failures < FAILURES:
            return False
        self.ready = False
        return True


class ProbeFailed(Exception):
    """Why an engine is not ready, in words."""


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[_Model]


_OWNERS: dict[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"}
_decode_models = msgspec.json.Decoder(_Models).decode


class Probe:
    """Probes one engine until cancelled. `own` tells our outstanding (prefill, decode, requests) there."""

    def __init__(
        self,
        engine: Engine,
        session: aiohttp.ClientSession,
        own: Callable[[], tuple[int, int, int]],
        on_change: Callable[[bool], None],
        state: State | None = None,
    ) -> None:
        """`on_change(at_once)`: the Table should be made anew, at once if readiness changed. `state`: what is known already.
        Raises OSError for an authority that cannot be loaded.
        """
        self.engine = engine
        self.state = state if state is not None else State()
        self.state.kind = engine.kind or self.state.kind
        self._session = session
        self._own = own
        self._on_change = on_change
        self._foreign = Foreign()
        self._ssl: ssl.SSLContext | bool = engine_context(engine.tls) if engine.url.startswith("https:") else True
        self._has_health = True
        self._round = 0

    async def run(self) -> None:
        """Probes for ever."""
        while True:
            changed = await self.once()
            self._on_change(changed)
            pause = INTERVAL / 2 * random.uniform(1 - JITTER, 1 + JITTER)
            await asyncio.sleep(pause)
            if await self.refresh():
                self._on_change(False)
            await asyncio.sleep(pause)

    async def refresh(self) -> bool:
        """Reads the gauges again between two probes: the balancer believes them for 2 s only. False if there are none; that
        the engine does not answer is for the next probe to find.
        """
        before = self.state.scraped
        if before:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                await self._scrape()
        return self.state.scraped != before

    async def once(self) -> bool:
        """One probe; True if readiness changed."""
        try:
            await self._look()
        except TimeoutError:
            problem = f"no answer within {TIMEOUT:g} s"
        except (aiohttp.ClientError, OSError, ProbeFailed) as error:
            problem = str(error) or type(error).__name__
        else:
            return self.state.succeed(time.monotonic_ns())
        self._has_health = True  # a 404 may have been that of something else in its place
        return self.state.fail(problem, time.monotonic_ns())

    async def _look(self) -> None:
        state = self.state
        bare = self.engine.kind == "openai"  # said, not found out: it may have nothing but /v1/models
        if not bare and self._has_health:
            status, _ = await self._get("/health")
            self._has_health = status != 404
            if self._has_health and status != 200:
                raise ProbeFailed(f"GET /health answered {status}")
        required = bare or not self._has_health
        if required or self._round % MODELS_EVERY == 0:
            await self._look_at_models(required)
        if state.kind != "openai":
            await self._scrape()
        state.kind = state.kind or "openai"
        self._round += 1

    async def _look_at_models(self, required: bool) -> None:
        status, body = await self._get("/v1/models")
        if status != 200:
            if required:
                raise ProbeFailed(f"GET /v1/models answered {status}")
            return
        try:
            found = _decode_models(body).data
        except msgspec.DecodeError:
            if required:
                raise ProbeFailed("GET /v1/models is not a list of models") from None
            return
        self.state.served = tuple(model.id for model in found[:100])
        owner = found[0].owned_by.lower() if found else ""
        if self.state.kind is None:
            self.state.kind = _OWNERS.get(owner)

    async def _scrape(self) -> None:
        status, body = await self._get("/metrics")
        if status != 200:
            return
        try:
            kind, load = gauges.parse(body.decode("utf-8", "replace"))
        except ValueError:
            return
        if kind is None:
            return
        state, now = self.state, time.monotonic_ns()
        state.kind = state.kind or kind
        prefill, decode, requests = self._own()
        foreign = self._foreign.observe(load.running + load.waiting, requests, now)
        each = (prefill + decode) / requests if requests else NEW_REQUEST_TOKENS
        state.load, state.scraped, state.background = load, now, round(foreign * each)

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body; no body instead of one that is too long."""
        headers = {"accept-encoding": "identity"}  # vLLM would compress its metrics
        if self.engine.api_key:
            headers["authorization"] = f"Bearer {self.engine.api_key}"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with self._session.get(
            self.engine.url + path, headers=headers, timeout=timeout, allow_redirects=False, ssl=self._ssl,
            server_hostname=self.engine.tls.server_name if self.engine.tls else None,
        ) as answer:  # fmt: skip
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MAX_BODY:
                    return answer.status, b""
            return answer.status, bytes(body)
