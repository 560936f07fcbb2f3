"""Silence has a limit in every state but the queue, which keeps its own."""

import pytest

from proxy.core.deadline import SECOND, Deadlines
from proxy.core.exchange import State
from proxy.core.settings import Limits


@pytest.mark.parametrize(
    ("state", "seconds"),
    [
        (State.CONNECTING, 5),
        (State.SENT, 300),
        (State.RELAYING, 7),
        (State.ROUTING, None),
        (State.WAITING, None),
        (State.ENDED, None),
    ],
)
def test_stalled(state: State, seconds: int | None) -> None:
    """Exactly the limit is still in time."""
    deadlines = Deadlines(Limits(stream_idle_timeout=7))
    if seconds is None:
        assert not deadlines.stalled(state, 0, 10**18)
    else:
        assert [False, True] == [deadlines.stalled(state, 5, 5 + seconds * SECOND + more) for more in (0, 1)]
