"""Which failures another instance may make good."""

import pytest

from balancer.model import Outcome
from proxy.core.retry import MAX_RETRIES, may_retry, of_status


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Outcome.OK), (204, Outcome.OK), (302, Outcome.OK), (400, Outcome.CLIENT_FAULT), (404, Outcome.CLIENT_FAULT),
        (429, Outcome.SATURATED), (500, Outcome.SERVER_ERROR), (503, Outcome.SERVER_ERROR),
    ],
)  # fmt: skip
def test_of_status(status: int, expected: Outcome) -> None:
    """A status says whose fault it was."""
    assert expected is of_status(status)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_retries_are_few(outcome: Outcome) -> None:
    """At most two further attempts, and only for what is the instance's fault and over."""
    retried = outcome not in (Outcome.OK, Outcome.CLIENT_FAULT, Outcome.CANCELLED, Outcome.STALLED)
    assert [retried, retried, False] == [may_retry(outcome, n) for n in range(1, MAX_RETRIES + 2)]
