"""The choice: two instances drawn in proportion to their weight, the one with less to do takes the request.

Drawing in proportion matters: uniform draws are unstable on mixed fleets. The alias table (Walker, Vose) makes a draw
O(1) however many instances there are; it is built with each Table, never for a request. What changes between Tables
(ejection, slow start, load) is looked up for the drawn ones only. Excluded or unusable ones are drawn again; after 8
draws a scan from a random place takes what is left. The score, in seconds, lower is better (BALANCING 2):

    S = b * (A + P + beta * (D + L) + background + phantom) / w + 0.15 * k / (1 - k)

b: the fleet's seconds per token-equivalent; A, D: outstanding prefill and decode tokens; P, L: this request's prompt
and expected output; w: weight times slow start; k: KV use, at most 0.95. Background and k count only while their
scrape is at most 2 s old. Before the score goes the class: an instance due for its trial takes it, and one that has
enough to do loses to one that has not.

Saturation looks at prefill alone. The criterion by TPOT (BALANCING 4) is left out, because it makes things worse: with an
instance's mean TPOT (2 s) over 0.8 x 60 ms as a reason to wait, the simulator's goodput on Azure's conversations (8 a100, two
seeds) falls from 0.99 to 0.09 at load 0.75 and from 0.84 to 0.00 at 0.95. Prefill chunks between its tokens, not the number
of its sequences, make an engine's TPOT, and who waits here pays with the TTFT.
"""

from collections.abc import Collection, Iterator, Sequence
from random import Random
from typing import NamedTuple, Protocol

from balancer.health import Health, State, slow_start
from balancer.ledger import Ledger
from balancer.model import Balancing, Candidate, Fleet, Instance

BETA = 0.5  # a decode token's work, in prefill tokens
KV_SECONDS = 0.15
KV_MAX = 0.95
FRESH = 2_000_000_000  # ns: an older scrape is not looked at
DRAWS = 8
SCAN = 64  # instances looked at for one that is not saturated

# Classes, the lowest is preferred.
DUE = -1  # ejected, and its trial may be sent
OPEN = 0
MARKED = 1  # idle here, but it answered 429 a moment ago
FULL = 2  # saturated


class AliasTable:
    """Draws an index in proportion to its weight, in O(1) (Vose 1991)."""

    __slots__ = ("alias", "share")

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: at least one, none negative, not all zero; else ValueError."""
        total = sum(weights)
        if not weights or min(weights) < 0 or not 0 < total < float("inf"):
            raise ValueError("weights must be finite, at least 0 and not all 0")
        count = len(weights)
        self.share = [weight * count / total for weight in weights]  # of its own column
        self.alias = list(range(count))  # who has the rest of it
        small = [i for i, share in enumerate(self.share) if share < 1]
        large = [i for i, share in enumerate(self.share) if share >= 1]
        while small and large:
            less, more = small.pop(), large[-1]
            self.alias[less] = more
            self.share[more] -= 1 - self.share[less]
            if self.share[more] < 1:
                small.append(large.pop())
        heaviest = max(range(count), key=weights.__getitem__)
        for i in small:  # rounding left these without a partner
            self.alias[i] = i if weights[i] else heaviest

    def draw(self, random: Random) -> int:
        """One index."""
        place = random.random() * len(self.share)
        column = int(place)
        return column if place - column < self.share[column] else self.alias[column]


new_tuple = tuple.__new__


class Measured(NamedTuple):
    """One candidate, weighed."""

    rank: int  # its class: DUE, OPEN, MARKED or FULL
    candidate: Candidate
    instance: Instance


class View:
    """One model's ready instances as a policy sees them."""

    __slots__ = ("_health", "_ledger", "_random", "_table", "cells", "fleet", "instances", "limit", "panic")

    def __init__(
        self, fleet: Fleet, ledger: Ledger, health: Health, random: Random, before: "View | None" = None
    ) -> None:
        """`before`: this model's view of the last Table, whose alias table serves on if no weight changed."""
        self.fleet = fleet
        self.instances = tuple(i for i in fleet.instances if i.ready and i.weight > 0)
        self.cells = frozenset(i.cell for i in self.instances)
        self.limit = 0.0  # tokens of A at which an instance of weight 1 is saturated
        self.panic = False  # more than half are ejected, so nobody counts as ejected
        self._ledger = ledger
        self._health = health
        self._random = random
        self._table: AliasTable | None
        weights = [i.weight for i in self.instances]
        if before is not None and weights == [i.weight for i in before.instances]:
            self._table = before._table
        else:
            self._table = AliasTable(weights) if weights else None

    def configure(self, settings: Balancing) -> None:
        """Take the saturation limit from the settings: b * A = half the TTFT target."""
        self.limit = 0.5 * settings.ttft_target / self.fleet.reference

    def count_ejected(self) -> None:
        """Find out whether this is a panic; to be called when an instance is ejected or returns."""
        self.panic = 2 * sum(cell in self.cells for cell in self._health.out) > len(self.instances)

    @property
    def capacity(self) -> float:
        """Token-equivalents a second of all of them."""
        return sum(i.weight for i in self.instances) / self.fleet.reference

    def draw(self, count: int, now: int, tried: Collection[int] = ()) -> list[Instance]:
        """Up to `count` distinct usable instances that were not tried, drawn in proportion to weight.

        A retry (`tried` is not empty) goes to no ejected instance, be it as a trial or in a panic, unless nothing else is
        left.
        """
        drawn = self._draw(count, now, tried, not tried)
        return drawn or (self._draw(count, now, tried, True) if tried else drawn)

    def _draw(self, count: int, now: int, tried: Collection[int], trials: bool) -> list[Instance]:
        notes = self._health.notes
        if len(self.instances) <= count and not notes and not tried:
            return list(self.instances)
        drawn: list[Instance] = []
        if self._table is not None and len(self.instances) > count:
            random, table, instances = self._random, self._table, self.instances
            for _ in range(DRAWS):
                instance = instances[table.draw(random)]
                if instance in drawn or instance.cell in tried:
                    continue
                if instance.cell in notes and not self._usable(instance.cell, now, trials):
                    continue
                drawn.append(instance)
                if len(drawn) == count:
                    return drawn
        for instance in self._from_anywhere():
            if len(drawn) == count:
                break
            if instance not in drawn and instance.cell not in tried and self._usable(instance.cell, now, trials):
                drawn.append(instance)
        return drawn

    def measure(self, instance: Instance, prompt: int, output: int, now: int) -> Measured:
        """The class and the score of an instance for a request of `prompt` and `output` tokens."""
        cell, weight, kv_use, background, phantom = instance.cell, instance.weight, 0.0, 0, 0
        prefill, decode, requests = self._ledger.outstanding(cell)
        rank = FULL if requests and prefill > self.limit * weight else OPEN
        if instance.since:
            weight *= slow_start(instance.since, now)
        if (note := self._health.notes.get(cell)) is not None:
            phantom = note.phantom(now)
            weight = min(weight, instance.weight * slow_start(note.returned, now))
            if now < note.busy_until:
                rank = FULL if requests else max(rank, MARKED)
            if note.state is State.EJECTED and not self.panic:
                rank = DUE
        extra = 0.0
        if instance.scraped and now - instance.scraped <= FRESH:
            background = instance.background
            if (kv_use := instance.kv_use) > 0:
                kv_use = kv_use if kv_use < KV_MAX else KV_MAX
                extra = KV_SECONDS * kv_use / (1 - kv_use)
        work = prefill + prompt + BETA * (decode + output) + background + phantom
        score = work * self.fleet.reference / weight + extra
        # tuple.__new__: a NamedTuple's own constructor costs twice as much, on every request
        candidate = new_tuple(Candidate, (instance.name, score, prefill, decode, background, phantom, kv_use, weight))
        return new_tuple(Measured, (rank, candidate, instance))

    def find_open(self, prompt: int, output: int, now: int, tried: Collection[int] = ()) -> Measured | None:
        """The first instance from a random place on, of at most 64, that has not enough to do."""
        for looked, instance in enumerate(self._from_anywhere()):
            if looked == SCAN:
                break
            if instance.cell in tried or not self._usable(instance.cell, now, True):
                continue
            measured = self.measure(instance, prompt, output, now)
            if measured.rank <= OPEN:
                return measured
        return None

    def _usable(self, cell: int, now: int, trials: bool) -> bool:
        note = self._health.notes.get(cell)
        if note is None or (self.panic and trials):
            return True
        return note.usable(now) and (trials or note.state is State.HEALTHY)

    def _from_anywhere(self) -> Iterator[Instance]:
        count = len(self.instances)
        start = int(self._random.random() * count)
        for i in range(start, start + count):
            yield self.instances[i % count]


class Choice(NamedTuple):
    """The winner, and all that were compared."""

    best: Measured
    candidates: tuple[Candidate, ...]


class Policy(Protocol):
    """A way to choose; the router uses PowerOfChoices, the simulator compares it with others."""

    def choose(self, view: View, prompt: int, output: int, now: int, tried: Collection[int]) -> Choice | None:
        """An instance for a request of `prompt` and `output` tokens; None if none is usable. Load is no reason."""
        ...


class PowerOfChoices:
    """The best of `choices` drawn instances (Mitzenmacher's power of two choices)."""

    __slots__ = ("_choices", "_random")

    def __init__(self, choices: int, random: Random) -> None:
        self._choices = choices
        self._random = random

    def choose(self, view: View, prompt: int, output: int, now: int, tried: Collection[int]) -> Choice | None:
        """See Policy."""
        drawn = view.draw(self._choices, now, tried)
        if not drawn:
            return None
        best = view.measure(drawn[0], prompt, output, now)
        candidates: tuple[Candidate, ...] = (best[1],)
        for instance in drawn[1:]:
            other = view.measure(instance, prompt, output, now)
            candidates += (other[1],)
            difference = other[0] - best[0] or other[1][1] - best[1][1]
            if difference < 0 or (difference == 0 and self._random.random() < 0.5):
                best = other
        return Choice(best, candidates)
