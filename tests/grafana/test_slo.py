"""What is promised hangs together with what Headrace measures and says."""

import pytest

from grafana import slo
from proxy import config
from proxy.core import errors
from telemetry import names

OURS = ("upstream_error", "timeout", "shed")  # outcomes that are not the client's
NOT_JUDGED = {errors.SpillRefused.code, errors.RequestTimeout.code, errors.ProxyError.code}


def every(kind: type[errors.ProxyError]) -> set[type[errors.ProxyError]]:
    """An error and all below it."""
    return {kind}.union(*(every(below) for below in kind.__subclasses__()))


def test_failures_are_ours() -> None:
    """The codes are those of errors that are not the client's: neither its slowness, nor what goes home again."""
    codes = {kind.code for kind in every(errors.ProxyError) if kind.outcome in OURS} - NOT_JUDGED
    assert codes == set(slo.FAILED.split("|"))


def test_late_is_what_the_balancer_aims_at() -> None:
    """The limit is the default target, and a bucket's bound: a quantile in between would be a guess."""
    assert config.Balancing().ttft_target == slo.LATE
    assert slo.LATE in names.TTFT.buckets


@pytest.mark.parametrize("burn", slo.BURNS, ids=lambda burn: burn.long)
def test_burns(burn: slo.Burn) -> None:
    """Both windows are recorded; what is fast is a page; one failure of the least traffic is no page."""
    assert {burn.long, burn.short} <= set(slo.WINDOWS)
    assert ("page" if burn.rate > 3 else "ticket") == burn.severity
    if burn.severity == "page":
        assert 1 / slo.LEAST < burn.rate * slo.FAILURES.budget


def test_rules_name_what_is_recorded() -> None:
    """Alerts ask for series that the recording rules make, and for all of them."""
    made = {str(rule["record"]) for rule in slo.recording()}
    for rule in slo.alerts():
        words = {word for word in str(rule["expr"]).split() if ":" in word}
        assert len(words) == 3
        assert words <= made
