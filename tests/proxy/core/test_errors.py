"""What clients read when something went wrong."""

import json

import pytest

from balancer.model import Outcome
from proxy.core import errors


def tree(kind: type[errors.ProxyError]) -> list[type[errors.ProxyError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in tree(sub))]


def test_openai_shape() -> None:
    """Errors have OpenAI's four members, nothing else."""
    error = errors.ModelNotFound("gpt-9", ["llama", "qwen"])
    expected = {
        "error": {
            "message": "The model 'gpt-9' does not exist here. Models: llama, qwen",
            "type": "invalid_request_error", "param": "model", "code": "model_not_found",
        }
    }  # fmt: skip
    assert expected == json.loads(error.body())
    assert b"data: " + error.body() + b"\n\n" == error.event()


def test_statuses() -> None:
    """Every error of the tree has the status the design names, and a recorded outcome."""
    expected = {
        "ProxyError": 500, "BadRequest": 400, "ParseReject": 400, "NotFound": 404, "ModelNotFound": 404, "NotAllowed": 405,
        "RequestTimeout": 408, "TooLarge": 413, "Overloaded": 429, "SpillRefused": 429, "OutOfResources": 503,
        "UpstreamError": 502,
        "StreamBroken": 502, "Fault": 500, "NoInstance": 503, "UpstreamTimeout": 504,
    }  # fmt: skip
    assert expected == {kind.__name__: kind.status for kind in tree(errors.ProxyError)}
    outcomes = {"client_gone", "shed", "upstream_error", "timeout", "bad_request"}
    assert not {kind.outcome for kind in tree(errors.ProxyError)} - outcomes


def test_retry_hints() -> None:
    """When to come back, and whether."""
    assert b"retry-after: 2\r\nretry-after-ms: 1250\r\n" == errors.Overloaded("busy", retry_after=1.25).headers()
    assert b"retry-after: 1\r\nretry-after-ms: 1\r\n" == errors.Overloaded("busy", retry_after=0.0).headers()
    assert b"x-should-retry: false\r\n" == errors.UpstreamError("no").headers()
    assert b"" == errors.StreamBroken("cut").headers()


def test_long_lists_are_cut() -> None:
    """A long list of models does not make a long message."""
    error = errors.ModelNotFound("x" * 1000, [f"m{i}" for i in range(1000)])
    assert len(error.message) < 500


def test_parse_reject_carries_its_rule() -> None:
    """The rule is the code, and the status may differ from 400."""
    error = errors.ParseReject("version", "no", 505)
    assert ("version", "version", 505, True) == (error.rule, error.code, error.http_status, error.close)


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (Outcome.STALLED, 504, "gave no answer in time (a: stalled, b: 503)"),
        (Outcome.SATURATED, 429, "that was tried is saturated (a: stalled, b: 503)"),
        (Outcome.RESET, 502, "No engine could answer (a: stalled, b: 503)"),
    ],
)
def test_when_all_attempts_are_spent(outcome: Outcome, status: int, text: str) -> None:
    """The last failure says which error; all attempts are named."""
    error = errors.spent(outcome, [("a", "stalled"), ("b", 503)])
    assert status == error.http_status
    assert text in error.message


def test_saturated() -> None:
    """In plain words, with the time to come back."""
    error = errors.saturated("m", "queue_full", 2.5)
    assert "All instances of 'm' are saturated and the queue is full; try again in 2.5 s." == error.message
    assert b"retry-after: 3\r\nretry-after-ms: 2500\r\n" == error.headers()


def test_saturated_instances_say_when() -> None:
    """When to come back is what a newcomer would wait, but not at once."""
    tries = [("a", 429)]
    assert [1.0, 7.5] == [errors.spent(Outcome.SATURATED, tries, wait).retry_after for wait in (0.0, 7.5)]
