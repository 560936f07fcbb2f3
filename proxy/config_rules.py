"""The rules that span several keys of a config, over its draft. None is left out because another one is broken."""

import ipaddress
import itertools
import os
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from proxy.config import Address, Admin
from proxy.config_reading import Draft, Path, Reading, dotted

WILDCARDS = ("0.0.0.0", "::")
SHARED = ("name", "kind", "weight", "api_key", "tls")  # what belongs to an engine, not to a model on it


def check(draft: Draft, reading: Reading) -> None:
    """Notes every broken rule and completes the draft: engines' names, the number of workers."""
    _models(draft, reading)
    _engines(draft, reading)
    _admin(draft, reading)
    _mesh(draft, reading)
    _addresses(draft, reading)
    _certificates(draft, reading)
    if draft.get("workers") == 0:
        draft["workers"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _models(draft: Draft, reading: Reading) -> None:
    taken = {name: f"the model {name}" for name in draft.get("models", {})}
    for name, model in draft.get("models", {}).items():
        aliases = {alias: index for index, alias in reversed([*enumerate(model.get("aliases", []))]) if alias}
        for alias, index in sorted(aliases.items(), key=lambda item: item[1]):
            path = ("models", name, "aliases", index)
            if alias in taken:
                reading.broken(path, f"must be no other name, is already {taken[alias]}")
            taken.setdefault(alias, f"an alias at {dotted(path)}")


def _each_engine(draft: Draft) -> Iterator[tuple[Path, Draft]]:
    for name, model in draft.get("models", {}).items():
        for index, engine in enumerate(model.get("engines") or []):
            if engine and "url" in engine:
                yield ("models", name, "engines", index), engine


def _engines(draft: Draft, reading: Reading) -> None:
    by_url: dict[str, tuple[Path, Draft]] = {}
    by_name: dict[str, tuple[Path, str]] = {}
    for path, engine in _each_engine(draft):
        url = engine["url"]
        engine.setdefault("name", urlsplit(url).netloc)
        if "tls" in engine and not url.startswith("https:"):
            reading.problem((*path, "tls"), "must be left out when the url is not https")
        first, known = by_url.setdefault(url, (path, engine))
        if first is not path:
            _same_engine(reading, path, engine, first, known)
        named, named_url = by_name.setdefault(engine["name"], (path, url))
        if named_url != url:
            reading.broken((*path, "name"), f"must differ from the name of {dotted(named)} (left out: host:port)")


def _same_engine(reading: Reading, path: Path, engine: Draft, first: Path, known: Draft) -> None:
    if first[1] == path[1]:
        reading.broken((*path, "url"), f"must be listed once in a model, is already {dotted(first)}")
        return
    for key in SHARED:
        if engine.get(key) != known.get(key):
            reading.broken((*path, key), f"must agree with {dotted(first)}, the same engine")


def _admin(draft: Draft, reading: Reading) -> None:
    admin = draft.get("admin", {})
    listen = admin.get("listen", Admin().listen)
    if _loopback(listen):
        return
    for key in ("token", "tls"):
        if key not in admin:
            reading.problem(("admin", key), f"must be given when admin does not listen on loopback, got {listen}")


def _mesh(draft: Draft, reading: Reading) -> None:
    mesh = draft.get("mesh")
    if mesh is None:
        return
    insecure = mesh.get("insecure", False)
    if "tls" not in mesh and not insecure:
        reading.problem(("mesh", "tls"), "must be given unless insecure is true, got nothing")
    if "tls" in mesh and insecure:
        reading.broken(("mesh", "insecure"), "must be false when mesh.tls is given")
    if insecure and "listen" in mesh and not _loopback(mesh["listen"]):
        reading.broken(("mesh", "listen"), "must be on loopback when insecure is true")
    for group, own in (("locations", draft.get("location")), ("nodes", draft.get("node", "0"))):
        for name, peer in mesh.get(group, {}).items():
            path = ("mesh", group, name)
            if name == own:
                reading.problem(path, f"must not name this {group[:-1]} itself")
            if group == "locations" and "url" not in peer and not reading.knows((*path, "url")):
                reading.problem((*path, "url"), "must be given, got nothing")
            if insecure and "mesh" in peer and not _loopback(peer["mesh"]):
                reading.broken((*path, "mesh"), "must be on loopback when insecure is true")


def _loopback(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def _addresses(draft: Draft, reading: Reading) -> None:
    listens: list[tuple[Path, Address | None]] = [
        (("listen",), draft.get("listen")),
        (("admin", "listen"), draft.get("admin", {}).get("listen", Admin().listen)),
        (("mesh", "listen"), draft.get("mesh", {}).get("listen")),
        (("telemetry", "listen"), draft.get("telemetry", {}).get("listen")),
    ]
    for (first, one), (second, other) in itertools.combinations(listens, 2):
        if one and other and one.port == other.port and _overlap(one.host, other.host):
            reading.problem(second, f"must not clash with {dotted(first)} {one}, got {other}")


def _overlap(one: str, other: str) -> bool:
    return one == other or one in WILDCARDS or other in WILDCARDS


def _certificates(draft: Draft, reading: Reading) -> None:
    blocks: list[tuple[Path, Any]] = [
        (("tls",), draft.get("tls")),
        (("admin", "tls"), draft.get("admin", {}).get("tls")),
        (("mesh", "tls"), draft.get("mesh", {}).get("tls")),
        *(((*path, "tls"), engine.get("tls")) for path, engine in _each_engine(draft)),
    ]
    for path, block in blocks:
        if not block:
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if "cert" in block and "key" in block and not _pair(context, block["cert"], block["key"]):
            reading.problem(path, "cert and key must be PEM files that belong together, the key not encrypted")
        if "ca" in block and not _authorities(context, block["ca"]):
            reading.broken((*path, "ca"), "must be a PEM file with certificates")


def _pair(context: ssl.SSLContext, cert: str, key: str) -> bool:
    try:
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError):  # an SSLError is an OSError
        return False
    return True


def _authorities(context: ssl.SSLContext, ca: str) -> bool:
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ValueError):
        return False
    return True
