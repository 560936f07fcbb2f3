"""How long a first token may take before its absence says something of the instance (BALANCING 3).

A prediction is in the fleet's reference speed, which an instance need not have: a CPU serves a prompt a hundred times slower
than an a100. So each instance's own pace is learned, time to first token over prediction, quickly upwards and slowly
downwards. Nothing is known of a fleet before its first token, and then nobody is blamed.

    patience = 2 x pace x max(predicted TTFT, 0.1 s) + 1/2 s
"""

from collections.abc import Container, Iterable

SECOND = 1_000_000_000  # ns
LEAST = SECOND // 10  # ns: below this a prediction is as good as any other
GRACE = SECOND // 2
UP, DOWN = 0.5, 0.05


class Pace:
    """The paces of a worker's instances, by cell; 1 is what the reference instance does."""

    __slots__ = ("_paces",)

    def __init__(self) -> None:
        self._paces: dict[int, float] = {}

    def observe(self, cell: int, ttft: float, elapsed: int) -> None:
        """A first token came after `elapsed` ns, where `ttft` s were predicted."""
        ratio = max(1.0, elapsed / max(ttft * SECOND, LEAST))
        pace = self._paces.get(cell, ratio)
        self._paces[cell] = pace + (ratio - pace) * (UP if ratio > pace else DOWN)

    def patience(self, cell: int, ttft: float, fleet: Iterable[int]) -> int | None:
        """Nanoseconds after which a stream without a first token counts as a failure of its instance, though it goes on
        waiting. `fleet`: the cells of its model, by the slowest of which an unknown one is judged; None if all are unknown.
        Who looks four times a second notices within 2 x TTFT + 1 s.
        """
        pace = self._paces.get(cell) or max((self._paces.get(other, 0.0) for other in fleet), default=0.0)
        return int(2 * pace * max(ttft * SECOND, LEAST)) + GRACE if pace else None

    def forget(self, kept: Container[int]) -> None:
        """Only these cells still hold the instances they held."""
        self._paces = {cell: pace for cell, pace in self._paces.items() if cell in kept}
