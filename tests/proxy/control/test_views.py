"""What the admin API shows: figures from records, in ms and words."""

import msgspec
import pytest

from balancer.model import REASONS
from proxy.control import views
from tests.support.records import MS, START, attempt, record, refusal


def test_summary() -> None:
    """One line of a request: the engine's token count if it told one, else the estimate."""
    shown = views.summary(record())
    assert (100.0, 500.0, 210, 41) == tuple(
        shown[key] for key in ("ttft_ms", "total_ms", "prompt_tokens", "output_tokens")
    )
    assert 200 == views.summary(record(prompt_tokens=0))["prompt_tokens"]


def test_summary_names_the_last_instance() -> None:
    """After a retry the instance that answered counts."""
    shown = views.summary(record(attempts=[attempt("gpu-2", outcome="reset", status=0), attempt("gpu-1")]))
    assert ("gpu-1", 2) == (shown["instance"], shown["attempts"])


def test_moments_that_never_came_are_left_out() -> None:
    """A refusal has an end and nothing before it."""
    assert {"done": 500.0} == views.detail(refusal())["timeline"]


def test_timeline_in_order() -> None:
    """Moments in ms since the head, each not before the one named before it."""
    shown = views.detail(record(queued=START + MS // 10))["timeline"]
    assert ["queued", "routed", "connected", "sent", "first_byte", "first_token", "last_byte", "done"] == list(shown)
    assert sorted(shown.values()) == list(shown.values())


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_in_words(reason: str) -> None:
    """No code without its sentence."""
    assert REASONS[reason] == views.detail(record(reason=reason))["why"]


def test_why_without_a_decision() -> None:
    """What kept it from an instance."""
    assert "no instance was chosen: bad_request" == views.detail(refusal())["why"]
    assert "no instance was chosen: shed" == views.detail(record(reason="", outcome="shed"))["why"]


def test_all_of_it_is_json() -> None:
    """Nothing in a view that JSON cannot hold."""
    for shown in (views.detail(record()), views.summary(refusal())):
        assert shown == msgspec.json.decode(msgspec.json.encode(shown))


@pytest.mark.parametrize(
    ("problem", "served", "expected"),
    [
        ("", (), ""),
        ("", ("llama", "other"), ""),
        ("", ("other",), "its /v1/models does not list 'llama'"),
        ("GET /health answered 503", ("other",), "GET /health answered 503"),
    ],
)
def test_problem(problem: str, served: tuple[str, ...], expected: str) -> None:
    """What the probe says, else a model that the engine does not list."""
    assert expected == views._problem(problem, served, "llama")
