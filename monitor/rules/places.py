"""Where things stand in a rules file: line and column of every key and value, for messages that an editor can jump to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from server.documents import Document
from server.errors import ConfigError
from server.validation import KeyPath


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a key of the file. `at_key`: it's the key itself that's wrong, not its value."""

    key: KeyPath
    message: str
    at_key: bool = False


def complain(document: Document, findings: list[Finding]) -> ConfigError:
    """One error for all of them, a line each: `file:line:column: key: what is wrong`."""
    places = _places(document.path)
    return ConfigError("\n".join(_line(document, places, finding) for finding in findings))


def _line(document: Document, places: dict[tuple[KeyPath, bool], tuple[int, int]], finding: Finding) -> str:
    name = ".".join(str(part) for part in finding.key)
    place = places.get((finding.key, finding.at_key)) or _above(places, finding.key)
    where = f"{document.path}:{place[0]}:{place[1]}" if place else document.where(finding.key)
    return f"{where}: {name}: {finding.message}" if name else f"{where}: {finding.message}"


def _above(places: dict[tuple[KeyPath, bool], tuple[int, int]], key: KeyPath) -> tuple[int, int] | None:
    """The place of the nearest key above one that the file doesn't have."""
    while key:
        key = key[:-1]
        if (key, False) in places:
            return places[key, False]
    return None


def _places(path: Path) -> dict[tuple[KeyPath, bool], tuple[int, int]]:
    """(key, whether the key itself) → line and column, counted from 1. The file was read before: it is small, and not deep."""
    try:
        root = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # it changed since
        return {}
    return dict(_walk(root, ())) if root is not None else {}


def _walk(node: yaml.Node, key: KeyPath) -> Iterator[tuple[tuple[KeyPath, bool], tuple[int, int]]]:
    yield (key, False), _mark(node)
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            inner = (*key, str(key_node.value))
            yield (inner, True), _mark(key_node)
            yield from _walk(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, (*key, index))


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
