"""One request's life as a table. The driver (`proxy.net.exchange`) looks up what an event means in a state, moves on
and does what the action says; it decides nothing itself. A pair that is not listed cannot happen and raises.

    ROUTING ──▶ WAITING ──▶ CONNECTING ──▶ SENT ──▶ RELAYING ──▶ ENDED
       │  ▲                     │            │
       │  └──── failed ─────────┴────────────┘   (before the first byte: another instance, or an answer of ours)
       └──────▶ CONNECTING
"""

import enum
from typing import NoReturn


class State(enum.IntEnum):
    ROUTING = 0  # no instance has it
    WAITING = 1  # in the queue
    CONNECTING = 2  # an instance is chosen, its connection is being made
    SENT = 3  # written to the engine, no answer yet
    RELAYING = 4  # the answer's head went to the client: no way back
    ENDED = 5


class Event(enum.IntEnum):
    CHOSEN = 0  # there is a decision
    SATURATED = 1  # nobody can take it now
    REFUSED = 2  # we answer with an error of our own
    CONNECTED = 3
    STALE = 4  # a pooled connection was closed before it carried a byte of the answer
    FAILED = 5  # the attempt failed
    HEAD = 6  # an answer's head that goes to the client
    END = 7  # the answer is whole
    CLIENT_GONE = 8


class Action(enum.IntEnum):
    CONNECT = 0  # take a connection to the instance chosen
    ENQUEUE = 1
    SEND = 2
    RETRY = 3  # route again without those tried, or answer with what went wrong
    RELAY = 4
    FINISH = 5
    BREAK = 6  # tell the client inside the stream, close its connection
    ANSWER = 7  # our own error to the client
    CANCEL = 8  # stop the engine's work


TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (State.ROUTING, Event.CHOSEN): (State.CONNECTING, Action.CONNECT),
    (State.ROUTING, Event.SATURATED): (State.WAITING, Action.ENQUEUE),
    (State.ROUTING, Event.REFUSED): (State.ENDED, Action.ANSWER),
    (State.ROUTING, Event.CLIENT_GONE): (State.ENDED, Action.CANCEL),
    (State.WAITING, Event.CHOSEN): (State.CONNECTING, Action.CONNECT),
    (State.WAITING, Event.REFUSED): (State.ENDED, Action.ANSWER),
    (State.WAITING, Event.CLIENT_GONE): (State.ENDED, Action.CANCEL),
    (State.CONNECTING, Event.CONNECTED): (State.SENT, Action.SEND),
    (State.CONNECTING, Event.FAILED): (State.ROUTING, Action.RETRY),
    (State.CONNECTING, Event.CLIENT_GONE): (State.ENDED, Action.CANCEL),
    (State.SENT, Event.HEAD): (State.RELAYING, Action.RELAY),
    (State.SENT, Event.STALE): (State.CONNECTING, Action.CONNECT),
    (State.SENT, Event.FAILED): (State.ROUTING, Action.RETRY),
    (State.SENT, Event.CLIENT_GONE): (State.ENDED, Action.CANCEL),
    (State.RELAYING, Event.END): (State.ENDED, Action.FINISH),
    (State.RELAYING, Event.FAILED): (State.ENDED, Action.BREAK),
    (State.RELAYING, Event.CLIENT_GONE): (State.ENDED, Action.CANCEL),
}


class Impossible(Exception):
    """An event that cannot happen in a state: a bug of ours."""


# The same by two indices: the driver looks here, a frame and a hash cheaper; what is not in the table is a TypeError.
ROWS: list[list[tuple[State, Action] | None]] = [[TABLE.get((state, event)) for event in Event] for state in State]


def impossible(state: State, event: Event) -> NoReturn:
    """Raises Impossible."""
    raise Impossible(f"{event.name} in {state.name}")


def step(state: State, event: Event) -> tuple[State, Action]:
    """The next state and what to do; raises Impossible for a pair that is not in the table."""
    return ROWS[state][event] or impossible(state, event)
