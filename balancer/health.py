"""Which instances are out, which are on trial, which are still warming up. One worker's own view, kept by cell.

Three failures in a row eject an instance for 5 s, doubled with each further ejection up to 60 s, +-20 % so that
workers do not return together. When that time is over one request, the trial, may go there: its success brings the
instance back (with slow start), its failure ejects it for longer. Faults of the client and cancelled attempts say
nothing about an instance; a 429 says that it is busy, which is remembered for a second. Every failure also leaves
phantom tokens that decay over 10 s, so that an instance that fails fast does not look idle (BALANCING 3).

Healthy instances have no note here, so the common look-up is one miss in a dict. Reads do not mutate.
"""

import enum
from collections.abc import Container
from random import Random
from typing import NamedTuple

from balancer.model import Outcome

SECOND = 1_000_000_000  # ns
FAILURES = 3  # in a row, to be ejected
EJECTION = 5 * SECOND  # the first; doubled each time
EJECTION_MAX = 60 * SECOND
JITTER = 0.2
PHANTOM_TOKENS = 20_000  # added by a failure
PHANTOM_DECAY = 10 * SECOND
BUSY = SECOND  # how long a 429 is remembered
SLOW_START = 30 * SECOND
SLOW_START_FLOOR = 0.1


class State(enum.Enum):
    """Of one instance, as this worker sees it."""

    HEALTHY = "healthy"
    EJECTED = "ejected"  # out; when its time is over the next request is its trial
    TRIAL = "trial"  # out, and its one trial is in flight


class Event(enum.Enum):
    """What can happen to an instance."""

    BEGIN = "begin"  # a request is sent to it after its ejection's end
    SUCCESS = "success"
    FAILURE = "failure"  # one more, not yet too many
    FAILED_OUT = "failed_out"  # the last failure in a row that is borne
    NOTHING = "nothing"  # an attempt ended that says nothing of its health


class Action(enum.Enum):
    """What a transition does beside changing the state."""

    NONE = "none"
    RESET = "reset"  # forget the failures in a row
    EJECT = "eject"
    RETURN = "return"  # back, with slow start


TRANSITIONS = {
    (State.HEALTHY, Event.BEGIN): (State.HEALTHY, Action.NONE),
    (State.HEALTHY, Event.SUCCESS): (State.HEALTHY, Action.RESET),
    (State.HEALTHY, Event.FAILURE): (State.HEALTHY, Action.NONE),
    (State.HEALTHY, Event.FAILED_OUT): (State.EJECTED, Action.EJECT),
    (State.HEALTHY, Event.NOTHING): (State.HEALTHY, Action.NONE),
    # While ejected only attempts from before (or from a panic) end; they neither shorten nor lengthen it.
    (State.EJECTED, Event.BEGIN): (State.TRIAL, Action.NONE),
    (State.EJECTED, Event.SUCCESS): (State.EJECTED, Action.NONE),
    (State.EJECTED, Event.FAILURE): (State.EJECTED, Action.NONE),
    (State.EJECTED, Event.FAILED_OUT): (State.EJECTED, Action.NONE),
    (State.EJECTED, Event.NOTHING): (State.EJECTED, Action.NONE),
    (State.TRIAL, Event.BEGIN): (State.TRIAL, Action.NONE),
    (State.TRIAL, Event.SUCCESS): (State.HEALTHY, Action.RETURN),
    (State.TRIAL, Event.FAILURE): (State.EJECTED, Action.EJECT),
    (State.TRIAL, Event.FAILED_OUT): (State.EJECTED, Action.EJECT),
    (State.TRIAL, Event.NOTHING): (State.EJECTED, Action.NONE),  # the slot is given back: the next one is the trial
}

EVENTS = {
    Outcome.OK: Event.SUCCESS,
    Outcome.REFUSED: Event.FAILURE,
    Outcome.RESET: Event.FAILURE,
    Outcome.STALLED: Event.FAILURE,
    Outcome.GARBAGE: Event.FAILURE,
    Outcome.SERVER_ERROR: Event.FAILURE,
    Outcome.SATURATED: Event.NOTHING,
    Outcome.CLIENT_FAULT: Event.NOTHING,
    Outcome.CANCELLED: Event.NOTHING,
}


class Note(NamedTuple):
    """What is remembered of one instance that failed, was busy or came back lately. Times in ns, 0: never."""

    state: State = State.HEALTHY
    failures: int = 0  # in a row
    ejections: int = 0  # without a success between them
    until: int = 0  # the end of its ejection
    returned: int = 0  # when its trial succeeded
    phantoms: float = 0.0  # tokens at the last failure
    failed: int = 0  # when that was
    busy_until: int = 0  # a 429's mark

    def usable(self, now: int) -> bool:
        """Whether a request may go there, were it as a trial."""
        return self.state is State.HEALTHY or (self.state is State.EJECTED and now >= self.until)

    def phantom(self, now: int) -> int:
        """Tokens left of past failures: linear from the last one to 0 ten seconds later."""
        left = PHANTOM_DECAY - (now - self.failed)
        return int(self.phantoms * left / PHANTOM_DECAY) if left > 0 else 0

    def spent(self, now: int) -> bool:
        """Nothing in it matters any more."""
        return (
            self.state is State.HEALTHY
            and not self.failures
            and now >= self.busy_until
            and not self.phantom(now)
            and (not self.returned or now - self.returned >= SLOW_START)
        )


def slow_start(since: int, now: int) -> float:
    """The share of its weight that an instance has which joined or returned at `since` (Envoy's form; 0: long ago)."""
    if not since or now - since >= SLOW_START:
        return 1.0
    return max(SLOW_START_FLOOR, (now - since) / SLOW_START)


class Health:
    """The notes of a worker's instances."""

    __slots__ = ("_random", "notes", "out")

    def __init__(self, random: Random) -> None:
        self._random = random
        self.notes: dict[int, Note] = {}  # by cell; an instance without one is healthy. Readers do not write
        self.out: set[int] = set()  # cells that are ejected or on trial. Readers do not write

    def begin(self, cell: int, now: int) -> None:
        """A request goes to this instance: its trial, if its ejection is over."""
        note = self.notes.get(cell)
        if note is not None and note.usable(now):
            self._apply(cell, note, Event.BEGIN, now)

    def report(self, cell: int, outcome: Outcome, now: int, trial: bool = True) -> bool:
        """An attempt ended; True if the instance was ejected or came back by it.

        `trial`: False if the caller knows that this attempt was not the trial (it is older); then it leaves a trial in
        flight as it is.
        """
        note = self.notes.get(cell)
        event = EVENTS[outcome]
        if note is None:
            if event is Event.SUCCESS or outcome in (Outcome.CLIENT_FAULT, Outcome.CANCELLED):
                return False
            note = Note()
        if event is Event.FAILURE:
            failures = note.failures + 1
            event = Event.FAILED_OUT if failures >= FAILURES else event
            phantoms = note.phantom(now) + PHANTOM_TOKENS
            note = note._replace(failures=failures, phantoms=phantoms, failed=now)
        elif outcome is Outcome.SATURATED:
            note = note._replace(busy_until=now + BUSY)
        if note.state is State.TRIAL and not trial:
            self.notes[cell] = note
            return False
        return self._apply(cell, note, event, now)

    def ejected(self, now: int) -> list[int]:
        """Cells that take no request now: their ejection lasts, or their trial is in flight."""
        return sorted(cell for cell in self.out if not self.notes[cell].usable(now))

    def forget(self, keep: Container[int], now: int) -> None:
        """Drop all but the cells in `keep`, and what no longer matters of these."""
        self.notes = {cell: note for cell, note in self.notes.items() if cell in keep and not note.spent(now)}
        self.out = {cell for cell in self.out if cell in keep}

    def _apply(self, cell: int, note: Note, event: Event, now: int) -> bool:
        state, action = TRANSITIONS[note.state, event]
        note = note._replace(state=state)
        if action is Action.EJECT:
            length = min(EJECTION_MAX, EJECTION * 2 ** min(note.ejections, 8))
            jitter = 1 + JITTER * (2 * self._random.random() - 1)
            note = note._replace(ejections=note.ejections + 1, until=now + int(length * jitter))
            self.out.add(cell)
        elif action is Action.RETURN:
            note = note._replace(failures=0, ejections=0, until=0, returned=now)
            self.out.discard(cell)
        elif action is Action.RESET:
            note = note._replace(failures=0)
        if note.spent(now):
            self.notes.pop(cell, None)
        else:
            self.notes[cell] = note
        return action in (Action.EJECT, Action.RETURN)
