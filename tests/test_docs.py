"""The README is true: what it names exists, and what exists is named there."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import trustme

from proxy import config
from proxy.cli import main
from telemetry import names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
COMMANDS = main.commands


def exposed(metric: names.Metric) -> str:
    """A metric's name as a scrape shows it."""
    return metric.name + ("_total" if metric.kind == "counter" else "")


def keys() -> set[str]:
    """Every key of the config's schema."""
    schema: dict[str, Any] = config.schema()
    structs = [schema, *schema["$defs"].values()]
    return {key for struct in structs for key in struct.get("properties", {})}


def test_metrics_are_documented() -> None:
    """Each has a row with its kind, its labels and its meaning, and no row is of a metric that is gone."""
    rows = re.findall(r"^\| `((?:headrace|gen_ai)_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    assert {exposed(m): (m.kind, m.labels, m.help) for m in names.ALL} == documented


def test_metrics_that_are_named_exist() -> None:
    """Anywhere in the README."""
    known = {exposed(metric) for metric in names.ALL}
    assert set() == set(re.findall(r"\b(?:headrace|gen_ai_server)_[a-z_]+\b", README)) - known


def test_config_keys_are_documented() -> None:
    """Every key stands in one of the README's configs."""
    shown = set(re.findall(r"([a-z_]+):", "".join(YAML)))
    assert set() == keys() - shown


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_configs_load(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's configs are valid as they stand, given the files and variables that they name."""
    for variable in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(variable, "x" * 32)
    authority = trustme.CA()
    certificate = authority.issue_cert("ams.example")
    certificate.private_key_pem.write_to_path(tmp_path / "edge.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "edge.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "keys.yaml").write_text("")
    path = tmp_path / "headrace.yaml"
    path.write_text(text, encoding="utf-8")
    assert "ams" == config.load(str(path)).location


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_are_documented(name: str) -> None:
    """Each command is in the README, and its help has an example."""
    assert f"headrace {name}" in README
    help_text = COMMANDS[name].get_help(click.Context(COMMANDS[name]))
    assert f"Example: headrace {name}" in help_text


def test_commands_that_are_named_exist() -> None:
    """With the options that are shown beside them."""
    for name, rest in re.findall(
        r"headrace (?!headrace)([a-z]+)\b([^`\n|]*)", "".join(re.findall(r"`headrace [^`]*`", README))
    ):
        assert name in COMMANDS
        options = {o for parameter in COMMANDS[name].params for o in parameter.opts}
        assert set() == set(re.findall(r"--[a-z-]+", rest)) - options


def test_files_that_are_named_exist() -> None:
    """Links and paths inside the repository."""
    paths = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(
        r"`((?:fixtures|tests|grafana)/[\w./]+)`", README
    )
    assert [] == [path for path in paths if not (ROOT / path).exists()]


def test_make_targets_exist() -> None:
    """Every `make X` of the README."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert set() == {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)}
