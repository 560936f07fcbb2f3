"""The values the balancer speaks in.

Times are monotonic nanoseconds (`now` is always an argument), work is in tokens, weights and shares have no unit.
"""

import enum
from typing import NamedTuple

import msgspec

REFERENCE_SECONDS_PER_TOKEN = 70e-6  # an a100 with an 8B model, until a fleet's own figure is known


class Outcome(enum.StrEnum):
    """How one attempt at one instance ended."""

    OK = "ok"
    REFUSED = "refused"  # no connection: refused, unreachable, connect timeout, TLS failure
    RESET = "reset"  # closed or reset before its answer was whole
    STALLED = "stalled"  # no first byte, or no further byte, in time
    GARBAGE = "garbage"  # not HTTP, or HTTP whose framing is in doubt
    SERVER_ERROR = "server_error"  # 5xx
    SATURATED = "saturated"  # 429: busy, not broken
    CLIENT_FAULT = "client_fault"  # 4xx of the client's own making
    CANCELLED = "cancelled"  # the client left, or we stopped it


class Priority(enum.IntEnum):
    """Strict classes: a lower number is always served first."""

    CRITICAL = 0
    NORMAL = 1
    BATCH = 2


class Balancing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the operator asks of the balancer (`balancing` in the config)."""

    ttft_target: float = 1.0  # seconds to the first token that still count as good
    tpot_target: float = 0.06  # seconds a further token
    choices: int = 2  # instances compared for each request (d of power-of-d)


class Instance(msgspec.Struct, frozen=True, gc=False):
    """One engine as one version of the Table shows it."""

    cell: int  # stable index on the board
    name: str
    weight: float = 1.0  # service rate relative to the reference instance
    ready: bool = True  # the agent's probes reach it
    since: int = 0  # when it joined or came back, for slow start; 0: it was there from the beginning
    kv_use: float = 0.0  # share of its KV cache in use, 0 to 1
    background: int = 0  # outstanding tokens of traffic that is not this location's
    scraped: int = 0  # when kv_use and background were read; 0: never


class Fleet(msgspec.Struct, frozen=True):
    """The instances that serve one model."""

    instances: tuple[Instance, ...]
    reference: float = REFERENCE_SECONDS_PER_TOKEN  # seconds per token-equivalent of an instance of weight 1


class Table(msgspec.Struct, frozen=True):
    """What the agent knows, pushed to every worker when it changes."""

    version: int
    models: dict[str, Fleet]


class Digest(msgspec.Struct, frozen=True, gc=False):
    """What a location tells the others of one model (BALANCING 5)."""

    location: str
    model: str
    seq: int  # rises with every digest of its sender
    ts: int  # ns by the sender's clock when it was made
    work: float  # W: prompt tokens that wait for their first token
    capacity: float  # C: token-equivalents a second of all instances
    instances: int
    running: int  # sequences
    kv_tokens: int  # in their caches
    t0: float = 0.0103  # s: an iteration of no work; until an engine's own is known, an a100's
    c: float = 71e-6  # s a sequence
    kv_c: float = 0.087e-6  # s a cached token
    accepting: bool = True
    residency: tuple[str, ...] = ()
    node: str = "0"


class Ask(msgspec.Struct, gc=False):
    """What routing needs to know of a request."""

    model: str  # canonical name, aliases resolved
    prompt_bytes: int
    max_tokens: int = 0  # the client's cap on output tokens; 0: none given
    stream: bool = False
    tenant: str = ""
    priority: int = Priority.NORMAL


class Candidate(NamedTuple):
    """One compared instance and the terms of its score (BALANCING 2)."""

    instance: str
    score: float  # seconds; the lowest wins
    prefill: int  # A: prompt tokens there without a first token yet
    decode: int  # D: output tokens expected to remain there
    background: int  # tokens of foreign traffic
    phantom: int  # tokens added for recent failures
    kv_use: float  # as used in the score: 0 when the scrape is too old
    weight: float  # effective: configured or tuned, times slow start


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes and why."""

    instance: Instance
    candidates: tuple[Candidate, ...]
    reason: str  # one of REASONS
    prompt_tokens: int  # P, estimated
    output_tokens: int  # L, predicted
    version: int  # of the Table it was made with
    ttft: float = 0.0  # predicted seconds to the first token: the instance's score


REASONS = {
    "p2c": "the lower score of the instances drawn",
    "only": "the only instance that could take it",
    "trial": "an ejected instance's one trial request",
    "panic": "more than half were ejected, so all counted as healthy",
    "retry": "an earlier attempt failed; the lower score among the others",
    "spill": "another location costs less, by more than the margin",
}


class Shut(enum.Enum):
    """Why there is no decision."""

    NO_INSTANCE = "no_instance"  # none is ready, or all were tried
    SATURATED = "saturated"  # all that could take it have enough to do
