"""Paths become patterns; which of them ask a model is said here and nowhere else."""

import pytest

from proxy.core import routes


@pytest.mark.parametrize(
    ("path", "pattern", "asks", "usage_option"),
    [
        (b"/v1/chat/completions", "/v1/chat/completions", True, True),
        (b"/v1/chat/completions?a=secret", "/v1/chat/completions", True, True),
        (b"/v1/completions", "/v1/completions", True, True),
        (b"/v1/embeddings", "/v1/embeddings", True, False),
        (b"/v1/responses", "/v1/responses", True, False),
        (b"/v1/models", "/v1/models", False, False),
        (b"/v1/models/secret", "/v1/models/{id}", False, False),
        (b"/v1/rerank", "/v1/*", True, False),
        (b"/v1", "other", False, False),
        (b"/metrics/secret", "other", False, False),
    ],
)
def test_of(path: bytes, pattern: str, asks: bool, usage_option: bool) -> None:
    """No part of a path that a client made up is in its pattern."""
    route = routes.of(path)
    assert (pattern, asks, usage_option) == (route.pattern, route.asks, route.usage_option)
