"""What the sweeps do with a request in flight: silence that lasts too long ends it, shorter silence is filled with a
comment, and the balancer hears of attempts that seem stalled. Nothing has a timer of its own.
"""

from typing import TYPE_CHECKING

from balancer.model import Outcome
from proxy.core.deadline import WAITING_COMMENT_NS
from proxy.core.exchange import State

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange

LATE = 2  # times what was predicted
_ANSWERING = (State.SENT, State.RELAYING)
_UNDER_WAY = (State.CONNECTING, State.SENT, State.RELAYING)


def tick(exchange: "Exchange", now: int) -> None:
    """Once a second."""
    deadlines, state = exchange.plane.deadlines, exchange.state
    if now - exchange.accepted > deadlines.request and state in _UNDER_WAY:
        _timeout(exchange, now)
    elif state is State.RELAYING:
        _tick_relay(exchange, now)
    elif deadlines.stalled(state, exchange.since, now):
        _timeout(exchange, now)
    elif (
        state is State.SENT and not exchange.ask.stream and exchange.lease is not None and exchange.decision is not None
    ):
        predicted = int(exchange.decision.ttft * 1e9)
        exchange.lease.elapse(now - exchange.sent, predicted, exchange.plane.tpot_ns)


def _tick_relay(exchange: "Exchange", now: int) -> None:
    relay = exchange.relay
    if exchange.client.paused:
        return
    silence = now - relay.last
    if silence > exchange.plane.deadlines.stream:
        _timeout(exchange, now)
    elif silence > WAITING_COMMENT_NS and relay.commentable and now - exchange.since > WAITING_COMMENT_NS:
        exchange.since = now
        relay.comment()


def cut_off(exchange: "Exchange", now: int) -> bool:
    """Whether it waits for the answer of a location that has not told of itself for too long."""
    abroad = exchange.plane.abroad
    return (
        abroad is not None
        and exchange.state in (State.CONNECTING, State.SENT)
        and not abroad.in_sight(exchange.ask.model, exchange.spilled, now)
    )


def give_up(exchange: "Exchange", now: int) -> None:
    """Ends the attempt as if the connection had been reset: the request has not begun anywhere else."""
    if exchange.task is not None:
        exchange.task.cancel()
        exchange.task = None
    exchange.failed(Outcome.RESET, now)


def _timeout(exchange: "Exchange", now: int) -> None:
    if exchange.task is not None:
        exchange.task.cancel()
        exchange.task = None
        exchange.failed(Outcome.REFUSED, now)
    else:
        exchange.failed(Outcome.STALLED, now)


def late(exchange: "Exchange", now: int) -> bool:
    """Whether a stream waits for its first token longer than twice what was predicted, at an instance of this location."""
    decision = exchange.decision
    return (
        exchange.state in _ANSWERING
        and not exchange.first_token
        and exchange.ask.stream
        and not exchange.spilled
        and decision is not None
        and now - exchange.sent > LATE * decision.ttft * 1e9
    )


def notice(exchange: "Exchange", now: int) -> None:
    """Four times a second while there is no first token: the balancer hears once of an attempt that seems stalled."""
    decision = exchange.decision
    if decision is None or exchange.noticed or not exchange.ask.stream or exchange.lease is None:
        return
    if exchange.task is None and exchange.plane.router.overdue(exchange.ask, decision, now - exchange.sent):
        exchange.noticed = True
        exchange.report(Outcome.STALLED, now)
