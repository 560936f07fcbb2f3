"""The config file: its structs, and the only place that reads files and environment variables."""

from typing import Literal

import msgspec

from balancer.model import Balancing as BalancerSettings
from proxy.core.settings import Limits

Kind = Literal["vllm", "sglang", "llamacpp", "openai"]


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cert: str
    key: str


class EngineTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ca: str | None = None  # left out: the system's authorities
    server_name: str | None = None
    insecure: bool = False  # no verification


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str  # scheme://host:port[/prefix], no trailing slash
    name: str  # unique in the location; defaults to host:port
    kind: Kind | None = None
    weight: float = 1.0
    model: str | None = None  # the engine's own name for the model
    api_key: str | None = None
    tls: EngineTls | None = None


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    engines: tuple[Engine, ...]
    aliases: tuple[str, ...] = ()
    residency: tuple[str, ...] = ()


class MeshTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cert: str
    key: str
    ca: str


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mesh: Address
    url: str | None = None


class Mesh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: Address
    tls: MeshTls | None = None
    insecure: bool = False
    interval: float = 1.0
    locations: dict[str, Peer] = {}
    nodes: dict[str, Peer] = {}


class Hedge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str = "p95"
    budget: float = 0.05  # share of requests


class Balancing(BalancerSettings, frozen=True, forbid_unknown_fields=True):
    hedge: Hedge | None = None


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    otlp: str | None = None
    sample: float = 0.1
    listen: Address | None = None
    tuner: Literal["off", "shadow", "on"] = "on"
    records: str | None = None
    content: bool = False
    headers: dict[str, str] = {}


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: Address = Address("127.0.0.1", 8081)
    token: str | None = None
    tls: ServerTls | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    location: str
    listen: Address
    models: dict[str, Model]
    tls: ServerTls | None = None
    admin: Admin = Admin()
    workers: int = 1  # resolved: 0 in the file becomes the number of cores
    node: str = "0"
    mesh: Mesh | None = None
    residency: tuple[str, ...] = ()
    balancing: Balancing = Balancing()
    telemetry: Telemetry = Telemetry()
    drain_timeout: float = 300.0
    limits: Limits = Limits()
    keys: str | None = None


class ConfigError(Exception):
    """All problems of a file at once, each with its path in the file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: str) -> Config:
    """Reads and validates the file; raises ConfigError."""
    raise ConfigError([path])


def schema() -> dict[str, object]:
    """The config's JSON Schema."""
    return {}
