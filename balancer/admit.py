"""The queue of one model: who waits, who is next, who is refused.

Classes of priority are strict. Inside a class the tenant that was served least comes next, by virtual token counters
(VTC: Sheng et al., "Fairness in Serving Large Language Models", OSDI '24): a request taken charges its tenant
input + 2 x output tokens, predicted; `settle` puts that right at its end. A tenant that starts to wait is lifted to the
least counter of those that wait, so nobody saves up idle time; that is also why an idle tenant's counter may be
forgotten. Inside a tenant: first come, first served.

The queue is bounded in length and in time. The predicted wait is the work that goes first (P + L/2, as the ledger counts
it) over the drain rate: what was taken per second of backlog, an average over 10 s that starts from the fleet's capacity.
Of the other tenants no more goes first than of the newcomer's own. A full queue takes a newcomer in the place of the last
one of the tenant with most waiting, of a lower class or of its own, if that still leaves this tenant no fewer places: who
asks for little is not kept out by who asks for much.
"""

import heapq
import math
from collections import OrderedDict, deque
from typing import NamedTuple

from balancer.model import Ask
from balancer.share import OwnShares, Shares, counter_of, head_of

SECOND = 1_000_000_000  # ns
OUTPUT_CHARGE = 2.0  # VTC's price of an output token, in input tokens
OUTPUT_WORK = 0.5  # its work, in prefill tokens
MEMORY = 10.0  # s, of the drain rate
PRIOR = 1.0  # s of backlog that the fleet's capacity counts for
RETRY_MIN, RETRY_MAX = 0.1, 3600.0  # s
WAIT_WINDOW = SECOND
YIELD = SECOND // 20  # how long another worker's queue is let go first at most


class Refusal(NamedTuple):
    """Not even the queue takes it."""

    retry_after: float  # seconds until the queue's tail would start, more than 0
    reason: str  # "queue_full" or "would_wait_too_long"


class Entry(NamedTuple):
    """What became of a newcomer."""

    refusal: Refusal | None = None  # None: it waits
    displaced: "Waiter | None" = None  # who waits no longer, so that it could


def refusal(wait: float, reason: str) -> Refusal:
    """A refusal whose retry-after is the predicted wait, within bounds."""
    return Refusal(min(RETRY_MAX, max(RETRY_MIN, wait)), reason)


class Waiter:
    """A request that waits. Compared by identity."""

    __slots__ = ("ask", "output_tokens", "priority", "prompt_tokens", "request", "since", "tenant")

    def __init__(self, ask: Ask, prompt_tokens: int, output_tokens: int, since: int, request: object = None) -> None:
        self.ask = ask
        self.tenant = ask.tenant
        self.priority = ask.priority
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens  # predicted
        self.since = since  # ns: when it began to wait
        self.request = request  # the caller's own; not looked at

    @property
    def work(self) -> float:
        """Token-equivalents of the engine's time."""
        return self.prompt_tokens + OUTPUT_WORK * self.output_tokens


def _charge(waiter: Waiter) -> float:
    """What its tenant pays for it, in tokens."""
    return waiter.prompt_tokens + OUTPUT_CHARGE * waiter.output_tokens


Line = OrderedDict[Waiter, None]  # first come, first served; leaving from the middle is O(1)


class Queue:
    """The waiting requests of one model at one worker. Several workers' queues act as one (`balancer.share`)."""

    __slots__ = (
        "_arrivals",
        "_at",
        "_backlog",
        "_capacity",
        "_classes",
        "_level",
        "_rate",
        "_shares",
        "_taken",
        "_tenant_work",
        "_timeout",
        "_ttft_target",
        "_waiting",
        "_waits",
        "_work",
        "_yielding",
        "prompt_tokens",
    )

    def __init__(
        self, capacity: int, timeout_ns: int, rate: float, ttft_target: float = 1.0, shares: Shares | None = None
    ) -> None:
        """See `configure`. `shares`: the tenants' counters, if they are not this worker's own."""
        self._shares = shares if shares is not None else OwnShares()
        self._yielding = 0  # since when another worker's queue has been let go first; 0: it is not
        self.configure(capacity, timeout_ns, rate, ttft_target)
        self._arrivals: Line = OrderedDict()
        self.prompt_tokens = 0  # of all that wait here
        self._classes: dict[int, dict[str, Line]] = {}  # by priority, by tenant; no empty ones
        self._work: dict[int, float] = {}  # waiting, by priority
        self._tenant_work: dict[tuple[int, str], float] = {}  # the same by tenant, too; no empty ones
        self._waiting: dict[str, int] = {}  # requests by tenant; no zeros
        self._level = 0.0  # the counter of the tenant served last, for a queue that is empty
        self._taken = 0.0  # work taken lately, decayed
        self._backlog = 0.0  # seconds with somebody waiting, decayed alike
        self._at = 0  # when these two were brought up to date
        self._waits: dict[
            tuple[int, str], deque[tuple[int, int]]
        ] = {}  # (when, waited) of the last second, waits rising

    def configure(self, capacity: int, timeout_ns: int, rate: float, ttft_target: float) -> None:
        """`capacity`: requests that may wait, at all workers; `rate`: the fleet's token-equivalents a second."""
        self._capacity = capacity
        self._timeout = timeout_ns
        self._rate = rate
        self._ttft_target = ttft_target

    def __len__(self) -> int:
        """How many wait."""
        return len(self._arrivals)

    def of_class(self, priority: int) -> int:
        """How many of a priority wait."""
        return sum(map(len, self._classes.get(priority, {}).values()))

    def offer(self, waiter: Waiter, now: int, elsewhere: int = 0) -> Entry:
        """Let it wait, or refuse it. `elsewhere`: how many wait for the model at other workers."""
        wait = self.wait(now, waiter.priority, waiter)
        overloaded = self.shortest_wait(now, waiter) > 0.5 * self._ttft_target
        if overloaded and wait * SECOND > self._timeout:
            return Entry(refusal(wait, "would_wait_too_long"))
        displaced = None
        if len(self._arrivals) + elsewhere >= self._capacity:
            displaced = self._least_due(waiter)
            if displaced is None:
                return Entry(refusal(wait, "queue_full"))
        self._advance(now)
        if displaced is not None:
            self._remove(displaced)
        self._lift(waiter.tenant)
        self._arrivals[waiter] = None
        self.prompt_tokens += waiter.prompt_tokens
        line = self._classes.setdefault(waiter.priority, {}).setdefault(waiter.tenant, OrderedDict())
        line[waiter] = None
        self._work[waiter.priority] = self._work.get(waiter.priority, 0.0) + waiter.work
        key = waiter.priority, waiter.tenant
        self._tenant_work[key] = self._tenant_work.get(key, 0.0) + waiter.work
        self._show()
        return Entry(displaced=displaced)

    def peek(self) -> Waiter | None:
        """Who is next; None if nobody waits. Linear in the waiting tenants of the first class."""
        if not self._classes:
            return None
        lines = self._classes[min(self._classes)]
        return next(iter(lines[min(lines, key=self._shares.counter)]))

    def its_turn(self, now: int) -> bool:
        """Whether the next one here may go before those that wait at the location's other workers."""
        if not self._shares.shared or (first := self.peek()) is None:
            return True
        mine = head_of(first.priority, self._shares.counter(first.tenant))
        if all(mine <= head for head in self._shares.heads()) or (self._yielding and now - self._yielding > YIELD):
            self._yielding = 0
            return True
        self._yielding = self._yielding or now
        return False

    def waits_elsewhere(self) -> bool:
        """Whether anybody waits for the model at another worker."""
        return any(self._shares.heads())

    def place(self, cell: int) -> None:
        """The model's first instance has this cell."""
        self._shares.place(cell)

    def take(self, now: int) -> Waiter | None:
        """The next one, which waits no longer and is charged to its tenant."""
        waiter = self.peek()
        if waiter is None:
            return None
        self._advance(now)
        self._level = self._shares.counter(waiter.tenant)
        self._shares.charge(waiter.tenant, _charge(waiter))
        self._remove(waiter)
        self._show()
        self._taken += waiter.work
        if (key := (waiter.priority, waiter.tenant)) in self._tenant_work:
            waits, waited = self._waits.setdefault(key, deque()), max(0, now - waiter.since)
            while waits and waits[-1][1] >= waited:
                waits.pop()
            waits.append((now, waited))
            while now - waits[0][0] > WAIT_WINDOW:
                waits.popleft()
        return waiter

    def drop(self, waiter: Waiter) -> bool:
        """It waits no longer and was not served: its client left. False if it was not waiting. O(1)."""
        if waiter not in self._arrivals:
            return False
        self._remove(waiter)
        self._show()
        return True

    def expire(self, now: int, everyone: bool = False) -> list[Waiter]:
        """Take out those that waited as long as one may; `everyone`: all, since none can be served any more."""
        expired = []
        self._advance(now)
        while self._arrivals:
            oldest = next(iter(self._arrivals))
            if not everyone and now - oldest.since < self._timeout:
                break
            self._remove(oldest)
            expired.append(oldest)
        if expired:
            self._show()
        return expired

    def wait(self, now: int, priority: int | None = None, newcomer: Waiter | None = None) -> float:
        """Seconds that a newcomer of this priority (None: the lowest) would wait, if it came last; that this one would,
        with its tenant's share.
        """
        work = sum(work for rank, work in self._work.items() if priority is None or rank <= priority)
        if newcomer is not None and work:
            work += self._ahead(newcomer) - self._work.get(newcomer.priority, 0.0)
        return self._seconds(work, now)

    def _seconds(self, work: float, now: int) -> float:
        """How long that much work takes to drain."""
        if not work:
            return 0.0
        decay, backlog = self._decay(now)
        rate = (self._taken * decay + self._rate * PRIOR) / (backlog + PRIOR)
        return work / rate if rate > 0 else RETRY_MAX

    def shortest_wait(self, now: int, like: Waiter) -> float:
        """Seconds: of those of this one's tenant and class, the shortest wait of the ones taken in the last second; if
        there were none, the oldest's so far; 0 if none waits.
        """
        key = like.priority, like.tenant
        for when, waited in self._waits.get(key, ()):
            if now - when <= WAIT_WINDOW:
                return waited / SECOND
        line = self._classes.get(like.priority, {}).get(like.tenant)
        return max(0, now - next(iter(line)).since) / SECOND if line else 0.0

    def standing(self, waiter: Waiter, now: int) -> tuple[int, float]:
        """Its place in the order in which those waiting here would be taken if nobody came or left, 1 for the next one, and
        the predicted seconds until then; (0, 0) if it does not wait. Linear in the length of the queue.
        """
        if waiter not in self._arrivals:
            return 0, 0.0
        ahead: list[Waiter] = []
        charged = dict.fromkeys(self._waiting, 0.0)
        for rank in (rank for rank in self._classes if rank < waiter.priority):
            for tenant, line in self._classes[rank].items():
                ahead += line
                charged[tenant] += sum(map(_charge, line))
        lines = self._classes[waiter.priority].items()
        turns = [(self._shares.counter(name) + charged[name], at, iter(line)) for at, (name, line) in enumerate(lines)]
        heapq.heapify(turns)
        while True:
            counter, at, rest = turns[0]
            first = next(rest, None)
            if first is waiter:
                return len(ahead) + 1, self._seconds(sum(one.work for one in ahead), now)
            if first is None:
                heapq.heappop(turns)
            else:
                ahead.append(first)
                heapq.heapreplace(turns, (counter + _charge(first), at, rest))

    def settle(self, tenant: str, output_tokens: int) -> None:
        """A request taken from here ended with so many more output tokens than predicted (fewer: negative)."""
        self._shares.charge(tenant, OUTPUT_CHARGE * output_tokens)

    def _ahead(self, newcomer: Waiter) -> float:
        """The work of its class that goes before it: its tenant's own, and as much of each other's."""
        rank = newcomer.priority
        own = self._tenant_work.get((rank, newcomer.tenant), 0.0)
        others = (self._tenant_work[rank, name] for name in self._classes.get(rank, ()) if name != newcomer.tenant)
        return own + sum(min(work, own + newcomer.work) for work in others)

    def _least_due(self, newcomer: Waiter) -> Waiter | None:
        """Who leaves a full queue for this one, if anybody."""
        rank = max(self._classes, default=-1)
        if rank < newcomer.priority:
            return None
        lines = self._classes[rank]
        most = max(lines, key=lambda name: len(lines[name]))
        if rank == newcomer.priority and len(lines[most]) <= len(lines.get(newcomer.tenant, ())) + 1:
            return None
        return next(reversed(lines[most]))

    def _lift(self, tenant: str) -> None:
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        if self._shares.enter(tenant):
            return
        levels = [self._shares.counter(name) for name in self._waiting if name != tenant]
        levels += map(counter_of, self._shares.heads())
        self._shares.lift(tenant, min(levels, default=self._level))

    def _show(self) -> None:
        """Tells the other workers who is next here."""
        if self._shares.shared:
            first = self.peek()
            self._shares.show(head_of(first.priority, self._shares.counter(first.tenant)) if first is not None else 0)

    def _remove(self, waiter: Waiter) -> None:
        del self._arrivals[waiter]
        self.prompt_tokens -= waiter.prompt_tokens
        lines = self._classes[waiter.priority]
        line = lines[waiter.tenant]
        del line[waiter]
        self._work[waiter.priority] -= waiter.work
        self._tenant_work[waiter.priority, waiter.tenant] -= waiter.work
        self._shares.leave(waiter.tenant)
        self._waiting[waiter.tenant] -= 1
        if not self._waiting[waiter.tenant]:
            del self._waiting[waiter.tenant]
        if not line:
            del lines[waiter.tenant], self._tenant_work[waiter.priority, waiter.tenant]
            self._waits.pop((waiter.priority, waiter.tenant), None)
        if not lines:
            del self._classes[waiter.priority], self._work[waiter.priority]

    def _decay(self, now: int) -> tuple[float, float]:
        """The factor by which the past has faded, and the backlog's seconds with that."""
        decay = math.exp(-max(0, now - self._at) / SECOND / MEMORY)
        return decay, self._backlog * decay + (MEMORY * (1 - decay) if self._arrivals else 0.0)

    def _advance(self, now: int) -> None:
        decay, self._backlog = self._decay(now)
        self._taken *= decay
        self._at = max(self._at, now)
