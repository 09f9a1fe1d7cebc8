"""What pydantic found wrong, in people's words: the key, what is right there, and for an unknown word the nearest right one."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_COMPLAINTS = 5
SHOWN = 64

KeyPath: TypeAlias = tuple[str | int, ...]


def complaints(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """The first few findings about data for `model`, as (key, text)."""
    seen: set[KeyPath] = set()
    for detail in error.errors():
        key = _key(model, detail)
        if key not in seen and len(seen) < MAX_COMPLAINTS:
            seen.add(key)
            yield key, _text(model, key, detail)


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the right word nearest to `word`, else the list of right words."""
    right = list(words)
    close = difflib.get_close_matches(word[:SHOWN], right, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {', '.join(right)}" if right else ""


def _key(model: type[BaseModel], detail: ErrorDetails) -> KeyPath:
    """The location, without the labels that pydantic puts in for a union's branches."""
    key: list[str | int] = []
    kind: Any = model
    unknown = detail["type"] == "extra_forbidden"
    for index, part in enumerate(detail["loc"]):
        inner = _inner(kind, part)
        if inner is not None or (unknown and index == len(detail["loc"]) - 1):
            key.append(part)
            kind = inner
    return tuple(key)


def _text(model: type[BaseModel], key: KeyPath, detail: ErrorDetails) -> str:
    given = "…" if key and "password" in str(key[-1]) else str(detail["input"])[:SHOWN]
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {key[-1]!r}{nearest(str(key[-1]), _words(model, key[:-1]))}"
        case "missing":
            return "must be given"
        case "literal_error":
            words = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
            return f"got {given!r}{nearest(given, words)}"
        case "value_error":
            return str(detail["ctx"]["error"])
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {given!r}"


def _words(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that `model` takes at `path`."""
    kind: Any = model
    for part in path:
        kind = _inner(kind, part)
    return [field.alias or name for found in _models(kind) for name, field in found.model_fields.items()]


def _inner(kind: Any, part: int | str) -> Any:
    """The type at `part` inside `kind`, None where `kind` has no such part."""
    for found in _models(kind):
        for name, field in found.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
    for branch in _branches(kind):
        arguments = typing.get_args(branch)
        if typing.get_origin(branch) in (dict, Mapping) and isinstance(part, str):
            return arguments[1]
        if typing.get_origin(branch) in (list, tuple) and isinstance(part, int):
            return arguments[0]
    return None


def _models(kind: Any) -> list[type[BaseModel]]:
    return [branch for branch in _branches(kind) if isinstance(branch, type) and issubclass(branch, BaseModel)]


def _branches(kind: Any) -> list[Any]:
    """`kind` itself, or a union's members, without what Annotated adds."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _branches(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [branch for member in typing.get_args(kind) for branch in _branches(member)]
    return [kind]
