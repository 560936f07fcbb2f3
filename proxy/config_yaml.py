"""YAML as a config file uses it: nodes with positions, and what a scalar is and looks like."""

import re
from typing import Any

import yaml

from proxy.config import ConfigError
from proxy.config_kinds import SWITCH, Value

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}
DEEPEST = 50
SHOWN = 80  # characters of a value in a message


def compose(path: str) -> Any:
    """The file's root node; raises ConfigError for what is no single YAML document."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        _shallow(text)
        loader = Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError([f"file: must be a file that can be read, got {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"file: must be UTF-8, got another byte at offset {error.start}"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError([f"file: must be YAML, got at {where}{error.problem or error.context}"]) from None
    except yaml.YAMLError:
        raise ConfigError(["file: must be YAML, got a character that YAML does not allow"]) from None


def _shallow(text: str) -> None:
    """The C composer recurses without a bound, so depth is measured on the flat stream of events first."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise ConfigError(
                [f"file: must be nested at most {DEEPEST} deep, got more at line {position(event)[0] + 1}"]
            )


def resolved(text: str) -> Value:
    """What YAML would make of this text if it stood in the file without quotes."""
    resolver: Any = yaml.resolver.Resolver()
    return typed(resolver.resolve(yaml.ScalarNode, text, (True, False)), text)


def is_scalar(node: Any) -> bool:
    """Whether a node is a single value."""
    return isinstance(node, yaml.ScalarNode)


def typed(tag: str, text: str) -> Value:
    """What YAML makes of a scalar; text where it makes nothing that a config holds."""
    constructor = yaml.constructor.SafeConstructor()
    node = yaml.ScalarNode(tag, text)
    try:
        match tag.removeprefix(TAG):
            case "null":
                return None
            case "bool":
                return SWITCH[text.lower()]
            case "int":
                return int(constructor.construct_yaml_int(node))
            case "float":
                return float(constructor.construct_yaml_float(node))
    except (ValueError, KeyError, IndexError, OverflowError):
        return text
    return text


def is_null(node: Any) -> bool:
    """Whether a key has no value."""
    return isinstance(node, yaml.ScalarNode) and node.tag == TAG + "null"


def position(node: Any) -> tuple[int, int]:
    """Line and column, from 0."""
    return (node.start_mark.line, node.start_mark.column)


def noun(node: Any) -> str:
    """What a node is, without its content."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node is None or is_null(node) else "a single value"


def show(node: Any) -> str:
    """A scalar as the file has it, shortened, without what a URL may hide; other nodes as a noun."""
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        return noun(node)
    text = re.sub(r"(//.*)\?.*", r"\1?***", re.sub(r"//.*@", "//***@", node.value, flags=re.DOTALL), flags=re.DOTALL)
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return repr(cut) if node.tag in (TAG + "str", TAG + "timestamp") or not cut.isprintable() else cut


def printable(text: str) -> str:
    """Text of the file on one line, shortened."""
    cut = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return cut if cut.isprintable() else repr(cut)
