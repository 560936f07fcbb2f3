"""What a location is for others to see, of one model: its Digest, made from the Table and the board (BALANCING 5)."""

from collections.abc import Callable, Iterable

from balancer.model import Digest, Instance
from balancer.spill import refuses

CONTEXT = 1500.0  # tokens a sequence holds in a cache, until the location's own mean is known
GAIN = 0.02  # share of the newest request in that mean


class Context:
    """The mean of tokens that a sequence holds in a cache: its prompt, and on average half of its output."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = CONTEXT

    def observe(self, prompt: int, output: int) -> None:
        """A request of so many tokens."""
        self.tokens += GAIN * (prompt + output / 2 - self.tokens)


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
        location, model, 0, now, work, capacity, number, running, int(running * context),
        accepting=number > 0 and not refuses(work, capacity, ttft_target),
    )  # fmt: skip
