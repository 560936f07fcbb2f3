"""What may be called a metric."""

import re

from telemetry import names

METRIC = re.compile(r"\b(?:headrace|gen_ai)_[a-z0-9_]+")  # a metric's or label's name, wherever it is written


def known() -> set[str]:
    """Every name that /metrics may show, and every label."""
    found = set()
    for metric in names.ALL:
        parts = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}[metric.kind]
        found |= {metric.name + part for part in parts} | set(metric.labels)
    return found
