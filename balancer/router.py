"""One worker's balancer, the only mutable aggregate: what the Table said, what was seen of it, who waits.

    update   takes a Table; what was learned of instances (by cell) and models (by name) that are still there is kept
    route    decides and changes nothing but the random source
    open     makes the decision a Lease on the ledger, and takes the trial's slot if it is a trial
    report   takes how each attempt ended, `learn` what a request really used

Without saturation a request takes the better of the instances drawn. If these have enough to do, one that has not is
looked for; if there is none, the answer is Shut.SATURATED and the request waits: `enqueue`, until `admit` lets it go.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from random import Random

from balancer import digest
from balancer.admit import Entry, Queue, Waiter
from balancer.budget import RetryBudget
from balancer.choose import DUE, FULL, OPEN, Policy, PowerOfChoices, View
from balancer.estimate import Estimator
from balancer.health import Health
from balancer.ledger import Lease, Ledger
from balancer.model import Ask, Balancing, Decision, Digest, Outcome, Priority, Shut, Table
from balancer.pace import Pace
from balancer.share import Shares

SECOND = 1_000_000_000  # ns
QUEUE_CAPACITY = 1024
QUEUE_TIMEOUT = 30 * SECOND


class Router:
    """Decides for one worker. `ledger` is shared with the leases it gives out; `random` makes its draws."""

    def __init__(
        self,
        ledger: Ledger,
        random: Random,
        settings: Balancing | None = None,
        queue_capacity: int = QUEUE_CAPACITY,
        queue_timeout_ns: int = QUEUE_TIMEOUT,
        policy: Policy | None = None,
        shares: Callable[[str], Shares] | None = None,
    ) -> None:
        """`policy`: instead of the power of `settings.choices` choices; `shares`: makes the counters of a model's queue,
        where workers share them.
        """
        self.shared = shares is not None
        self._new_shares = shares
        self.health = Health(random)
        self._pace = Pace()
        self.budget = RetryBudget()
        self.version = 0  # of the Table
        self._ledger = ledger
        self._random = random
        self._own_policy = policy
        self._views: dict[str, View] = {}
        self._names: dict[int, str] = {}  # of instances, by cell
        self._estimators: dict[str, Estimator] = {}
        self._remembered: Mapping[str, Mapping[str, object]] = {}
        self._queues: dict[str, Queue] = {}
        self.configure(settings or Balancing(), queue_capacity, queue_timeout_ns)

    def configure(
        self, settings: Balancing, queue_capacity: int | None = None, queue_timeout_ns: int | None = None
    ) -> None:
        """Take new settings; a limit left out stays as it is."""
        self._settings = settings
        self._policy: Policy = self._own_policy or PowerOfChoices(settings.choices, self._random)
        if queue_capacity is not None:
            self._queue_capacity = queue_capacity
        if queue_timeout_ns is not None:
            self._queue_timeout = queue_timeout_ns
        self._configure_parts()

    def update(self, table: Table, now: int) -> None:
        """Take a Table. Queues of models that are gone stay until they are empty."""
        names = {i.cell: i.name for fleet in table.models.values() for i in fleet.instances}
        same = {cell for cell, name in names.items() if self._names.get(cell) == name}
        self.health.forget(same, now)
        self._pace.forget(same)
        self._names = names
        self.version = table.version
        self._views = {
            model: View(fleet, self._ledger, self.health, self._random, self._views.get(model))
            for model, fleet in table.models.items()
        }
        self._estimators = {model: self._estimators.get(model) or self._new_estimator(model) for model in table.models}
        kept = {model: queue for model, queue in self._queues.items() if model in table.models or len(queue)}
        self._queues = kept | {model: self._new_queue(model) for model in table.models if model not in kept}
        for model, fleet in table.models.items():
            self._queues[model].place(min((i.cell for i in fleet.instances), default=0))
        self._configure_parts()

    def route(self, ask: Ask, now: int, tried: Collection[int] = (), admit: bool = True) -> Decision | Shut:
        """Where this request goes. `tried`: cells it failed at; `admit`: False to disregard saturation (retries)."""
        view = self._views.get(ask.model)
        if view is None:
            return Shut.NO_INSTANCE
        estimator = self._estimators[ask.model]
        prompt = estimator.prompt_tokens(ask.prompt_bytes)
        output = estimator.output_tokens(prompt, ask.max_tokens)
        choice = self._policy.choose(view, prompt, output, now, tried)
        if choice is None:
            return Shut.NO_INSTANCE
        best, candidates = choice
        if best.rank > OPEN and admit:
            unsaturated = view.find_open(prompt, output, now, tried)
            if unsaturated is not None:
                best, candidates = unsaturated, (*candidates, unsaturated.candidate)
            elif best.rank == FULL:
                return Shut.SATURATED
        if tried:
            reason = "retry"
        elif view.panic:
            reason = "panic"
        elif best.rank == DUE:
            reason = "trial"
        else:
            reason = "p2c" if len(candidates) > 1 else "only"
        return Decision(best.instance, candidates, reason, prompt, output, self.version, best.candidate.score)

    def crowded(self, model: str) -> bool:
        """Whether others wait for this model, here or at another worker: then a newcomer waits, too."""
        queue = self._queues.get(model)
        return queue is not None and (len(queue) > 0 or queue.waits_elsewhere())

    def enqueue(self, ask: Ask, now: int, request: object = None, elsewhere: int = 0) -> tuple[Waiter, Entry]:
        """Let a request wait that found no room, unless the Entry refuses it; who is displaced for it is refused, too.
        `request`: the caller's own, kept on the Waiter; `elsewhere`: how many wait for its model at other workers.
        """
        estimator = self._estimators[ask.model]
        prompt = estimator.prompt_tokens(ask.prompt_bytes)
        waiter = Waiter(ask, prompt, estimator.output_tokens(prompt, ask.max_tokens), now, request)
        return waiter, self._queues[ask.model].offer(waiter, now, elsewhere)

    def admit(self, now: int) -> Iterator[tuple[Waiter, Decision]]:
        """Those of the queues that instances can take now, in their turn; each must be opened before the next is asked
        for.
        """
        for queue in self._queues.values():
            while (first := queue.peek()) is not None and queue.its_turn(now):
                found = self.route(first.ask, now)
                if type(found) is not Decision:
                    break
                queue.take(now)
                yield first, found

    def open(self, ask: Ask, decision: Decision, now: int) -> Lease:
        """The decision as work on the ledger; to be called when the request is sent on, once an attempt."""
        cell = decision.instance.cell
        if cell in self.health.notes:
            self.health.begin(cell, now)
        estimator = self._estimators.get(ask.model) or Estimator()
        return Lease(
            self._ledger, cell, decision.prompt_tokens, decision.output_tokens, estimator.residual, ask.max_tokens,
            estimator.tokens_per_event,
        )  # fmt: skip

    def report(self, cell: int, outcome: Outcome, now: int, trial: bool = True) -> None:
        """An attempt ended (or its answer began well). `trial`: False if its decision is known to have been none."""
        if cell in self._names and self.health.report(cell, outcome, now, trial):
            for view in self._views.values():
                view.count_ejected()

    def first_token(self, decision: Decision, elapsed: int) -> None:
        """A stream began `elapsed` ns after its request was sent."""
        self._pace.observe(decision.instance.cell, decision.ttft, elapsed)

    def overdue(self, ask: Ask, decision: Decision, elapsed: int) -> bool:
        """Whether a stream that has not begun `elapsed` ns after its request was sent speaks against its instance."""
        view = self._views.get(ask.model)
        patience = self._pace.patience(decision.instance.cell, decision.ttft, view.cells if view is not None else ())
        return patience is not None and elapsed > patience

    def learn(self, ask: Ask, prompt_tokens: int, output_tokens: int, events: int) -> None:
        """What a finished request really used, by its `usage`."""
        estimator = self._estimators.get(ask.model)
        if estimator is not None:
            estimator.learn(ask.prompt_bytes, prompt_tokens, ask.max_tokens, output_tokens, events)

    def learned(self) -> dict[str, dict[str, object]]:
        """What the estimators have learned, as plain data by model."""
        return {model: estimator.snapshot() for model, estimator in self._estimators.items() if estimator.samples}

    def remember(self, learned: Mapping[str, Mapping[str, object]]) -> None:
        """Let models that nothing is known of yet, now or later, begin with this; ValueError if it is no such data."""
        self._remembered = learned
        for model, estimator in self._estimators.items():
            if model in learned and not estimator.samples:
                estimator.restore(learned[model])

    def running(self, cell: int) -> int:
        """Requests in flight at an instance, all workers' together."""
        return self._ledger.outstanding(cell)[2]

    def estimator(self, model: str) -> Estimator:
        """The model's estimator; KeyError if the Table does not know the model."""
        return self._estimators[model]

    def queue(self, model: str) -> Queue:
        """The model's queue; KeyError if the Table does not know the model and nobody waits for it."""
        return self._queues[model]

    def expire(self, now: int) -> Iterator[Waiter]:
        """Takes those out of the queues that waited as long as one may, and all whose model the Table no longer knows."""
        for model, queue in self._queues.items():
            yield from queue.expire(now, everyone=model not in self._views)

    def capacity(self, model: str) -> float:
        """Token-equivalents a second of the model's ready instances; 0 for a model that the Table does not know."""
        view = self._views.get(model)
        return view.capacity if view is not None else 0.0

    def here(
        self,
        location: str,
        model: str,
        now: int,
        context: float,
        coefficients: tuple[float, float, float],
        workers: int = 1,
    ) -> Digest:
        """This location as the others would see it now, its queue included: each of the `workers` is taken to have as much in
        its queue as this one. An ejected instance counts as gone. `context`, `coefficients`: see `balancer.digest`.
        """
        view, out = self._views[model], self.health.out
        instances = [i for i in view.instances if i.cell not in out] if out and not view.panic else view.instances
        waiting = self._queues[model].prompt_tokens * workers
        return digest.make(
            location, model, now, instances, view.fleet.reference, self._ledger.outstanding, self._settings.ttft_target,
            context, waiting=waiting, coefficients=coefficients,
        )  # fmt: skip

    def serves(self, model: str) -> bool:
        """Whether the Table knows the model."""
        return model in self._views

    def wait(self, ask: Ask, now: int) -> float:
        """Seconds that a request like this would wait if it came now; 0 for a model that the Table no longer knows."""
        queue = self._queues.get(ask.model)
        return queue.wait(now, ask.priority) if queue is not None else 0.0

    def settle(self, ask: Ask, output_tokens: int) -> None:
        """A request that had waited ended with so many more output tokens than predicted (fewer: negative)."""
        queue = self._queues.get(ask.model)
        if queue is not None:
            queue.settle(ask.tenant, output_tokens)

    @property
    def queued(self) -> int:
        """Requests that wait here, for any model."""
        return sum(map(len, self._queues.values()))

    def queued_by_class(self) -> list[int]:
        """The same, by priority."""
        return [sum(queue.of_class(priority) for queue in self._queues.values()) for priority in Priority]

    def usable(self) -> bool:
        """Whether any instance of any model is ready."""
        return any(view.instances for view in self._views.values())

    def ejected(self, now: int) -> list[str]:
        """Names of the instances that take no request now; in a panic a fleet has none."""
        cells = self.health.ejected(now)
        out = {cell for view in self._views.values() if not view.panic for cell in cells if cell in view.cells}
        return [self._names[cell] for cell in sorted(out)]

    def _new_estimator(self, model: str) -> Estimator:
        estimator = Estimator()
        if model in self._remembered:
            estimator.restore(self._remembered[model])
        return estimator

    def _new_queue(self, model: str) -> Queue:
        shares = self._new_shares(model) if self._new_shares is not None else None
        return Queue(self._queue_capacity, self._queue_timeout, 0.0, shares=shares)

    def _configure_parts(self) -> None:
        for view in self._views.values():
            view.configure(self._settings)
            view.count_ejected()
        for model, queue in self._queues.items():
            rate = self._views[model].capacity if model in self._views else 0.0
            queue.configure(self._queue_capacity, self._queue_timeout, rate, self._settings.ttft_target)
