"""Names: what the workers count has a metric, with as many labels as they give values."""

import re
from pathlib import Path

from telemetry import names

ROOT = Path(__file__).parents[2]
KEY = re.compile(r'"(headrace_[a-z_]+_total)\|([a-z_:]*)')


def _keys() -> set[tuple[str, str]]:
    """Every counter key, or its beginning, that stands in the sources: metric and label values."""
    sources = [path.read_text() for package in ("proxy", "balancer") for path in (ROOT / package).rglob("*.py")]
    return {found for source in sources for found in KEY.findall(source)}


def test_workers_count_what_has_a_name() -> None:
    """A key without a metric would be dropped in silence; a metric without a key would stay at nothing."""
    assert {f"{metric.name}_total" for metric in names.COUNTED} == {name for name, _ in _keys()}


def test_keys_fill_the_labels() -> None:
    """A key gives a value for each label, colons between them."""
    labels = {f"{metric.name}_total": len(metric.labels) for metric in names.COUNTED}
    for name, values in _keys():
        assert labels[name] == len(values.split(":")), (name, values)


def test_every_name_stands_once() -> None:
    """No two metrics share a name."""
    assert len(names.ALL) == len({metric.name for metric in names.ALL})
