"""Reads a config file: YAML to a draft of parsed values, with every problem and where it is.

The walk follows the file's form (`proxy.config_form`) down the YAML nodes, so each problem knows its line. What is
wrong is left out of the draft, the rules that span several keys (`proxy.config_rules`) then look at what is left.
Values are shown as the file has them: `${NAME}` stays a name, secrets are not shown at all.
"""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from proxy.config_form import FORM, Key, ListOf, MapOf, Section, Shape
from proxy.config_kinds import Kind, Value
from proxy.config_yaml import PLAIN_TAGS, is_null, is_scalar, noun, position, printable, resolved, show, typed

Path = tuple[str | int, ...]
Draft = dict[str, Any]  # a section as far as it could be read; keys are those of its struct
VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")


def dotted(path: Path) -> str:
    """The path as messages show it, such as models.llama.engines[1].url."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{printable(part)}" for part in path]
    return "".join(parts).removeprefix(".") or "file"


class Reading:
    """One walk over a file: the problems so far, and where and how each key stood."""

    def __init__(self, base: str, environ: Mapping[str, str]) -> None:
        self._base = base
        self._environ = environ
        self._places: dict[Path, tuple[int, int]] = {(): (0, 0)}
        self._shown: dict[Path, str] = {}
        self._problems: list[tuple[tuple[int, int], str]] = []

    @property
    def problems(self) -> list[str]:
        """All problems, in the file's order."""
        return [text for _, text in sorted(self._problems, key=lambda problem: problem[0])]

    def knows(self, path: Path) -> bool:
        """Whether the file has this path."""
        return path in self._places

    def broken(self, path: Path, rule: str) -> None:
        """Notes a rule that the key at this path breaks, with the value as the file has it."""
        shown = self._shown.get(path)
        self.problem(path, rule if shown is None else f"{rule}, got {shown}")

    def problem(self, path: Path, text: str) -> None:
        """Notes a problem without a value; a path that is not in the file counts as its nearest parent's."""
        near = path
        while near not in self._places:
            near = near[:-1]
        self._problems.append((self._places[near], f"{dotted(path)}: {text}"))

    def distinct(self, root: Any) -> None:
        """Notes every mapping key that is given twice or is no text, before merges mix mappings."""
        visited = set()
        left: list[tuple[Any, Path]] = [(root, ())]
        while left:
            node, path = left.pop()
            if id(node) in visited:
                continue
            visited.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                left.extend((child, (*path, index)) for index, child in enumerate(node.value))
            elif isinstance(node, yaml.MappingNode):
                self._distinct_keys(node, path)
                left.extend((child, (*path, str(key.value))) for key, child in node.value if is_scalar(key))

    def _distinct_keys(self, node: Any, path: Path) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not is_scalar(key):
                text = f"{dotted(path)}: must have text as keys, got {noun(key)}"
            elif key.value in seen:
                lines = f"at line {seen[key.value]} and again at line {position(key)[0] + 1}"
                text = f"{dotted((*path, key.value))}: must be given once, got it {lines}"
            else:
                seen[key.value] = position(key)[0] + 1
                continue
            self._problems.append((position(key), text))

    def section(self, node: Any, path: Path, section: Section) -> Draft:
        """Reads a mapping with known keys."""
        form = FORM[section.struct]
        if section.short and isinstance(node, yaml.ScalarNode):
            key = form[section.short]
            value = self._shape(node, path, key.shape)
            return {} if value is None else {section.short: value}
        if node is None or not isinstance(node, yaml.MappingNode):
            self._misfit(node, path, "must be a mapping")
            return {}
        draft: Draft = {}
        present = set()
        for name, child in self._entries(node, path, secret=False):
            if name not in form:
                self._unknown((*path, name), form)
                continue
            if is_null(child):
                continue
            present.add(name)
            value = self._shape(child, (*path, name), form[name].shape)
            if value is not None:
                draft[name] = value
        for name, key in form.items():
            if key.required and name not in present:
                self.problem((*path, name), "must be given, got nothing")
        return draft

    def _shape(self, node: Any, path: Path, shape: Shape) -> Any:
        match shape:
            case Kind():
                return self._leaf(node, path, shape)
            case Section():
                return self.section(node, path, shape)
            case ListOf():
                return self._list(node, path, shape)
            case MapOf():
                return self._map(node, path, shape)

    def _list(self, node: Any, path: Path, shape: ListOf) -> list[Any] | None:
        if not isinstance(node, yaml.SequenceNode):
            self._misfit(node, path, "must be a list")
            return None
        if len(node.value) < shape.least:
            self.problem(path, f"must have at least {shape.least}, got {len(node.value)}")
        found: list[Any] = []
        for index, child in enumerate(node.value):
            here = (*path, index)
            self._place(here, child)
            value = self._shape(child, here, shape.item)
            if isinstance(shape.item, Kind) and value is not None and value in found:
                self.broken(here, "must be listed once")
            found.append(value)
        return found

    def _map(self, node: Any, path: Path, shape: MapOf) -> dict[str, Any] | None:
        if not isinstance(node, yaml.MappingNode):
            self._misfit(node, path, "must be a mapping", secret=shape.secret)
            return None
        if len(node.value) < shape.least:
            self.problem(path, f"must have at least {shape.least}, got {len(node.value)}")
        found: dict[str, Any] = {}
        for name, child in self._entries(node, path, secret=shape.secret):
            here = (*path, name)
            try:
                shape.key.parse(name)
            except ValueError:
                self.problem(here, f"its name {shape.key.rule}")
            value = self._shape(child, here, shape.item)
            if value is not None:
                found[name] = value
        return found

    def _entries(self, node: Any, path: Path, *, secret: bool) -> list[tuple[str, Any]]:
        """A mapping's keys and values after `<<` merges; of a key given twice, the last."""
        try:
            yaml.constructor.SafeConstructor().flatten_mapping(node)
        except yaml.MarkedYAMLError:
            self.problem(path, "must merge (<<) mappings only, got something else")
        merged = {key.value: (key, child) for key, child in node.value if isinstance(key, yaml.ScalarNode)}
        for name, (key, child) in merged.items():
            self._place((*path, name), child, position(key), secret=secret)
        return [(name, child) for name, (_, child) in merged.items() if name != "<<"]

    def _unknown(self, path: Path, form: Mapping[str, Key]) -> None:
        near = difflib.get_close_matches(str(path[-1]), form, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(form)}"
        self.problem(path, f"unknown key, {hint}")

    def _place(self, path: Path, node: Any, at: tuple[int, int] | None = None, *, secret: bool = False) -> None:
        self._places[path] = at or position(node)
        self._shown[path] = "a value that is not shown" if secret else show(node)

    def _misfit(self, node: Any, path: Path, rule: str, *, secret: bool = False) -> None:
        self.problem(path, f"{rule}, got {'a value that is not shown' if secret else noun(node)}")

    def _leaf(self, node: Any, path: Path, kind: Kind) -> object:
        if kind.secret:
            self._shown[path] = "a value that is not shown"
        if not isinstance(node, yaml.ScalarNode):
            self._misfit(node, path, kind.rule)
            return None
        value, from_environment = self._value(node, path)
        if value is None and from_environment:
            return None
        try:
            parsed = self._parse(kind, value, node, from_environment)
        except ValueError:
            self.broken(path, kind.rule)
            return None
        return self._located(path, kind, str(parsed)) if kind.path else parsed

    def _parse(self, kind: Kind, value: Value, node: Any, from_environment: bool) -> object:
        """A variable's text may be meant as text though it looks like a number, so both readings are tried."""
        try:
            return kind.parse(value)
        except ValueError:
            if not from_environment or node.style or not isinstance(value, str):
                raise
            return kind.parse(resolved(value))

    def _value(self, node: Any, path: Path) -> tuple[Value, bool]:
        """The scalar's value, and whether variables were put into it; (None, True) if that failed."""
        if node.tag not in PLAIN_TAGS:
            self.problem(path, "must have no YAML tag that is not a plain value's")
            return None, True
        if "${" not in node.value:
            return typed(node.tag, node.value), False
        failed = False

        def replace(match: re.Match[str]) -> str:
            nonlocal failed
            if match[0] == "$${":
                return "${"
            name = match[1]
            if not match[2] or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                failed = True
                self.problem(path, "must name a variable as ${NAME}, or write $${ for a plain ${")
            elif name not in self._environ:
                failed = True
                self.problem(path, f"environment variable {name} must be set, got nothing")
            return self._environ.get(name, "")

        replaced = VARIABLE.sub(replace, node.value)
        return (None, True) if failed else (replaced, True)

    def _located(self, path: Path, kind: Kind, name: str) -> str | None:
        located = os.path.normpath(os.path.join(self._base, name))
        if kind.path == "directory":
            fits = os.path.isdir(located) or not os.path.lexists(located)
        else:
            fits = os.path.isfile(located) and os.access(located, os.R_OK)
        if not fits:
            self.broken(path, kind.rule)
            return None
        return located


def build(struct: type[msgspec.Struct], draft: Draft) -> Any:
    """The struct of a draft without problems."""
    values = {name: _built(FORM[struct][name].shape, value) for name, value in draft.items()}
    return struct(**values)


def _built(shape: Shape, value: Any) -> Any:
    match shape:
        case Section():
            return build(shape.struct, value)
        case ListOf():
            return tuple(_built(shape.item, item) for item in value)
        case MapOf():
            return {name: _built(shape.item, item) for name, item in value.items()}
        case _:
            return value
