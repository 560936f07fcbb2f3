"""Prometheus itself, as Debian has it."""

import os
import shutil
from pathlib import Path

import pytest

from fixtures.demo_processes import free_ports
from tests.support.process import Child


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Where it is not installed the test is skipped, under CI it fails."""
    path = shutil.which(name)
    if path is None:
        why = f"{name} is not installed (Debian's package is called prometheus)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return path


class Server(Child):
    """Prometheus with this config on a free loopback port."""

    def __init__(self, config: Path, data: Path) -> None:
        (port,) = free_ports(1)
        argv = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
        argv += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
        super().__init__(argv, "Server is ready to receive web requests")
        self.url = f"http://127.0.0.1:{port}"
