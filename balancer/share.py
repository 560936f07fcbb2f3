"""Who was served how much: the virtual token counters of a queue's tenants, of one worker or of all of a location.

Several workers have a queue each, and act as one by two rules over shared memory, without a lock:

    counters   each worker adds what it serves to its own row; a tenant's counter is the sum of the rows
    turns      each worker shows its queue's head, (class, counter) of who is next there; who sees a lower head elsewhere
               lets it go first, for at most 50 ms: the other one looks every 10 ms, but may have no use for the room

So a worker's choice is VTC's, but for what the others did since it looked: each of the other W - 1 may have admitted one
request. Two tenants that both wait are served within VTC's own bound (2 U, U the largest charge of a request) plus
2 (W - 1) U of each other, and U more for every turn that was let go. Tenants share a counter if their hashes share one of
the 256 slots. What a worker that died had served is forgotten.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from balancer.ledger import Counts

SLOTS = 256
CHARGED, LIFTED, WAITING = range(3)
SLOT_WIDTH = 3
IDLE_TENANTS = 4096  # counters kept beyond those that wait
_COUNTER_BITS = 56


def head_of(priority: int, counter: float) -> int:
    """Heads compare like (class, counter); 0 is nobody's."""
    return ((priority + 1) << _COUNTER_BITS) + min(int(counter), (1 << _COUNTER_BITS) - 1)


def counter_of(head: int) -> float:
    """The counter in a head."""
    return float(head & ((1 << _COUNTER_BITS) - 1))


def area(cells: int) -> int:
    """Integers that a row needs for the heads and counters of its worker."""
    return cells + SLOTS * SLOT_WIDTH


class Shares(Protocol):
    """The counters of one queue's tenants, in tokens charged."""

    shared: bool  # with other workers

    def counter(self, tenant: str) -> float:
        """What a tenant was charged."""
        ...

    def charge(self, tenant: str, tokens: float) -> None:
        """It was served so much more (or less, if it was charged too much)."""
        ...

    def lift(self, tenant: str, level: float) -> None:
        """Its counter is at least this from now on."""
        ...

    def enter(self, tenant: str) -> bool:
        """One more of its requests waits here; whether others did already, anywhere."""
        ...

    def leave(self, tenant: str) -> None:
        """One less waits here."""
        ...

    def show(self, head: int) -> None:
        """Who is next here (`head_of`); 0 if nobody waits."""
        ...

    def heads(self) -> Iterator[int]:
        """Who is next at each other worker where somebody waits."""
        ...

    def place(self, cell: int) -> None:
        """The model's first instance has this cell, by which its queue's head is known to all workers."""
        ...


class OwnShares:
    """Of a worker that is alone."""

    shared = False

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}  # of every waiting tenant, and of some idle ones
        self._waiting: dict[str, int] = {}  # requests by tenant; no zeros

    def counter(self, tenant: str) -> float:
        """See Shares."""
        return self._counters.get(tenant, 0.0)

    def charge(self, tenant: str, tokens: float) -> None:
        """See Shares; an idle tenant that was forgotten stays so."""
        if tenant in self._counters:
            self._counters[tenant] += tokens

    def lift(self, tenant: str, level: float) -> None:
        """See Shares."""
        self._counters[tenant] = max(self._counters.get(tenant, 0.0), level)
        if len(self._counters) > len(self._waiting) + IDLE_TENANTS:
            self._counters = {name: self._counters[name] for name in self._waiting}

    def enter(self, tenant: str) -> bool:
        """See Shares."""
        before = self._waiting.get(tenant, 0)
        self._waiting[tenant] = before + 1
        return before > 0

    def leave(self, tenant: str) -> None:
        """See Shares."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def show(self, head: int) -> None:
        """See Shares."""

    def heads(self) -> Iterator[int]:
        """See Shares."""
        return iter(())

    def place(self, cell: int) -> None:
        """See Shares."""


class BoardShares:
    """Of a worker among others. `own`: where its area begins in `cells`; `others`: where theirs do, kept up to date by the
    worker; `count`: how many instances an area has heads for; `model`: whose queue it is.
    """

    shared = True

    def __init__(self, cells: Counts, own: int, others: Sequence[int], count: int, model: str) -> None:
        self._cells = cells
        self._own = own
        self._others = others
        self._count = count
        self._model = model
        self._head = 0  # the place of this queue's head in an area

    def counter(self, tenant: str) -> float:
        """See Shares."""
        cells, slot = self._cells, self._slot(tenant)
        charged, lifted = cells[self._own + slot + CHARGED], cells[self._own + slot + LIFTED]
        for other in self._others:
            charged += cells[other + slot + CHARGED]
            lifted = max(lifted, cells[other + slot + LIFTED])
        return charged + lifted

    def charge(self, tenant: str, tokens: float) -> None:
        """See Shares."""
        self._cells[self._own + self._slot(tenant) + CHARGED] += round(tokens)

    def lift(self, tenant: str, level: float) -> None:
        """See Shares. Two workers that lift at once both say the same, and the greater counts."""
        missing = level - self.counter(tenant)
        if missing > 0:
            slot = self._slot(tenant) + LIFTED
            lifted = max(self._cells[at + slot] for at in (self._own, *self._others))
            self._cells[self._own + slot] = lifted + round(missing)

    def enter(self, tenant: str) -> bool:
        """See Shares."""
        at = self._slot(tenant) + WAITING
        before = sum(self._cells[row + at] for row in (self._own, *self._others))
        self._cells[self._own + at] += 1
        return before > 0

    def leave(self, tenant: str) -> None:
        """See Shares."""
        self._cells[self._own + self._slot(tenant) + WAITING] -= 1

    def show(self, head: int) -> None:
        """See Shares."""
        self._cells[self._own + self._head] = head

    def heads(self) -> Iterator[int]:
        """See Shares."""
        for other in self._others:
            if head := self._cells[other + self._head]:
                yield head

    def place(self, cell: int) -> None:
        """See Shares."""
        if cell != self._head:
            self._cells[self._own + cell] = self._cells[self._own + self._head]
            self._cells[self._own + self._head] = 0
            self._head = cell

    def _slot(self, tenant: str) -> int:
        return self._count + SLOT_WIDTH * (zlib.crc32(f"{self._model}\0{tenant}".encode()) % SLOTS)
