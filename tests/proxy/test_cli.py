"""The command line: what each command takes, says and returns."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fixtures.demo_processes import free_ports
from fixtures.engine.model import PROFILES
from proxy import cli

CONFIG = "location: ams\nlisten: 127.0.0.1:8080\nmodels:\n  llama:\n    engines: [{url: 'http://127.0.0.1:8000'}]\n"
COMMANDS = cli.main.commands


def invoke(*arguments: str) -> Result:
    """Runs `headrace` with these arguments; nothing but an exit ends it."""
    result = CliRunner().invoke(cli.main, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file that is right."""
    path = tmp_path / "headrace.yaml"
    path.write_text(CONFIG)
    return path


def test_commands() -> None:
    """Those that the design names for one location."""
    assert {"run", "check", "schema", "demo", "replay", "engine", "status", "explain"} <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command says what it does and gives an example that it would take."""
    result = invoke(name, "--help")
    assert 0 == result.exit_code
    assert COMMANDS[name].help
    command, *arguments = str(COMMANDS[name].epilog).removeprefix("Example: headrace ").partition(" > ")[0].split()
    assert name == command
    monkeypatch.chdir(tmp_path)
    for argument in arguments:  # an example's files are the reader's
        (tmp_path / argument.replace("/", "_")).touch()
    COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_overview(arguments: tuple[str, ...]) -> None:
    """All commands in one list."""
    assert all(name in invoke(*arguments).output for name in COMMANDS)


def test_version() -> None:
    """The distribution's."""
    result = invoke("--version")
    assert (0, True) == (result.exit_code, "version" in result.output)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("run",),
        ("run", "/nowhere.yaml"),
        ("engine", "--port", "x"),
        ("engine", "--port", "1", "--profile", "p"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """2 for what is not a command, lacks an argument or has a bad one."""
    assert 2 == invoke(*arguments).exit_code


def test_check(config: Path) -> None:
    """0, and what was found."""
    result = invoke("check", str(config))
    assert (0, f"{config}: location ams, 1 model(s), 1 engine(s): ok\n") == (result.exit_code, result.output)


@pytest.mark.parametrize("command", ["check", "run"])
def test_config_with_problems(command: str, config: Path) -> None:
    """2, every problem on a line of its own."""
    config.write_text(CONFIG.replace("8080", "0").replace("http:", "gopher:") + "workerz: 1\n")
    result = invoke(command, str(config))
    assert 2 == result.exit_code
    assert ["listen", "models.llama.engines", "workerz"] == sorted(
        line.partition(":")[0].partition("[")[0].removesuffix(".0.url") for line in result.stderr.splitlines()
    )


def test_schema() -> None:
    """A JSON Schema that names the file's keys."""
    schema: Any = json.loads(invoke("schema").output)
    assert "json-schema.org" in schema["$schema"]


def test_run_where_it_cannot_listen(config: Path) -> None:
    """1 when the port is taken, and which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(CONFIG.replace("8080", str(port)) + f"admin: 127.0.0.1:{free_ports(1)[0]}\n")
        result = invoke("run", str(config))
    assert 1 == result.exit_code
    assert "headrace: cannot listen: " in result.stderr


@pytest.mark.parametrize("command", [("status",), ("explain", "r-1")])
def test_unreachable(command: tuple[str, ...]) -> None:
    """1, and why."""
    name, *rest = command
    result = invoke(name, f"http://127.0.0.1:{free_ports(1)[0]}", *rest)
    assert (1, True) == (result.exit_code, "Connection refused" in result.stderr)


def test_profiles() -> None:
    """The choices of --profile are those that the simulated engine has."""
    assert set(PROFILES) == set(cli.PROFILES)
