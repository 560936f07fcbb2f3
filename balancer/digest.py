"""What a location is for others to see, of one model: its Digest, made from the Table and the board (BALANCING 5)."""

import math
from collections.abc import Callable, Iterable

from balancer.model import Digest, Instance
from balancer.spill import OVERHEAD, refuses

CONTEXT = 1500.0  # tokens a sequence holds in a cache, until the location's own mean is known
GAIN = 0.02  # share of the newest request in that mean
A100 = (0.0103, 71e-6, 0.087e-6)  # t0, c, kv_c of an a100 with an 8B model (BALANCING 7)
SCALE_MAX = 100.0


class Context:
    """The mean of tokens that a sequence holds in a cache: its prompt, and on average half of its output."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = CONTEXT

    def observe(self, prompt: int, output: int) -> None:
        """A request of so many tokens."""
        self.tokens += GAIN * (prompt + output / 2 - self.tokens)


class Speed:
    """How fast the engines of a model make tokens: an a100's coefficients, all scaled by one factor that finished streams tell.
    (One factor instead of three by least squares: the three are told apart only by loads that few locations see.)
    """

    __slots__ = ("_scale",)

    def __init__(self) -> None:
        self._scale = 0.0  # logarithm

    def observe(self, tpot: float, sequences: float, context: float) -> None:
        """A stream took `tpot` s for each token while its instance had so many `sequences` of `context` tokens."""
        t0, c, kv_c = A100
        expected = math.hypot(t0, c * sequences) + kv_c * sequences * context
        ratio = min(SCALE_MAX, max(1 / SCALE_MAX, (tpot - OVERHEAD) / expected))
        self._scale += GAIN * (math.log(ratio) - self._scale)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """t0, c and kv_c of BALANCING 5, in s."""
        scale = math.exp(self._scale)
        t0, c, kv_c = A100
        return scale * t0, scale * c, scale * kv_c


def make(  # noqa: PLR0913  each is a part of what it says
    location: str,
    model: str,
    now: int,
    instances: Iterable[Instance],
    reference: float,
    counts: Callable[[int], tuple[int, int, int]],
    ttft_target: float,
    context: float = CONTEXT,
    *,
    waiting: float = 0.0,
    coefficients: tuple[float, float, float] = A100,
) -> Digest:
    """The digest of those `instances` that take requests. `reference`: seconds a token-equivalent at weight 1; `counts`: prefill
    tokens, decode tokens and requests of a cell; `waiting`: prompt tokens in queues. Who made it how often is the sender's to
    add.
    """
    work, running, weight, number = waiting, 0, 0.0, 0
    for instance in instances:
        prefill, _, requests = counts(instance.cell)
        work += prefill
        running += requests
        weight += instance.weight
        number += 1
    capacity = weight / reference
    return Digest(
        location, model, 0, now, work, capacity, number, running, int(running * context), *coefficients,
        accepting=number > 0 and not refuses(work, capacity, ttft_target),
    )  # fmt: skip
