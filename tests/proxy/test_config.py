"""The config file: the complete example, the defaults, and every problem of broken files at once."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy import config
from proxy.cli import main
from proxy.config import Address, Config, ConfigError, changed_needing_restart, load, schema
from proxy.config_form import FORM
from proxy.config_kinds import octets, seconds, url
from proxy.core.settings import Limits

BROKEN = sorted((Path(__file__).parent / "configs").glob("*.yaml"))
MINIMAL = "location: ams\nlisten: 127.0.0.1:8080\nmodels: {llama: {engines: [{url: 'http://127.0.0.1:9000'}]}}\n"
COMPLETE = """
location: ams
listen: 0.0.0.0:8080
tls: {cert: edge.pem, key: edge.key}
admin: 127.0.0.1:8081
workers: 1
models:
  llama-3.1-8b:
    aliases: [gpt-4o-mini]
    engines:
      - url: http://10.0.0.11:8000
        kind: vllm
      - url: http://10.0.0.12:8000
        weight: 2.0
        model: meta-llama/Llama-3.1-8B-Instruct
mesh:
  listen: 0.0.0.0:7443
  tls: {cert: edge.pem, key: edge.key, ca: ca.pem}
  locations:
    lhr: {mesh: lhr.example:7443, url: https://lhr.example:8443}
residency: [eu]
balancing: {ttft_target: 1s, tpot_target: 60ms, choices: 2, hedge: {after: p95, budget: 5%}}
telemetry:
  otlp: http://127.0.0.1:4317
  sample: 0.1
  listen: 127.0.0.1:4327
  tuner: on
  records: records/
  content: false
drain_timeout: 5m
limits: {header_bytes: 32768, body_bytes: 8388608, header_timeout: 10s, idle_timeout: 75s, first_byte_timeout: 300s,
         stream_idle_timeout: 300s, connections: 10000, queue: 1024, queue_timeout: 30s}
keys: keys.yaml
"""


def written(folder: Path, text: str) -> str:
    path = folder / "headrace.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


@pytest.fixture
def complete(tmp_path: Path) -> str:
    """The complete example with real certificates beside it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("ams.example")
    issued.private_key_pem.write_to_path(str(tmp_path / "edge.key"))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(tmp_path / "edge.pem"), append=index > 0)
    (tmp_path / "keys.yaml").write_text("{}")
    return written(tmp_path, COMPLETE)


def test_complete_example(complete: str, tmp_path: Path) -> None:
    """Every key of the complete example arrives as its value, paths relative to the file."""
    base = str(tmp_path)
    expected = Config(
        location="ams",
        listen=Address("0.0.0.0", 8080),
        tls=config.ServerTls(f"{base}/edge.pem", f"{base}/edge.key"),
        models={
            "llama-3.1-8b": config.Model(
                engines=(
                    config.Engine(url="http://10.0.0.11:8000", name="10.0.0.11:8000", kind="vllm"),
                    config.Engine(
                        url="http://10.0.0.12:8000",
                        name="10.0.0.12:8000",
                        weight=2.0,
                        model="meta-llama/Llama-3.1-8B-Instruct",
                    ),
                ),
                aliases=("gpt-4o-mini",),
            )
        },
        mesh=config.Mesh(
            listen=Address("0.0.0.0", 7443),
            tls=config.MeshTls(f"{base}/edge.pem", f"{base}/edge.key", f"{base}/ca.pem"),
            locations={"lhr": config.Peer(Address("lhr.example", 7443), "https://lhr.example:8443")},
        ),
        residency=("eu",),
        balancing=config.Balancing(hedge=config.Hedge()),
        telemetry=config.Telemetry(
            otlp="http://127.0.0.1:4317", listen=Address("127.0.0.1", 4327), records=f"{base}/records"
        ),
        keys=f"{base}/keys.yaml",
    )
    assert expected == load(complete)


def test_defaults(tmp_path: Path) -> None:
    """What is left out takes the documented default."""
    loaded = load(written(tmp_path, MINIMAL))
    assert (1, 300.0, "0", None, None) == (loaded.workers, loaded.drain_timeout, loaded.node, loaded.mesh, loaded.keys)
    assert Address("127.0.0.1", 8081) == loaded.admin.listen
    assert (1.0, 0.06, 2, None) == msgspec.structs.astuple(loaded.balancing)
    assert (0.1, "on", False) == (loaded.telemetry.sample, loaded.telemetry.tuner, loaded.telemetry.content)
    expected = (32768, 8388608, 10.0, 60.0, 75.0, 5.0, 300.0, 300.0, 3600.0, 10000, 1024, 30.0)
    assert expected == msgspec.structs.astuple(loaded.limits)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All problems of a file are printed at once, in its order, with exit code 2; no secret among them."""
    monkeypatch.setenv("HEADRACE_TEST_SECRET", "hidden secret")
    monkeypatch.delenv("HEADRACE_TEST_UNSET", raising=False)
    expected = [line[2:] for line in path.read_text().split("# expect:\n")[1].splitlines()]
    result = CliRunner().invoke(main, ["check", str(path)])
    assert expected == result.stderr.splitlines()
    assert result.exit_code == 2
    assert not re.search("hidden.secret", result.output)


def test_check_of_a_sound_file(tmp_path: Path) -> None:
    """A sound file gives exit code 0."""
    result = CliRunner().invoke(main, ["check", written(tmp_path, MINIMAL)])
    assert (0, True) == (result.exit_code, result.output.endswith("location ams, 1 model(s), 1 engine(s): ok\n"))


def test_schema_command() -> None:
    """The command prints the schema as JSON."""
    assert schema() == json.loads(CliRunner().invoke(main, ["schema"]).output)


def test_form_covers_every_field() -> None:
    """The form and the structs have the same keys, and need the same ones."""
    derived = {config.Engine: {"name"}}
    for struct, form in FORM.items():
        fields = {field.name: field.required for field in msgspec.structs.fields(struct)}
        assert set(fields) == set(form)
        needed = {name for name, required in fields.items() if required} - derived.get(struct, set())
        assert needed == {name for name, key in form.items() if key.required}


def accepts(rule: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the config's schema uses."""
    if "$ref" in rule:
        return accepts(root["$defs"][rule["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in rule:
        return any(accepts(one, value, root) for one in rule["anyOf"])
    if "enum" in rule:
        return value in rule["enum"]
    kinds: dict[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "boolean": bool}
    if not isinstance(value, kinds.get(rule["type"], (int, float))):
        return False
    if isinstance(value, dict):
        rest = rule["additionalProperties"]
        shapes = {name: rule.get("properties", {}).get(name, rest) for name in value}
        fits = all(shape and accepts(shape, value[name], root) for name, shape in shapes.items())
        return fits and set(rule.get("required", [])) <= set(value)
    if isinstance(value, list):
        return all(accepts(rule["items"], item, root) for item in value)
    if isinstance(value, str):
        return re.search(rule.get("pattern", ""), value) is not None
    return bool(rule.get("minimum", value) <= value <= rule.get("maximum", value))


def test_schema_accepts_the_complete_example() -> None:
    """The schema describes the file's form, an unknown key is refused."""
    found: dict[str, Any] = schema()
    document = yaml.safe_load(COMPLETE)
    assert accepts(found, document, found)
    assert accepts(found, {**document, "admin": {"listen": "127.0.0.1:1"}}, found)
    assert not accepts(found, {**document, "colour": "blue"}, found)
    assert not accepts(found, {**document, "drain_timeout": "5 days"}, found)


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables fill text and numbers; a doubled dollar keeps the braces."""
    monkeypatch.setenv("HEADRACE_TEST_NUMBER", "2.5")
    engine = """
      - url: http://127.0.0.1:9000
        weight: ${HEADRACE_TEST_NUMBER}
        api_key: ${HEADRACE_TEST_NUMBER}
        name: a$${N}
"""
    text = f"location: ams\nlisten: 127.0.0.1:8080\nmodels:\n  llama:\n    engines:{engine}"
    loaded = load(written(tmp_path, text)).models["llama"].engines[0]
    assert (2.5, "2.5", "a${N}") == (loaded.weight, loaded.api_key, loaded.name)


@pytest.mark.parametrize(("text", "expected"), [("off", "off"), ("on", "on"), ("shadow", "shadow"), ("'on'", "on")])
def test_tuner(tmp_path: Path, text: str, expected: str) -> None:
    """YAML's booleans and the words mean the same."""
    assert expected == load(written(tmp_path, f"{MINIMAL}telemetry: {{tuner: {text}}}\n")).telemetry.tuner


def test_workers_zero_is_one_a_core(tmp_path: Path) -> None:
    """The number of cores replaces 0."""
    assert load(written(tmp_path, f"{MINIMAL}workers: 0\n")).workers >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://Host.Example/v1/", "http://host.example:80/v1"),
        ("https://[::1]", "https://[::1]:443"),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
    ],
)
def test_url(text: str, expected: str) -> None:
    """URLs take one form."""
    assert expected == url(text)


def test_changed_needing_restart(tmp_path: Path) -> None:
    """Only what names sockets or processes needs a restart."""
    old = load(written(tmp_path, MINIMAL))
    mesh = config.Mesh(listen=Address("127.0.0.1", 7443), insecure=True)
    new = msgspec.structs.replace(old, location="lhr", workers=2, mesh=mesh, limits=Limits(queue=1))
    assert ["location", "workers", "mesh.listen"] == changed_needing_restart(old, new)
    assert [] == changed_needing_restart(old, msgspec.structs.replace(old, limits=Limits(queue=1)))


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"a: \x00", b"- 1", b"a: 1\n---\nb: 2", b"location: *x", b"[" * 90000, b"&a [*a]"]
)
def test_no_config_at_all(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, the answer is a problem with the file."""
    path = tmp_path / "headrace.yaml"
    path.write_bytes(content)
    assert problems(str(path))[0].startswith("file: must be ")


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is a problem, too."""
    assert ["file: must be a file that can be read, got No such file or directory"] == problems(str(tmp_path / "x"))


def test_merge_keys(tmp_path: Path) -> None:
    """Anchors may be merged; a key beside the merge wins and is no duplicate."""
    text = f"""{MINIMAL}
mesh: {{insecure: true, listen: '127.0.0.1:7443', nodes: {{a: &a {{mesh: '127.0.0.1:1'}}, b: {{<<: *a}}}}}}
admin: {{<<: {{token: def, listen: '127.0.0.1:2'}}, listen: '127.0.0.1:1'}}
"""
    loaded = load(written(tmp_path, text))
    assert (Address("127.0.0.1", 1), "def") == (loaded.admin.listen, loaded.admin.token)


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_durations(count: int, unit: tuple[str, float]) -> None:
    """A duration is its count times its unit."""
    assert seconds(f"{count}{unit[0]}") == pytest.approx(count * unit[1])


@given(st.integers(0, 10**6), st.sampled_from([("", 0), ("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_sizes(count: int, unit: tuple[str, int]) -> None:
    """A size is its count times its unit."""
    assert count << unit[1] == octets(f"{count}{unit[0]}")


KEYS = st.sampled_from(sorted({name for form in FORM.values() for name in form} | {"<<"})) | st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=9) | st.text()
LIKELY = st.sampled_from(["http://[::1", "http://a:99999", "[::1]:1", "127.0.0.1:80", "${", "${A}", "p95", "1e999s"])


def trees() -> st.SearchStrategy[Any]:
    """Anything YAML can hold, with keys a config has."""
    return st.recursive(
        LEAVES | LIKELY,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
        max_leaves=30,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, trees(), max_size=8))
def test_only_config_errors_escape(tmp_path: Path, tree: dict[str, Any]) -> None:
    """Any tree either loads or raises ConfigError."""
    path = written(tmp_path, yaml.safe_dump(tree))
    with contextlib.suppress(ConfigError):
        load(path)


def test_structs_stay_light() -> None:
    """A worker that only needs the structs loads no parser."""
    code = "import sys, proxy.config; print([m for m in ('yaml', 'ssl', 'difflib', 'ipaddress') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "[]\n" == done.stdout
