"""The location as the data plane needs it: built from the config by the worker, replaced whole by a reload."""

import ssl

import msgspec

from proxy.core.settings import Limits


class Upstream(msgspec.Struct, frozen=True):
    """How one model is reached on one engine. `lines` follow from the rest."""

    cell: int  # the engine's index on the board
    name: str
    host: str
    port: int
    model: str  # the engine's own name for the model
    prefix: bytes = b""  # of the path, without a trailing slash
    api_key: str | None = None  # sent instead of the client's Authorization when set
    tls: ssl.SSLContext | None = None
    server_name: str | None = None  # to verify, when it is not `host`
    location: str = ""  # it is another location, and any model is asked for by its own name
    lines: bytes = b""  # of every request's head: Host, and Authorization if the engine has a key

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        key = f"authorization: Bearer {self.api_key}\r\n" if self.api_key is not None else ""
        msgspec.structs.force_setattr(self, "lines", f"host: {host}:{self.port}\r\n{key}".encode())


class Site(msgspec.Struct, frozen=True):
    """One location's routes and limits."""

    location: str
    limits: Limits
    names: dict[str, str]  # every name a client may use -> the model's canonical name
    upstreams: dict[str, dict[int, Upstream]]  # canonical model -> cell -> upstream
    secret: bytes = b""  # keys the tenants' hashes
    created: int = 0  # Unix seconds, for /v1/models
    remotes: dict[str, Upstream] = {}  # the other locations
    interval: int = 1_000_000_000  # ns between their digests
    ttft_target: float = 1.0  # s
    tags: tuple[str, ...] = ()  # residency: this location's
    residency: dict[str, tuple[str, ...]] = {}  # by model: a request for it must stay with one of these
    sample: float = 0.0  # share of the traces begun here that are sampled
    content: bool = False  # whether what is said goes into records
