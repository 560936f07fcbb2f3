"""The kinds of single values a config file holds: how each is read, its rule in words, its JSON Schema.

A parser takes what YAML made of the scalar and raises ValueError when the rule is broken; who calls it words the
problem, so that no parser ever has to repeat a value that may be a secret.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from proxy.config import Address

Value = str | int | float | bool | None
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
SWITCH = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h)")
SIZE = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB|kB|MB|GB|)")
PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%")
HOST = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}")
PREFIX = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")


class Kind(NamedTuple):
    """One kind of value."""

    rule: str
    parse: Callable[[Value], object]
    schema: dict[str, object]
    secret: bool = False  # its value is never shown
    path: str = ""  # "file": must be readable; "directory": made when needed; "": not a path


def text(rule: str, pattern: str, *, secret: bool = False, path: str = "") -> Kind:
    """Text that matches the whole pattern."""
    compiled = re.compile(pattern)

    def parse(value: Value) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError
        return value

    return Kind(f"must be {rule}", parse, {"type": "string", "pattern": f"^(?:{pattern})$"}, secret, path)


def choice(*names: str) -> Kind:
    """One of some words."""

    def parse(value: Value) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return Kind(f"must be one of {', '.join(names)}", parse, {"enum": list(names)})


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _within(number: float, least: float, most: float) -> None:
    if not least <= number <= most:
        raise ValueError


def integer(least: int, most: int) -> Kind:
    """A whole number within both ends."""

    def parse(value: Value) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        _within(value, least, most)
        return value

    schema: dict[str, object] = {"type": "integer", "minimum": least, "maximum": most}
    return Kind(f"must be a whole number from {least} to {most}", parse, schema)


def number(least: float, most: float) -> Kind:
    """A number within both ends."""

    def parse(value: Value) -> float:
        parsed = _number(value)
        _within(parsed, least, most)
        return parsed

    schema: dict[str, object] = {"type": "number", "minimum": least, "maximum": most}
    return Kind(f"must be a number from {least:g} to {most:g}", parse, schema)


def seconds(value: Value) -> float:
    """`250ms`, `10s`, `5m`, `1h` or a number of seconds, in seconds."""
    if not isinstance(value, str):
        return _number(value)
    match = DURATION.fullmatch(value)
    if not match:
        raise ValueError
    return float(match[1]) * SECONDS[match[2]] if match[2] != "ms" else float(match[1]) / 1000


def duration(least: str, most: str) -> Kind:
    """A time span within both ends."""
    low, high = seconds(least), seconds(most)

    def parse(value: Value) -> float:
        parsed = seconds(value)
        _within(parsed, low, high)
        return parsed

    schema = _either(DURATION, {"type": "number", "minimum": low, "maximum": high})
    return Kind(f"must be a duration from {least} to {most}, such as 250ms, 10s, 5m or seconds", parse, schema)


def octets(value: Value) -> int:
    """`64KiB`, `8MiB` or a whole number, in bytes."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError
    if isinstance(value, int):
        return value
    match = SIZE.fullmatch(value)
    if not match:
        raise ValueError
    return int(match[1]) * BYTES[match[2]]


def size(least: str, most: str) -> Kind:
    """A number of bytes within both ends."""
    low, high = octets(least), octets(most)

    def parse(value: Value) -> int:
        parsed = octets(value)
        _within(parsed, low, high)
        return parsed

    schema = _either(SIZE, {"type": "integer", "minimum": low, "maximum": high})
    return Kind(f"must be a size from {least} to {most}, such as 64KiB, 8MiB or bytes", parse, schema)


def _share(value: Value) -> float:
    if isinstance(value, str):
        match = PERCENT.fullmatch(value)
        if not match:
            raise ValueError
        parsed = float(match[1]) / 100
    else:
        parsed = _number(value)
    _within(parsed, 0.0, 1.0)
    return parsed


def _boolean(value: Value) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _tuner(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value not in ("off", "shadow", "on"):
        raise ValueError
    return str(value)


def _port(digits: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", digits):
        raise ValueError
    _within(int(digits), 1, 65535)
    return int(digits)


def _host(name: str) -> str:
    if ":" in name:
        return str(ipaddress.IPv6Address(name))
    if re.fullmatch(r"[0-9.]+", name):
        return str(ipaddress.IPv4Address(name))
    if not HOST.fullmatch(name):
        raise ValueError
    return name.lower()


def address(value: Value) -> Address:
    """`0.0.0.0:8080`, `[::1]:8080` or `host:8080`."""
    if not isinstance(value, str):
        raise ValueError
    name, colon, digits = value.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not colon or bracketed != (":" in name):
        raise ValueError
    return Address(_host(name[1:-1] if bracketed else name), _port(digits))


def url(value: Value) -> str:
    """An http or https URL as scheme://host:port[/prefix], without a trailing slash."""
    if not isinstance(value, str) or re.search(r"[\s\x00-\x1f\x7f?#@\\]", value):
        raise ValueError
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    prefix = parts.path.rstrip("/")
    if not PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
        raise ValueError
    bracketed = parts.netloc.startswith("[")
    if bracketed != (":" in parts.hostname) or parts.netloc.endswith(":"):
        raise ValueError
    port = parts.port or (443 if parts.scheme == "https" else 80) if parts.port != 0 else _port("0")
    return f"{parts.scheme}://{Address(_host(parts.hostname), port)}{prefix}"


def _either(pattern: re.Pattern[str], other: dict[str, object]) -> dict[str, object]:
    return {"anyOf": [{"type": "string", "pattern": f"^(?:{pattern.pattern})$"}, other]}


_URL: dict[str, object] = {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s?#@\\]+$"}
URL = Kind("must be http://HOST:PORT or https://HOST:PORT", url, _URL)
ADDRESS = Kind(
    "must be HOST:PORT, such as 0.0.0.0:8080 or [::1]:8080",
    address,
    {"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"},
)
SHARE = Kind(
    "must be a share from 0 to 1, or a percentage such as 5%",
    _share,
    _either(PERCENT, {"type": "number", "minimum": 0, "maximum": 1}),
)
BOOLEAN = Kind("must be true or false", _boolean, {"type": "boolean"})
TUNER = Kind("must be off, shadow or on", _tuner, {"enum": ["off", "shadow", "on", True, False]})
NAME = text(
    "a name of letters, digits, '.', '_' and '-' (in quotes if YAML reads it as something else), at most 63",
    "[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
)
MODEL = text(
    "a name of 1 to 256 printable characters", r"[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,254}[^\s\x00-\x1f\x7f])?"
)
ENGINE_NAME = text("1 to 128 visible ASCII characters", "[!-~]{1,128}")
SERVER_NAME = text("a host name", r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
SECRET = text("visible ASCII characters without spaces (digits alone in quotes)", "[!-~]{1,4096}", secret=True)
HEADER_NAME = text("a header's name", r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
HEADER_VALUE = text("visible ASCII characters and spaces", r"[!-~]([ -~]{0,4094}[!-~])?", secret=True)
FILE = text("a file that can be read", r"[^\x00]+", path="file")
DIRECTORY = text("a directory", r"[^\x00]+", path="directory")
PERCENTILE = text("a percentile from p50 to p99.9, such as p95", r"p[5-9][0-9](\.[0-9])?")
