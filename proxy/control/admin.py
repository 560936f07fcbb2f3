"""The admin API (DESIGN 4.4), served by the agent on loopback, or elsewhere behind a token and TLS."""

import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from proxy.config import Admin as AdminConfig
from proxy.control import traces, views
from proxy.control.sites import server_context
from telemetry.record import OUTCOMES

if TYPE_CHECKING:
    from proxy.control.agent import Agent

OPEN = ("/livez", "/readyz")  # need no token
LIST_MOST, LIST_DEFAULT = 1000, 50
_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(data: object, status: int = 200) -> web.Response:
    """An answer of JSON."""
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")


def error(status: int, code: str, message: str, **more: object) -> web.Response:
    """An error in OpenAI's shape."""
    return answer({"error": {"message": message, "type": "admin_error", "param": None, "code": code, **more}}, status)


class Admin:
    """The routes, and the listener that serves them."""

    def __init__(self, agent: "Agent") -> None:
        self.agent = agent
        self.listening: socket.socket | None = None
        self._config: AdminConfig | None = None
        self._runner: web.AppRunner | None = None
        self._tls: ssl.SSLContext | None = None

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(middlewares=[self._guard])
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/metrics", self.metrics), ("GET", "/livez", self.livez), ("GET", "/readyz", self.readyz),
            ("GET", "/api/state", self.state), ("GET", "/api/requests", self.requests),
            ("GET", "/api/requests/{id}", self.request),
            ("GET", "/api/requests/{id}/trace", self.trace), ("GET", "/api/weights", self.weights),
            ("POST", "/api/drain", self.drain), ("POST", "/api/reload", self.reload),
        ]  # fmt: skip
        for method, path, handler in routes:
            application.router.add_route(method, path, handler)
        return application

    async def configure(self, config: AdminConfig) -> None:
        """Serves by this config, later with renewed certificates; raises OSError for those that do not load. What else
        there is (address, token, whether TLS) the supervisor changes by a restart only.
        """
        if config.tls is not None and self._tls is not None:
            server_context(config.tls)  # whole or not at all
            self._tls.load_cert_chain(config.tls.cert, config.tls.key)
        if self._runner is not None:
            return
        self._config = config
        self._tls = server_context(config.tls) if config.tls is not None else None
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        if self.listening is not None:
            await web.SockSite(runner, self.listening, ssl_context=self._tls).start()
        self._runner = runner

    async def close(self) -> None:
        """Stops serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        token = self._config.token if self._config is not None else None
        if token and request.path not in OPEN:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())
            if scheme.lower() != "bearer" or not same:
                return error(401, "unauthorized", "The admin API needs its token: authorization: Bearer TOKEN.")
        if request.method == "POST" and not token and "origin" in request.headers:
            return error(403, "forbidden", "A web page may not do this unless the admin API has a token.")
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as refused:
            allowed = ", ".join(sorted(refused.allowed_methods))
            return error(405, "method_not_allowed", f"{request.path} takes {allowed}, got {request.method}.")
        except web.HTTPNotFound:
            return error(404, "not_found", f"There is nothing at {request.path}.")
        except web.HTTPException as refused:
            return error(refused.status, "bad_request", f"{refused.reason}.")

    async def metrics(self, request: web.Request) -> web.Response:
        """All metrics; OpenMetrics, with exemplars, for those who accept it."""
        registry = self.agent.registry
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            body, kind = _openmetrics(registry), openmetrics.CONTENT_TYPE_LATEST
        else:
            body, kind = exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST
        return web.Response(body=body, headers={"content-type": kind})

    async def livez(self, request: web.Request) -> web.Response:
        """Whether the agent runs at all."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether the location takes requests."""
        agent = self.agent
        if agent.processes.draining:
            return web.Response(text="draining\n", status=503)
        if not agent.workers:
            return web.Response(text="no worker is connected\n", status=503)
        if not any(probe.state.ready for probe in agent.probes.values()):
            return web.Response(text="no instance is ready\n", status=503)
        return web.Response(text="ready\n")

    async def state(self, request: web.Request) -> web.Response:
        """The location as it is."""
        return answer(views.state(self.agent))

    async def requests(self, request: web.Request) -> web.Response:
        """The last requests, newest first: `limit`, `outcome`, `model`."""
        text = request.query.get("limit", str(LIST_DEFAULT))
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= LIST_MOST):
            return error(400, "bad_request", f"limit must be a number from 1 to {LIST_MOST}, got {text[:40]!r}")
        outcome, model = request.query.get("outcome"), request.query.get("model")
        if outcome is not None and outcome not in OUTCOMES:
            return error(400, "bad_request", f"outcome must be one of {', '.join(OUTCOMES)}, got {outcome[:40]!r}")
        found: list[dict[str, Any]] = []
        for record in reversed(self.agent.kept.records):
            if (outcome is None or record.outcome == outcome) and (model is None or record.model == model):
                found.append(views.summary(record))
                if len(found) == int(text):
                    break
        return answer({"requests": found})

    async def request(self, request: web.Request) -> web.Response:
        """One request: its decision and its timeline; of one in flight, where it stands."""
        wanted = request.match_info["id"]
        record = self.agent.kept.by_id.get(wanted)
        if record is None and (found := await self.agent.finder.find(wanted, self.agent.workers)) is not None:
            return answer(found)
        record = record or self.agent.kept.by_id.get(wanted)  # it may have ended meanwhile
        if record is None:
            kept = len(self.agent.kept.records)
            return error(
                404,
                "not_found",
                f"No request of this id is in flight or among the last {kept}. Every answer tells its own in x-request-id;"
                " /api/requests lists them.",
            )
        return answer(views.detail(record))

    async def trace(self, request: web.Request) -> web.Response:
        """One request's spans, sampled or not."""
        record = self.agent.kept.by_id.get(request.match_info["id"])
        if record is None:
            kept = len(self.agent.kept.records)
            return error(404, "not_found", f"No request of this id has ended among the last {kept}.")
        return answer(dict(traces.shown(record, self.agent.traces.spans(record))))

    async def weights(self, request: web.Request) -> web.Response:
        """The weights and why."""
        return answer(views.weights(self.agent))

    async def drain(self, request: web.Request) -> web.Response:
        """Begins a drain."""
        self.agent.drain()
        return answer({"draining": True}, 202)

    async def reload(self, request: web.Request) -> web.Response:
        """Reads the config file again; 422 with all problems if it is not put in force."""
        try:
            result = await self.agent.reload()
        except TimeoutError:
            return error(504, "timeout", "The supervisor did not answer in time.")
        if result.problems:
            return error(422, "invalid_config", "; ".join(result.problems), problems=result.problems)
        return answer({"reloaded": True, "generation": result.generation})
