"""What a failed attempt means: whose fault it was, and whether another instance may try (DESIGN 7)."""

from balancer.model import Outcome

MAX_RETRIES = 2  # further attempts a request, each at an instance not tried yet

_RETRIED = frozenset({Outcome.REFUSED, Outcome.RESET, Outcome.GARBAGE, Outcome.SERVER_ERROR, Outcome.SATURATED})


def of_status(status: int) -> Outcome:
    """What an answer's status says of the attempt."""
    if status < 400:
        return Outcome.OK
    if status == 429:
        return Outcome.SATURATED
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.CLIENT_FAULT


def may_retry(outcome: Outcome, attempts: int) -> bool:
    """Whether an attempt that ended so before the first byte may be followed by another.

    A stall is not: its time is spent, and its request may still run. `attempts` counts those already made.
    """
    return outcome in _RETRIED and attempts <= MAX_RETRIES
