"""What the processes of a location say to each other: msgpack frames over Unix sockets (`proxy.control.link`).

Supervisor and child speak over a socket pair; a worker and the agent over a Unix socket that the supervisor listens
on, so that it outlives any agent.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from balancer.model import Digest, Table
from proxy.config import Config
from telemetry.record import Record


class Configure(msgspec.Struct, tag=True, frozen=True):
    """Supervisor to child: the config to run from now on. `cells` maps an engine's URL to its index on the board."""

    config: Config
    cells: dict[str, int]
    generation: int
    secret: bytes = b""  # drawn by the supervisor at its start: keys the tenants' hashes


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Supervisor to child: answer with `connection: close`, finish what runs, then exit 0."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Child to supervisor: this configuration is in force."""

    generation: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Child to supervisor: this configuration could not be put in force; the old one stays."""

    generation: int
    problem: str


class ReloadRequest(msgspec.Struct, tag=True, frozen=True):
    """Agent to supervisor: read the file again (`POST /api/reload`)."""


class DrainRequest(msgspec.Struct, tag=True, frozen=True):
    """Agent to supervisor: drain the location (`POST /api/drain`)."""


class ReloadResult(msgspec.Struct, tag=True, frozen=True):
    """Supervisor to agent: how the last reload went. `problems` is empty if it is in force."""

    generation: int
    problems: list[str]


class Process(msgspec.Struct, frozen=True):
    """One worker as the supervisor sees it."""

    worker: int
    pid: int
    row: int  # its row on the board
    restarts: int


class Processes(msgspec.Struct, tag=True, frozen=True):
    """Supervisor to agent: the location's processes, sent when they change."""

    workers: list[Process]
    agent_restarts: int
    draining: bool


Tuned = Mapping[str, Mapping[str, tuple[float, float]]]  # by model and instance: configured weight and the tuner's


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Worker to agent, first on a connection."""

    worker: int
    pid: int
    found: Tuned = {}  # as the last Push said: a new agent begins with it


class Overdue(msgspec.Struct, array_like=True, frozen=True):
    """A stream that waits for its first token longer than twice what was predicted."""

    model: str
    instance: str
    work: int  # prompt tokens that were ahead of it, and its own
    waited: int  # ns since it was sent
    predicted: float  # s


class Late(msgspec.Struct, tag=True, frozen=True):
    """Worker to agent, once a second while there are any: its overdue requests, instead of those it told before."""

    requests: list[Overdue]


class Batch(msgspec.Struct, tag=True, frozen=True):
    """Worker to agent: records and counter increments since the last batch, kept by the worker until acknowledged."""

    sequence: int
    records: list[Record]
    counters: dict[str, int]  # "metric|label value" to increment, see telemetry.names
    lag: list[float]  # event loop lag samples, seconds
    ejected: list[str] = []  # instances this worker keeps out just now
    queued: list[int] = []  # requests that wait at this worker, by priority; none wait if left out
    offset: int = 0  # ns to add to the records' times, which are the worker's monotonic ones, for Unix times


class Learned(msgspec.Struct, tag=True, frozen=True):
    """Both ways between worker and agent: what estimators have learned, by model (`balancer.estimate`)."""

    models: dict[str, dict[str, Any]]


class Ack(msgspec.Struct, tag=True, frozen=True):
    """Agent to worker: this batch is counted."""

    sequence: int


class Push(msgspec.Struct, tag=True, frozen=True):
    """Agent to worker: the Table to route by."""

    table: Table
    found: Tuned = {}


class Remote(msgspec.Struct, frozen=True):
    """Another location as the agent's mesh knows it. Times in ns, of this machine's monotonic clock."""

    location: str
    rtt: int
    offset: int  # its clock minus ours
    digests: tuple[Digest, ...]  # one a model
    accept: tuple[bytes, ...]  # secrets by which its hops may be signed
    sign: tuple[bytes, ...]  # those to sign with, one a node; none: it is not there


class News(msgspec.Struct, tag=True, frozen=True):
    """Agent to worker: the part of the Table that speaks of other locations; of those that have changed."""

    remotes: list[Remote]


class Find(msgspec.Struct, tag=True, frozen=True):
    """Agent to worker: is this request in flight at yours? `number` names the question."""

    number: int
    request_id: str


class InFlight(msgspec.Struct, frozen=True):
    """A request that has not ended, as its worker sees it."""

    request_id: str
    state: str  # routing, waiting, connecting, sent, relaying
    worker: int
    model: str
    tenant: str  # keyed hash
    priority: int
    instance: str  # "" if none has it
    age_ms: float  # since its head was whole
    queue_position: int = 0  # 1: it is next of its worker's queue; 0: it does not wait
    queued_elsewhere: int = (
        0  # requests that wait at the location's other workers, whose queues take turns with this one
    )
    waiting_ms: float = 0.0
    expected_wait_ms: float = 0.0  # from now on


class Found(msgspec.Struct, tag=True, frozen=True):
    """Worker to agent: the answer to a Find; None: not here."""

    number: int
    request: InFlight | None


ToChild = Configure | Drain | ReloadResult | Processes
ToSupervisor = Ready | Failed | ReloadRequest | DrainRequest
ToAgent = Hello | Batch | Late | Learned | Found
ToWorker = Ack | Push | Learned | Find | News
