"""What the estimators have learned, kept where a worker's death does not reach it.

A worker tells the agent now and then, and when it drains; the agent tells every worker that comes. Whoever has seen more
requests of a model is right. With `telemetry.records` it is also kept in that directory, over the location's restarts.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from balancer.estimate import Estimator

log = logging.getLogger("headrace.learned")
FILE = "estimates.json"
Snapshots = dict[str, dict[str, Any]]  # of estimators, by model


def samples(snapshot: Mapping[str, Any]) -> int:
    """How many requests taught an estimator; ValueError if this is no snapshot."""
    estimator = Estimator()
    estimator.restore(snapshot)
    return estimator.samples


class Learned:
    """The best snapshot of every model."""

    def __init__(self) -> None:
        self.models: Snapshots = {}
        self.changed = False  # since the last `save`

    def merge(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes what knows more than what is here; what is no snapshot is not taken."""
        for model, snapshot in told.items():
            with contextlib.suppress(ValueError):
                if samples(snapshot) > (samples(self.models[model]) if model in self.models else 0):
                    self.models[model] = dict(snapshot)
                    self.changed = True

    def keep(self, models: Iterable[str]) -> None:
        """Forgets models that are no longer served."""
        served = set(models)
        self.models = {model: snapshot for model, snapshot in self.models.items() if model in served}

    def load(self, directory: str) -> None:
        """Takes the directory's file, if there is one."""
        path = Path(directory) / FILE
        try:
            self.merge(msgspec.json.decode(path.read_bytes(), type=Snapshots))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: %s; the estimates begin anew", path, error)

    def save(self, directory: str) -> None:
        """Writes the file whole, or leaves the old one. Blocks."""
        if not self.changed:
            return
        path = Path(directory) / FILE
        fresh = path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(self.models))
            os.replace(fresh, path)
            self.changed = False
        except OSError as error:
            log.warning("%s: %s", path, error)
