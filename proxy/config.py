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
    """Reads and validates the file; raises ConfigError with every problem there is.

    A problem reads "PATH: rule, got VALUE", in the file's order. Secrets and variables' values are never in it.
    """
    import os

    from proxy import config_reading, config_rules, config_yaml
    from proxy.config_form import Section

    root = config_yaml.compose(path)
    reading = config_reading.Reading(os.path.dirname(os.path.abspath(path)), os.environ)
    reading.distinct(root)
    draft = reading.section(root, (), Section(Config))
    config_rules.check(draft, reading)
    if reading.problems:
        raise ConfigError(reading.problems)
    config: Config = config_reading.build(Config, draft)
    return config


def schema() -> dict[str, object]:
    """The JSON Schema (2020-12) of the file's form: durations, sizes and addresses as they are written."""
    from proxy.config_form import schema as form_schema

    return form_schema()


def changed_needing_restart(old: Config, new: Config) -> list[str]:
    """The paths that differ and that a reload cannot apply, because they name sockets or processes."""
    paths = [
        name for name in ("location", "node", "listen", "admin", "workers") if getattr(old, name) != getattr(new, name)
    ]
    if (old.mesh and old.mesh.listen) != (new.mesh and new.mesh.listen):
        paths.append("mesh.listen")
    return paths
