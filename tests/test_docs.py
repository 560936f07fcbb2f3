"""The documentation in both directions: README tells all there is, and what it tells exists and works."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import pytest
import trustme
import yaml

from proxy import config
from proxy.cli import main
from proxy.control.admin import Admin
from telemetry import names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("balancer", "telemetry", "proxy", "fixtures")
METRIC = re.compile(r"\b(?:headrace|gen_ai)_[a-z0-9_]+")
COUNTED = re.compile(r"((?:headrace|gen_ai)_[a-z0-9_]+)_total(?:\|.*)?")
Covered = set[tuple[str, str]]  # a definition of the schema and a key of it


def fences(language: str) -> list[str]:
    """README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def spans() -> list[str]:
    """README's inline code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))


YAML = fences("yaml")


def row(metric: names.Metric) -> str:
    """A metric's row in README, under the name that /metrics shows."""
    name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
    labels = " ".join(["|", ", ".join(f"`{label}`" for label in metric.labels)]).strip()
    return f"| `{name}` | {metric.kind} {labels} | {metric.help} |"


def test_metrics_table() -> None:
    """README's table of metrics is `telemetry.names`: nothing missing, nothing made up, in its order."""
    table = [line for line in README.splitlines() if re.match(r"\| `(?:headrace|gen_ai)_", line)]
    assert [row(metric) for metric in names.ALL] == table


def test_named_metrics_exist() -> None:
    """Every metric or label that README names anywhere exists."""
    known = {label for metric in names.ALL for label in metric.labels}
    for metric in names.ALL:
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("", "_bucket", "_count", "_sum")}[metric.kind]
        known |= {metric.name + ending for ending in endings}
    assert set() == set(METRIC.findall(README)) - known


def test_all_metrics_are_listed() -> None:
    """`names.ALL` holds every metric of its module once."""
    defined = [metric for metric in vars(names).values() if isinstance(metric, names.Metric)]
    assert sorted(metric.name for metric in defined) == sorted({metric.name for metric in names.ALL})
    assert len(defined) == len(names.ALL)


def sources() -> Iterator[ast.Module]:
    """The project's modules but the one of the names."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path != ROOT / "telemetry" / "names.py":
                yield ast.parse(path.read_text(encoding="utf-8"))


def test_metrics_are_used() -> None:
    """Every metric is fed somewhere, by its name in `telemetry.names` or as a worker's counter; no other is counted."""
    constants = {metric.name: key for key, metric in vars(names).items() if isinstance(metric, names.Metric)}
    used, counted = set(), set()
    for node in (node for tree in sources() for node in ast.walk(tree)):
        match node:
            case ast.Attribute(value=ast.Name(id="names"), attr=attr):
                used.add(attr)
            case ast.Constant(value=str(text)) if found := COUNTED.fullmatch(text):
                counted.add(found[1])
    assert {metric.name for metric in names.COUNTED} == counted
    assert set() == {key for name, key in constants.items() if name not in counted} - used


def covered(node: dict[str, Any], value: Any, definitions: dict[str, Any], where: str = "Config") -> Covered:
    """The keys of the schema that a document gives, below one of its values."""
    options = [node, *node.get("anyOf", [])]
    if reference := next((option["$ref"] for option in options if "$ref" in option), None):
        where = reference.rpartition("/")[2]
        node = definitions[where]
    found: Covered = set()
    if isinstance(value, list):
        for item in value:
            found |= covered(node.get("items", {}), item, definitions)
    elif isinstance(value, dict):
        properties = node.get("properties", {})
        others = node.get("additionalProperties") or {}
        for key, item in value.items():
            if key in properties:
                found.add((where, key))
            found |= covered(properties.get(key, others), item, definitions)
    return found


def test_every_config_key_is_shown() -> None:
    """README's examples together give every key of the config's schema."""
    schema = cast(dict[str, Any], config.schema())
    definitions = schema["$defs"]
    every = {(name, key) for name, part in definitions.items() for key in part["properties"]}
    every |= {("Config", key) for key in schema["properties"]}
    shown = set[tuple[str, str]]().union(*(covered(schema, yaml.safe_load(text), definitions) for text in YAML))
    assert set() == every - shown


def files_named(value: Any) -> Iterator[tuple[str, str]]:
    """Key and name of each file of a config."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("cert", "key", "ca", "keys") and isinstance(item, str):
                yield key, item
            yield from files_named(item)
    elif isinstance(value, list):
        for item in value:
            yield from files_named(item)


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> config.Config:
    """The config of an example, in a world that has the files and variables it names."""
    authority = trustme.CA()
    issued = authority.issue_cert("ams.example")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    content = {"cert": chain, "key": issued.private_key_pem.bytes(), "ca": authority.cert_pem.bytes(), "keys": b"{}"}
    for key, name in files_named(yaml.safe_load(text)):
        assert not Path(name).is_absolute(), name
        (folder / name).write_bytes(content[key])
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "secret")
    path = folder / "headrace.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(str(path))


@pytest.mark.parametrize("text", YAML, ids=[f"example-{n}" for n in range(1, len(YAML) + 1)])
def test_config_examples_load(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example passes `headrace check` as it stands."""
    assert config.Config is type(loaded(tmp_path, monkeypatch, text))


def not_defaults(struct: msgspec.Struct, path: str = "") -> Iterator[str]:
    """The fields below a struct that have a plain default and another value."""
    for field in msgspec.structs.fields(struct):
        value, here = getattr(struct, field.name), f"{path}.{field.name}".removeprefix(".")
        if isinstance(field.default, bool | int | float | str | config.Address) and value != field.default:
            yield f"{here}: default {field.default}, shown {value}"
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        for item in inner:
            if isinstance(item, msgspec.Struct):
                yield from not_defaults(item, here)


def test_complete_example_shows_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest example is the reference: where a key has a default, it shows that one."""
    assert [] == list(not_defaults(loaded(tmp_path, monkeypatch, max(YAML, key=len))))


def command_lines() -> list[str]:
    """What README tells to type, or names as code, from `headrace` on."""
    blocks = re.findall(
        r"^    (.+)$", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    typed = [
        *blocks,
        *(line for language in ("sh", "text", "") for text in fences(language) for line in text.splitlines()),
    ]
    found = [re.search(r"(?:^|[\s/])(headrace [a-z].*)", line.partition(" #")[0]) for line in (*typed, *spans())]
    return [match[1].strip() for match in found if match]


def test_every_command_is_told() -> None:
    """README names every command of the command line."""
    assert set(main.commands) == {line.split()[1] for line in command_lines()}


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_told_commands_exist(line: str) -> None:
    """The command exists and takes the options and as many arguments as README gives it."""
    _, name, *words = shlex.split(line)
    command = main.commands[name]
    with click.Context(command) as context:
        _, surplus, _ = command.make_parser(context).parse_args(words)
    assert [] == surplus


def test_told_options_exist() -> None:
    """An option that README names by itself is one of some command."""
    options = {option for command in main.commands.values() for one in command.params for option in one.opts}
    assert set() == {span.split()[0] for span in spans() if span.startswith("--")} - options


def test_told_targets_exist() -> None:
    """Every `make X` of README is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set() == set(re.findall(r"(?:^    |`)make ([a-z]+)", README, re.MULTILINE)) - targets


def test_admin_routes() -> None:
    """README names exactly the routes of the admin API; GET where it says nothing."""
    application = Admin(cast(Any, None)).application()
    routes = {(route.method, route.resource.canonical) for route in application.router.routes() if route.resource}
    told = {re.fullmatch(r"(?:(POST) )?(/(?!v1/)\S*)", span) for span in spans()} - {None}
    assert routes == {(match[1] or "GET", match[2]) for match in told if match}


def test_told_headers_exist() -> None:
    """Headrace's own headers that README names are ones the proxy knows."""
    known = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        known |= set(re.findall(r"x-headrace-[a-z]+", path.read_text(encoding="utf-8")))
    assert set() == set(re.findall(r"x-headrace-[a-z]+", README)) - known


def test_told_files_exist() -> None:
    """Relative links, and inline code that is a path, lead to something."""
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in link]
    paths = [span for span in spans() if re.fullmatch(r"[\w.-]+(?:/[\w.-]*)+", span)]
    assert [] == [name for name in (*links, *paths) if name and not (ROOT / name).exists()]
