"""The house rules that no linter knows. Which package may import which is in pyproject.toml (import-linter)."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("balancer", "telemetry", "proxy", "fixtures", "grafana")
IMPURE = ("balancer.board", "balancer.mesh")  # the balancer's two doors to the world
PURE = ("balancer", "proxy.core", "telemetry.record", "telemetry.context", "telemetry.tuner")
DENIED_MODULES = {
    *("time", "datetime", "os", "sys", "io", "pathlib", "socket", "ssl", "select", "selectors", "signal", "mmap"),
    *("asyncio", "uvloop", "threading", "multiprocessing", "subprocess", "concurrent", "logging", "secrets", "uuid"),
    *("aiohttp", "grpc", "opentelemetry", "prometheus_client", "httptools", "yaml"),
}
DENIED_CALLS = {"open", "print", "input"}
ALLOWED_OF_RANDOM = {"Random"}

# Modules without a test file of their own, and why.
UNTESTED = {
    **dict.fromkeys(
        ("proxy.config_form", "proxy.config_kinds", "proxy.config_reading", "proxy.config_rules", "proxy.config_yaml"),
        "a part of proxy.config, whose tests go through it: a file in, its problems out",
    ),
    "balancer.mesh.mesh_pb2": "made by protoc; tests/balancer/mesh/test_wire.py holds it against its source",
    **dict.fromkeys(
        ("grafana.overview", "grafana.balance", "grafana.spillover", "grafana.generate"),
        "dashboards as data, and what writes them; tests/grafana/test_dashboards.py holds them to the house's rules",
    ),
    "proxy.control.messages": "values without behaviour",
    "proxy.net.site": "values without behaviour",
    "telemetry.names": "names as data; tests/test_docs.py holds them against their uses",
}
HEAVY = ("opentelemetry", "grpc", "aiohttp", "prometheus_client", "yaml")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project with its file."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def within(module: str, names: tuple[str, ...]) -> bool:
    """Is it one of these modules or in one of them?"""
    return any(module == name or module.startswith(name + ".") for name in names)


def impurities(tree: ast.AST) -> Iterator[str]:
    """What in a module's source depends on a clock, on chance or on the outer world."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {a.name}" for a in names if a.name.split(".")[0] in DENIED_MODULES)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                if module.split(".")[0] in DENIED_MODULES:
                    yield f"{node.lineno}: from {module}"
                if module == "random" and {a.name for a in names} - ALLOWED_OF_RANDOM:
                    yield f"{node.lineno}: the global generator of random"
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr not in ALLOWED_OF_RANDOM:
                if "random" in imported(tree):
                    yield f"{node.lineno}: random.{attr}"
            case ast.Call(func=ast.Name(id=name)) if name in DENIED_CALLS:
                yield f"{node.lineno}: {name}()"


def imported(tree: ast.AST) -> set[str]:
    """Names bound by plain `import` statements."""
    return {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}


@pytest.mark.parametrize(
    ("module", "path"),
    [pytest.param(*m, id=m[0]) for m in modules() if within(m[0], PURE) and not within(m[0], IMPURE)],
)
def test_pure(module: str, path: Path) -> None:
    """Pure layers get the time and their randomness as arguments and touch nothing outside."""
    assert [] == list(impurities(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from asyncio import sleep",
        "from random import choice",
        "import random\nrandom.random()",
        "print(1)",
        "def f():\n    import socket",
    ],
)
def test_impurities_are_seen(source: str) -> None:
    """The check above finds each kind of impurity."""
    assert 1 == len(list(impurities(ast.parse(source))))


def test_pure_source_passes() -> None:
    """A `Random` that is passed in is fine, whatever its name."""
    assert [] == list(impurities(ast.parse("from random import Random\ndef f(random: Random):\n    random.random()")))


@pytest.mark.parametrize(
    ("module", "path"),
    [pytest.param(*m, id=m[0]) for m in modules() if m[1].name not in ("__init__.py", "__main__.py")],
)
def test_each_module_has_its_test(module: str, path: Path) -> None:
    """Tests mirror the packages: proxy/net/client.py is tested by tests/proxy/net/test_client.py."""
    relative = path.relative_to(ROOT)
    test = ROOT / "tests" / relative.with_name(f"test_{relative.name}")
    assert (module in UNTESTED) != test.exists(), f"{test.relative_to(ROOT)}: {UNTESTED.get(module, 'is missing')}"


def test_worker_imports_nothing_heavy() -> None:
    """A worker process loads neither an SDK nor a second HTTP stack (DESIGN: what a worker must not import)."""
    code = "import proxy.control.worker, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert set() == set(HEAVY) & set(run.stdout.split())


def test_no_machine_is_mentioned() -> None:
    """No tracked file names a path of one machine, or a package registry's host."""
    forbidden = re.compile(r"/(?:work|root|home|opt)/\w|pypi\.org|pythonhosted|npmjs|crates\.io|deb\.debian")
    command = ["git", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    hits = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        lines = path.read_text(errors="replace").splitlines()
        hits += [f"{name}:{n}" for n, line in enumerate(lines, 1) if forbidden.search(line)]
    assert [] == hits
