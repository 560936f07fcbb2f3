"""Other locations, as one worker knows and uses them: who is asked for a request, whose requests are taken.

hear      what the agent's mesh knows of one (`Remote`): its digests go to the rule of `balancer.spill`, one for each model
choose    the rule, asked for a request that came from a client; the view of this location is at most 20 ms old, with
          what was placed here since
sign      the hop header of a request that leaves
admit     whose hop a request carries, if anybody's; a forged, old or repeated one is counted, and is nobody's
"""

from collections import OrderedDict, deque
from collections.abc import Collection
from random import Random
from typing import TYPE_CHECKING, Protocol

import msgspec

from balancer.digest import Context, Speed
from balancer.model import Ask, Candidate, Decision, Digest, Instance, Outcome
from balancer.spill import Cost, Forward, Peer, Spillover, Verdict, refuses
from proxy.core import hop as hops
from proxy.core.headers import Head
from proxy.core.hop import Hop, HopError
from proxy.net.site import Site, Upstream

if TYPE_CHECKING:
    from proxy.net.plane import Plane

VIEW_NS = 20_000_000  # how old the view of this location may be
KEPT_KEYS = 8  # secrets of a location by which its hops are taken; a new stream makes a new one
REMEMBERED = 65_536  # hops that must not come again


class Remote(Protocol):
    """See `proxy.control.messages.Remote`."""

    @property
    def location(self) -> str: ...
    @property
    def rtt(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def digests(self) -> tuple[Digest, ...]: ...
    @property
    def accept(self) -> tuple[bytes, ...]: ...
    @property
    def sign(self) -> tuple[bytes, ...]: ...


class _Keys:
    """What was agreed on with one location."""

    __slots__ = ("accept", "offset", "sign")

    def __init__(self) -> None:
        self.accept: deque[bytes] = deque(maxlen=KEPT_KEYS)
        self.sign: tuple[bytes, ...] = ()
        self.offset = 0


class Abroad:
    """One worker's view of the other locations. `workers`: how many this location has."""

    def __init__(self, plane: "Plane", random: Random, workers: int) -> None:
        self._plane = plane
        self._random = random
        self._workers = workers
        self._site: Site = plane.site
        self._rules: dict[str, Spillover] = {}  # by model
        self._keys: dict[str, _Keys] = {}
        self._seen: OrderedDict[bytes, int] = OrderedDict()  # MACs, and when they came
        self._views: dict[str, Digest] = {}
        self._contexts: dict[str, Context] = {}
        self._speeds: dict[str, Speed] = {}

    def configure(self, site: Site) -> None:
        """Takes a new Site; what is known of locations that stay is kept."""
        gone = self._keys.keys() - site.remotes.keys()
        again = site.interval != self._site.interval
        self._site = site
        self._views.clear()
        for location in gone:
            del self._keys[location]
        self._rules = {} if again else {model: rule for model, rule in self._rules.items() if model in site.upstreams}
        for rule in self._rules.values():
            for location in gone:
                rule.leave(location)
        for model in site.upstreams:
            if model not in self._rules:
                self._rules[model] = Spillover(self._random, site.interval, 1 / self._workers)

    def hear(self, remote: Remote, now: int) -> None:
        """Takes news of a location."""
        if remote.location not in self._site.remotes:
            return
        keys = self._keys.setdefault(remote.location, _Keys())
        keys.sign, keys.offset = remote.sign, remote.offset
        for key in remote.accept:
            if key not in keys.accept:
                keys.accept.append(key)
        for digest in remote.digests:
            rule = self._rules.get(digest.model)
            if rule is None:
                continue
            peer = rule.peer(remote.location)
            if peer is None:
                rule.join(remote.location, peer := Peer(remote.rtt))
            peer.rtt = remote.rtt
            rule.see(digest, now)

    # who leaves

    def choose(self, ask: Ask, now: int, been: Collection[str] = (), *, gone: bool = False) -> tuple[Verdict, int, int]:
        """The rule's verdict for a request of our own client, with its prompt and predicted output tokens. `been`: locations
        that did not take it; `gone`: nobody here takes it either.
        """
        router = self._plane.router
        estimator = router.estimator(ask.model)
        prompt = estimator.prompt_tokens(ask.prompt_bytes)
        output = estimator.output_tokens(prompt, ask.max_tokens)
        tags = self._site.residency.get(ask.model)
        rule, here = self._rules[ask.model], self.here(ask.model, now)
        if gone:
            here = msgspec.structs.replace(here, capacity=0.0)
        unsigned = [location for location, keys in self._keys.items() if not keys.sign]
        verdict = rule.decide(here, prompt, output, now, tags=(tags,) if tags else (), without=(*been, *unsigned))
        return verdict, prompt, output

    def decision(self, verdict: Verdict, prompt: int, output: int) -> Decision:
        """The verdict as a Decision, with what was weighed: this location first."""
        upstream = self._site.remotes[verdict.location]
        rows = tuple(_candidate(cost) for cost in (verdict.local, *verdict.candidates))
        best = min(verdict.candidates, key=lambda cost: cost.total)
        return Decision(
            Instance(upstream.cell, verdict.location),
            rows,
            "spill",
            prompt,
            output,
            self._plane.router.version,
            best.total,
        )

    def here(self, model: str, now: int) -> Digest:
        """This location as it is, or was a moment ago."""
        view = self._views.get(model)
        if view is None or now - view.ts > VIEW_NS:
            context = self._contexts.setdefault(model, Context())
            speed = self._speeds.setdefault(model, Speed()).coefficients
            view = self._plane.router.here(self._site.location, model, now, context.tokens, speed, self._workers)
            self._views[model] = view
        return view

    def placed(self, model: str, prompt: int, output: int) -> None:
        """A request was placed here: the view shows it without being made anew."""
        self._contexts.setdefault(model, Context()).observe(prompt, output)
        view = self._views.get(model)
        if view is not None:
            self._views[model] = msgspec.structs.replace(view, work=view.work + prompt, running=view.running + 1)

    def observe(self, model: str, cell: int, tpot: float) -> None:
        """A stream of an instance here took `tpot` s a token."""
        context = self._contexts.setdefault(model, Context()).tokens
        self._speeds.setdefault(model, Speed()).observe(tpot, self._plane.router.running(cell) + 1, context)

    def forwarded(self, model: str, location: str, prompt: int, now: int) -> Forward:
        """A request is on its way there; to be followed by one `ended`."""
        return self._rules[model].forwarded(location, prompt, now)

    def ended(self, model: str, location: str, forward: Forward, outcome: Outcome, now: int) -> None:
        """How that went."""
        rule = self._rules.get(model)
        if rule is None:
            return
        if outcome is Outcome.SATURATED:
            rule.refused(location, forward, now)
        elif outcome not in (Outcome.OK, Outcome.CANCELLED, Outcome.CLIENT_FAULT):
            rule.failed(location, forward, now)
        rule.ended(location, well=outcome is Outcome.OK)

    def in_sight(self, model: str, location: str, now: int) -> bool:
        """Whether the location still tells of itself."""
        rule = self._rules.get(model)
        return rule is not None and rule.in_sight(location, now)

    def sign(self, upstream: Upstream, ask: Ask, request_id: str, head: Head, body: bytes, now: int) -> bytes:
        """The hop header's line for a request that leaves."""
        tags = self._site.residency.get(ask.model)
        hop = Hop(
            self._site.location, upstream.location, ask.tenant, ask.priority, (tags,) if tags else (), now, request_id
        )
        keys = self._keys.get(upstream.location)
        signed = hops.write(hop, keys.sign if keys is not None else (), head.method, upstream.prefix + head.path, body)
        return b"x-headrace-hop: %b\r\n" % signed

    # who comes

    def admit(self, head: Head, body: bytes, now: int) -> Hop | None:
        """The hop of a request that another location spilled to us; None for a hop header that proves nothing."""
        try:
            given = hops.read(head.hop)
            keys = self._keys.get(given.hop.origin)
            if keys is None:
                raise HopError("unknown_origin")
            mac = hops.verify(given, keys.accept, self._site.location, now + keys.offset, head.method, head.path, body)
            self._once(mac, now)
        except HopError as error:
            self._plane.count(f"headrace_hops_rejected_total|{error}")
            return None
        return given.hop

    def _once(self, mac: bytes, now: int) -> None:
        seen = self._seen
        if mac in seen:
            raise HopError("replayed")
        seen[mac] = now
        while len(seen) > REMEMBERED or now - next(iter(seen.values())) > 2 * hops.WINDOW:
            seen.popitem(last=False)

    def refuses(self, ask: Ask, hop: Hop, now: int) -> str:
        """Why this location does not take a hop: "guard" or "residency"; "" if it does."""
        tags = self._site.tags
        own = self._site.residency.get(ask.model)
        if any(not set(tags).intersection(allowed) for allowed in (*hop.residency, *((own,) if own else ()))):
            return "residency"
        view = self.here(ask.model, now)
        return "guard" if refuses(view.work, view.capacity, self._site.ttft_target) else ""


def _candidate(cost: Cost) -> Candidate:
    """A location among the candidates of a record: its whole cost is the score, what waits there its prefill."""
    return Candidate(cost.location, cost.total, int(cost.work), 0, 0, 0, 0.0, 1.0)
