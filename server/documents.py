"""YAML files as people write them, read within bounds and with the line of every key, so that errors say where.

YAML 1.2's plain scalars (`off`, `no` and `1:30` are text), because a setting may be called off. Keys are text. Refused: files
over 1 MiB, duplicate keys, merge keys, tags, deep nesting, and aliases that expand to more than 20,000 values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from server.errors import ConfigError, TidegateError
from server.validation import KeyPath, complaints

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 32

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file whose top is a mapping (an empty file is an empty one). `raising` is its reader's kind of error."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]
    raising: type[TidegateError]

    def where(self, key: KeyPath) -> str:
        """`file:line` of a key, or of the nearest key above it that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"

    def error(self, key: KeyPath, message: str) -> TidegateError:
        """The error for what is wrong at `key`, to be raised by the caller. A section that is at odds with itself names the key that is
        meant, first in its message: that one's line is told."""
        name, meant = ".".join(str(part) for part in key), (*key, message.partition(":")[0])
        where = self.where(meant if meant in self.lines else key)
        return self.raising(f"{where}: {name}: {message}" if name else f"{where}: {message}")

    def read_as(self, model: type[M]) -> M:
        """The document as `model`. Raises `raising` with file, line, key and, for an unknown word, the nearest right one."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            found = [str(self.error(key, message)) for key, message in complaints(model, error)]
            raise self.raising("; ".join(found)) from error


def read_yaml(path: Path, raising: type[TidegateError] = ConfigError) -> Document:
    """Read a YAML file. Raises `raising` that names the file and the line."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise raising(f"{path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise raising(f"{path}: can't be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise raising(f"{path}: larger than {MAX_BYTES} bytes, which no settings file needs")
    return parse_yaml(content, path, raising)


def parse_yaml(content: bytes | str, path: Path, raising: type[TidegateError] = ConfigError) -> Document:
    """The document of `content`; `path` is what errors call it."""
    try:
        root = _Loader(content).get_single_node()
        if root is None:
            return Document(path, {}, {(): 1}, raising)
        lines: dict[KeyPath, int] = {}
        data = _Values(lines).value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise raising(f"{path}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise raising(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise raising(f"{path}:1: expected keys and values, got {type(data).__name__}")
    return Document(path, data, lines, raising)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; nothing is constructed by tag."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_PREFIX = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_PREFIX + _kind, re.compile(f"^(?:{_pattern})$"), _first)


class _Values:
    """Nodes → plain values, noting the line of each key."""

    def __init__(self, lines: dict[KeyPath, int]) -> None:
        self.lines = lines
        self.count = 0
        self.open: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        self.lines.setdefault(path, node.start_mark.line + 1)
        if self.count > MAX_VALUES:
            raise _problem(f"more than {MAX_VALUES} values (aliases expanded)", node)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self.open:
            raise _problem("an alias inside what it stands for", node)
        self.open.add(id(node))
        try:
            return self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        finally:
            self.open.discard(id(node))

    def sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        if node.tag != _PREFIX + "seq":
            raise _problem(f"tag {node.tag!r} isn't allowed here", node)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        if node.tag != _PREFIX + "map":
            raise _problem(f"tag {node.tag!r} isn't allowed here", node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node)
            if key in values:
                raise _problem(f"key {key!r} is given twice (first in line {self.lines[*path, key]})", key_node)
            self.lines[*path, key] = key_node.start_mark.line + 1
            values[key] = self.value(value_node, (*path, key))
        return values

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _problem("a key must be text", node)
        key: str = node.value
        if key == "<<":
            raise _problem("merge keys (<<) aren't read here; write the keys out", node)
        return key


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix(_PREFIX)
    text: str = node.value
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text[0] in "tT"
    if kind == "int":
        return _integer(node, text)
    if kind == "float":
        return float(text)
    raise _problem(f"tag {node.tag!r} isn't allowed here", node)


def _integer(node: yaml.ScalarNode, text: str) -> int:
    if len(text) > 100:
        raise _problem("a number of more than 100 digits", node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _problem(message: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
