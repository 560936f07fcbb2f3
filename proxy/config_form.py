"""The config file's form as data: for every struct its keys, what each holds and what it means."""

from typing import NamedTuple

import msgspec

from proxy import config
from proxy.config_kinds import (
    ADDRESS,
    BOOLEAN,
    DIRECTORY,
    ENGINE_NAME,
    FILE,
    HEADER_NAME,
    HEADER_VALUE,
    MODEL,
    NAME,
    PERCENTILE,
    SECRET,
    SERVER_NAME,
    SHARE,
    TUNER,
    URL,
    Kind,
    choice,
    duration,
    integer,
    number,
    size,
)
from proxy.core.settings import Limits


class Section(NamedTuple):
    """A mapping with known keys; `short` is the key that a single value stands for."""

    struct: type[msgspec.Struct]
    short: str = ""


class ListOf(NamedTuple):
    """A list of distinct single values or of sections."""

    item: "Kind | Section"
    least: int = 0


class MapOf(NamedTuple):
    """A mapping with names as keys."""

    key: Kind
    item: "Kind | Section"
    least: int = 0
    secret: bool = False


Shape = Kind | Section | ListOf | MapOf


class Key(NamedTuple):
    """One key of a section."""

    shape: Shape
    about: str
    required: bool = False


TIMEOUT = duration("1ms", "24h")
PEERS = MapOf(NAME, Section(config.Peer))

FORM: dict[type[msgspec.Struct], dict[str, Key]] = {
    config.ServerTls: {
        "cert": Key(FILE, "PEM file with the certificate chain.", True),
        "key": Key(FILE, "PEM file with its private key, not encrypted.", True),
    },
    config.EngineTls: {
        "ca": Key(FILE, "PEM file with the authorities to trust; left out: the system's."),
        "server_name": Key(SERVER_NAME, "Name to verify in the certificate; left out: the URL's host."),
        "insecure": Key(BOOLEAN, "Do not verify the engine's certificate."),
    },
    config.Engine: {
        "url": Key(URL, "Where the engine listens: scheme, host, port and perhaps a path prefix.", True),
        "name": Key(ENGINE_NAME, "Its name in answers, metrics and records; left out: host:port."),
        "kind": Key(choice("vllm", "sglang", "llamacpp", "openai"), "What it runs; left out: detected by probing."),
        "weight": Key(number(0.001, 1000), "Relative speed to start from; the tuner takes it from there."),
        "model": Key(MODEL, "The engine's own name for the model; left out: the same."),
        "api_key": Key(SECRET, "Bearer token sent to the engine."),
        "tls": Key(Section(config.EngineTls), "How an https engine is verified."),
    },
    config.Model: {
        "engines": Key(ListOf(Section(config.Engine), 1), "The engines that serve this model.", True),
        "aliases": Key(ListOf(MODEL), "Other names clients may use."),
        "residency": Key(ListOf(NAME), "Tags a request for this model must stay within."),
    },
    config.MeshTls: {
        "cert": Key(FILE, "PEM file with this location's certificate chain.", True),
        "key": Key(FILE, "PEM file with its private key, not encrypted.", True),
        "ca": Key(FILE, "PEM file with the authorities of the other locations.", True),
    },
    config.Peer: {
        "mesh": Key(ADDRESS, "Where its mesh listens.", True),
        "url": Key(URL, "Where spilled requests go."),
    },
    config.Mesh: {
        "listen": Key(ADDRESS, "Where this location's mesh listens.", True),
        "tls": Key(Section(config.MeshTls), "Mutual TLS between the locations."),
        "insecure": Key(BOOLEAN, "Run without tls, on loopback only."),
        "interval": Key(duration("50ms", "1m"), "Time between two digests."),
        "locations": Key(PEERS, "The other locations by name."),
        "nodes": Key(PEERS, "The other nodes of this location by name."),
    },
    config.Hedge: {
        "after": Key(PERCENTILE, "Hedge a request whose first byte is later than this percentile."),
        "budget": Key(SHARE, "Share of requests that may be hedged."),
    },
    config.Balancing: {
        "ttft_target": Key(TIMEOUT, "Time to the first token that still counts as good."),
        "tpot_target": Key(TIMEOUT, "Time for each further token that still counts as good."),
        "choices": Key(integer(1, 100), "Instances compared for each request."),
        "hedge": Key(Section(config.Hedge), "Send a late request a second time; left out: off."),
    },
    config.Telemetry: {
        "otlp": Key(URL, "Where spans go by OTLP; left out: they stay here."),
        "sample": Key(SHARE, "Share of requests that are traced."),
        "listen": Key(ADDRESS, "OTLP/gRPC for the engines' own spans; left out: none."),
        "tuner": Key(TUNER, "Whether weights are tuned: off, shadow (computed, not used) or on."),
        "records": Key(DIRECTORY, "Directory for rotating record files; left out: none."),
        "content": Key(BOOLEAN, "Put prompts and answers into spans."),
        "headers": Key(MapOf(HEADER_NAME, HEADER_VALUE, secret=True), "Headers sent with OTLP."),
    },
    config.Admin: {
        "listen": Key(ADDRESS, "Where the admin API listens."),
        "token": Key(SECRET, "Bearer token asked for; required off loopback."),
        "tls": Key(Section(config.ServerTls), "TLS of the admin API; required off loopback."),
    },
    Limits: {
        "header_bytes": Key(size("1KiB", "1MiB"), "Largest head of a request or answer."),
        "body_bytes": Key(size("1KiB", "4GiB"), "Largest body of a request."),
        "header_timeout": Key(TIMEOUT, "From a request's first byte to its head's last."),
        "body_timeout": Key(TIMEOUT, "Silence inside a request's body."),
        "idle_timeout": Key(TIMEOUT, "A kept-alive connection without a request."),
        "connect_timeout": Key(TIMEOUT, "Connecting to an engine, TLS included."),
        "first_byte_timeout": Key(TIMEOUT, "From a request's sending to its answer's head."),
        "stream_idle_timeout": Key(TIMEOUT, "Silence inside an answer."),
        "request_timeout": Key(TIMEOUT, "A whole request, whatever it does."),
        "connections": Key(integer(1, 1_000_000), "Client connections of the location."),
        "queue": Key(integer(0, 1_000_000), "Requests that may wait in the location."),
        "queue_timeout": Key(duration("0s", "1h"), "Longest wait in the queue."),
    },
    config.Config: {
        "location": Key(NAME, "This location's name.", True),
        "listen": Key(ADDRESS, "Where clients connect.", True),
        "models": Key(MapOf(MODEL, Section(config.Model), 1), "The models served, by name.", True),
        "tls": Key(Section(config.ServerTls), "TLS for clients; left out: plain HTTP."),
        "admin": Key(Section(config.Admin, short="listen"), "The admin API: an address, or a mapping."),
        "workers": Key(integer(0, 256), "Worker processes; 0: one a core."),
        "node": Key(NAME, "This node's name within the location."),
        "mesh": Key(Section(config.Mesh), "Other locations; left out: this location stands alone."),
        "residency": Key(ListOf(NAME), "This location's tags."),
        "balancing": Key(Section(config.Balancing), "What is asked of the balancer."),
        "telemetry": Key(Section(config.Telemetry), "Traces, metrics, records, the tuner."),
        "drain_timeout": Key(duration("0s", "24h"), "How long streams may finish on shutdown."),
        "limits": Key(Section(Limits), "Limits and timeouts of the whole location."),
        "keys": Key(FILE, "File of clients' keys, hashed; left out: no keys asked."),
    },
}


def schema() -> dict[str, object]:
    """JSON Schema of the file's form, each struct a definition."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headrace config",
        **_section(config.Config),
        "$defs": {struct.__name__: _section(struct) for struct in FORM if struct is not config.Config},
    }


def _section(struct: type[msgspec.Struct]) -> dict[str, object]:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    properties: dict[str, object] = {}
    for name, key in FORM[struct].items():
        described = {**_shape(key.shape), "description": key.about}
        default = fields[name].default
        if isinstance(default, config.Address):
            described["default"] = str(default)
        elif isinstance(default, bool | int | float | str):
            described["default"] = default
        properties[name] = described
    required = [name for name, key in FORM[struct].items() if key.required]
    found: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _shape(shape: Shape) -> dict[str, object]:
    match shape:
        case Kind():
            return dict(shape.schema)
        case Section():
            section: dict[str, object] = {"$ref": f"#/$defs/{shape.struct.__name__}"}
            return {"anyOf": [_shape(FORM[shape.struct][shape.short].shape), section]} if shape.short else section
        case ListOf():
            return {"type": "array", "items": _shape(shape.item), "minItems": shape.least, "uniqueItems": True}
        case MapOf():
            names = {key: value for key, value in shape.key.schema.items() if key == "pattern"}
            return {
                "type": "object",
                "propertyNames": names,
                "additionalProperties": _shape(shape.item),
                "minProperties": shape.least,
            }
