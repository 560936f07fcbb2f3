"""From the config to what the data plane and the balancer work with."""

import ssl
import time
import urllib.parse
from collections.abc import Mapping

import msgspec

from balancer.model import Fleet, Instance, Table
from proxy.config import Config, Engine, EngineTls, ServerTls
from proxy.control.messages import Tuned
from proxy.net.site import Site, Upstream


def assign_cells(urls: list[str], current: dict[str, int], busy: set[int], capacity: int) -> dict[str, int]:
    """A cell of the board for every engine: the one it has, else the lowest that nobody has and that is not still `busy`
    with a former engine's requests. An engine that leaves keeps its cell until the next time, because workers go on
    sending to it until they know. Raises ValueError when the board is full.
    """
    cells = {url: current[url] for url in urls if url in current}
    taken = set(current.values()) | busy
    free = (cell for cell in range(capacity) if cell not in taken)
    for url in urls:
        if url not in cells:
            cell = next(free, None)
            if cell is None:
                raise ValueError(f"models: the board has room for {capacity} engines; restart for more")
            cells[url] = cell
    return cells


def engine_urls(config: Config) -> list[str]:
    """The URLs of all engines, each once, in the file's order."""
    return list(dict.fromkeys(engine.url for model in config.models.values() for engine in model.engines))


def remote_keys(config: Config) -> list[str]:
    """What stands for the other locations among the cells' keys."""
    return [f"location:{name}" for name in (config.mesh.locations if config.mesh else ())]


def build(config: Config, cells: dict[str, int], secret: bytes) -> Site:
    """The data plane's view; raises OSError or ssl.SSLError if an engine's authority cannot be loaded."""
    names: dict[str, str] = {}
    upstreams: dict[str, dict[int, Upstream]] = {}
    contexts: dict[EngineTls | None, ssl.SSLContext] = {}
    for name, model in config.models.items():
        names[name] = name
        names.update(dict.fromkeys(model.aliases, name))
        upstreams[name] = {cells[e.url]: _upstream(e, name, cells[e.url], contexts) for e in model.engines}
    return Site(
        config.location, config.limits, names, upstreams, secret, int(time.time()), _remotes(config, cells),
        int((config.mesh.interval if config.mesh else 1.0) * 1e9), config.balancing.ttft_target, config.residency,
        {name: model.residency for name, model in config.models.items() if model.residency},
        config.telemetry.sample, config.telemetry.content,
    )  # fmt: skip


def _remotes(config: Config, cells: dict[str, int]) -> dict[str, Upstream]:
    """The other locations; those with https are verified by the mesh's authorities."""
    mesh, remotes = config.mesh, {}
    context: ssl.SSLContext | None = None
    for name, peer in mesh.locations.items() if mesh is not None else ():
        assert mesh is not None and peer.url is not None  # noqa: S101, PT018
        parts = urllib.parse.urlsplit(peer.url)
        secure = parts.scheme == "https"
        if secure and context is None:
            context = engine_context(EngineTls(ca=mesh.tls.ca if mesh.tls is not None else None))
        remotes[name] = Upstream(
            cell=cells[f"location:{name}"], name=name, host=parts.hostname or "", port=parts.port or (443 if secure else 80),
            model="", prefix=parts.path.rstrip("/").encode(), tls=context if secure else None, location=name,
        )  # fmt: skip
    return remotes


def _upstream(engine: Engine, model: str, cell: int, contexts: dict[EngineTls | None, ssl.SSLContext]) -> Upstream:
    parts = urllib.parse.urlsplit(engine.url)
    secure = parts.scheme == "https"
    if secure and engine.tls not in contexts:
        contexts[engine.tls] = engine_context(engine.tls)
    return Upstream(
        cell=cell,
        name=engine.name,
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        model=engine.model or model,
        prefix=parts.path.rstrip("/").encode(),
        api_key=engine.api_key,
        tls=contexts[engine.tls] if secure else None,
        server_name=engine.tls.server_name if engine.tls else None,
    )


def engine_context(tls: EngineTls | None) -> ssl.SSLContext:
    """How an engine's certificate is verified."""
    context = ssl.create_default_context(cafile=tls.ca if tls else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls is not None and tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The listener's side of TLS, 1.2 or newer; raises OSError or ssl.SSLError for a pair that does not load."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def table(config: Config, cells: dict[str, int], last: Table | None = None, found: Tuned | None = None) -> Table:
    """A Table from the config alone, with what the agent's last one said of instances that are still there, and the weights
    that its tuner had `found` for those whose configured weight is the same.
    """
    known = {i.cell: i for fleet in last.models.values() for i in fleet.instances} if last is not None else {}
    models = {}
    for name, model in config.models.items():
        instances = []
        for engine in model.engines:
            cell, weight = cells[engine.url], _weight(engine, (found or {}).get(name, {}))
            before = known.get(cell)
            if before is not None and before.name == engine.name:
                instances.append(msgspec.structs.replace(before, weight=weight))
            else:
                instances.append(Instance(cell, engine.name, weight))
        fleet = last.models.get(name) if last is not None else None
        models[name] = Fleet(tuple(instances), fleet.reference) if fleet is not None else Fleet(tuple(instances))
    return Table(last.version if last is not None else 0, models)


def _weight(engine: Engine, found: Mapping[str, tuple[float, float]]) -> float:
    configured, tuned = found.get(engine.name, (engine.weight, engine.weight))
    return tuned if configured == engine.weight else engine.weight
