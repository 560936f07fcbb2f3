"""The table of a request's life is whole: every listed pair leads on, every other raises."""

import itertools

import pytest

from proxy.core.exchange import TABLE, Action, Event, Impossible, State, step


@pytest.mark.parametrize(("state", "event"), [*itertools.product(State, Event)])
def test_every_pair(state: State, event: Event) -> None:
    """A pair is either in the table or impossible."""
    if (state, event) in TABLE:
        assert TABLE[state, event] == step(state, event)
    else:
        with pytest.raises(Impossible, match=f"{event.name} in {state.name}"):
            step(state, event)


def test_a_client_can_leave_whenever_its_request_lives() -> None:
    """No state but the end keeps a request whose client is gone."""
    for state in set(State) - {State.ENDED}:
        assert (State.ENDED, Action.CANCEL) == step(state, Event.CLIENT_GONE)


def test_nothing_is_retried_after_the_head() -> None:
    """Once a byte went to the client there is no way back to routing."""
    reachable, todo = set(), [State.RELAYING]
    while todo:
        state = todo.pop()
        reachable.add(state)
        todo += [to for (of, _), (to, _) in TABLE.items() if of is state and to not in reachable]
    assert {State.RELAYING, State.ENDED} == reachable


def test_the_end_is_the_end() -> None:
    """Nothing happens to a request that has ended: one outcome each."""
    assert not [pair for pair in TABLE if pair[0] is State.ENDED]


def test_every_state_is_reached_and_left() -> None:
    """No state is a trap and none is unreachable."""
    assert set(State) - {State.ROUTING} <= {to for to, _ in TABLE.values()}
    assert set(State) - {State.ENDED} == {state for state, _ in TABLE}
