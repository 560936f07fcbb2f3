"""What can go wrong with a request, as one tree. Each error carries its policy: the status, whether the client should
try again, whether its connection can go on, and the outcome that is recorded.

    ProxyError
    ├── BadRequest          400  the client's: which field, which rule
    │   └── ParseReject     4xx/5xx  not HTTP as we accept it; closes the connection, counted by rule
    ├── NotFound            404  no such model, path
    ├── NotAllowed          405  no such method here
    ├── RequestTimeout      408  the client was too slow
    ├── TooLarge            413  a body over the limit
    ├── Fault               500  ours: what should never happen did
    ├── Overloaded          429  all saturated; says when to come back
    │   └── SpillRefused    429  to another location only, which then places the request itself
    ├── UpstreamError       502  every attempt failed
    ├── NoInstance          503  none is ready
    └── UpstreamTimeout     504  an engine was too slow
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from balancer.model import Outcome


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


class ProxyError(Exception):
    """Base of all. `message` is what the client reads; `param` names the field at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "error"
    outcome: ClassVar[str] = "upstream_error"
    should_retry: ClassVar[bool | None] = None  # None: the status says enough
    close: ClassVar[bool] = False  # the connection cannot go on

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds

    @property
    def http_status(self) -> int:
        """The status the client gets."""
        return self.status

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON."""
        return msgspec.json.encode(ErrorAnswer(ErrorBody(self.message, self.type, self.param, self.code)))

    def event(self) -> bytes:
        """The error as the last event of a stream that had begun."""
        return b"data: %b\n\n" % self.body()

    def headers(self) -> bytes:
        """Header lines that tell a client whether and when to try again."""
        lines = b""
        if self.retry_after is not None:
            milliseconds = max(1, math.ceil(self.retry_after * 1000))
            lines = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-milliseconds // 1000), milliseconds)
        if self.should_retry is not None:
            lines += b"x-should-retry: %b\r\n" % (b"true" if self.should_retry else b"false")
        return lines


class BadRequest(ProxyError):
    status = 400
    type = "invalid_request_error"
    code = "bad_request"
    outcome = "bad_request"
    should_retry = False


class ParseReject(BadRequest):
    """The bytes break a rule of HTTP, or a limit on it. Nothing of them was forwarded."""

    close = True

    def __init__(self, rule: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.rule = rule
        self.code = rule
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status


class NotFound(BadRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str, known: list[str]) -> None:
        names = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        super().__init__(f"The model {model[:200]!r} does not exist here. Models: {names}", param="model")


class NotAllowed(BadRequest):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(ProxyError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    outcome = "timeout"
    close = True


class TooLarge(BadRequest):
    status = 413
    code = "body_too_large"
    close = True


class Fault(ProxyError):
    """A bug: the request may well be what it needs to show again."""

    code = "internal_error"
    should_retry = False

    def __init__(self) -> None:
        super().__init__("Headrace failed to pass the request on; the fault is its own.")


class Overloaded(ProxyError):
    """Always constructed with `retry_after`."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"
    outcome = "shed"


class SpillRefused(Overloaded):
    """A request of another location is not taken: this one has enough to do, or may not. Its origin knows what to do."""

    code = "spill_refused"

    def __init__(self, location: str, reason: str) -> None:
        why = "has enough to do" if reason == "guard" else "carries no tag of the request's residency"
        super().__init__(f"The location {location} takes no spilled request: it {why}.", retry_after=1.0)


class OutOfResources(Overloaded):
    """No connection, descriptor or memory to spare."""

    status = 503
    code = "out_of_resources"
    close = True


class UpstreamError(ProxyError):
    """Every attempt failed: trying again at once would only add load."""

    status = 502
    code = "upstream_error"
    should_retry: ClassVar[bool | None] = False


class StreamBroken(UpstreamError):
    """The engine failed after the first byte: only the client can start again."""

    should_retry = None


class NoInstance(ProxyError):
    status = 503
    code = "no_instance"
    outcome = "shed"

    def __init__(self, model: str, retry_after: float = 1.0) -> None:
        super().__init__(f"No instance of {model!r} is ready.", param="model", retry_after=retry_after)


class UpstreamTimeout(ProxyError):
    status = 504
    code = "timeout"
    outcome = "timeout"
    should_retry = False


_WHY_SATURATED = {
    "queue_full": "the queue is full",
    "would_wait_too_long": "the wait would pass queue_timeout",
    "displaced": "others that ask for less came first",
    "queue_timeout": "no instance became free within queue_timeout",
}


def saturated(model: str, reason: str, retry_after: float) -> Overloaded:
    """Why a request cannot wait for an instance any longer, or not at all; `retry_after` in s."""
    why = _WHY_SATURATED.get(reason, reason)
    return Overloaded(
        f"All instances of {model!r} are saturated and {why}; try again in {retry_after:.1f} s.",
        retry_after=retry_after,
    )


def spent(outcome: Outcome, attempts: Iterable[tuple[str, int | str]], wait: float = 0.0) -> ProxyError:
    """What the client reads when the last of the attempts (instance, status or outcome) ended so; `wait`: the seconds that a
    newcomer would wait in the queue now.
    """
    tries = ", ".join(f"{instance}: {end}" for instance, end in attempts)
    if outcome is Outcome.STALLED:
        return UpstreamTimeout(f"The engine gave no answer in time ({tries}).")
    if outcome is Outcome.SATURATED:
        return Overloaded(f"Every instance that was tried is saturated ({tries}).", retry_after=max(1.0, wait))
    return UpstreamError(f"No engine could answer ({tries}).")
