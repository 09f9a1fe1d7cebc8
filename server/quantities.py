"""The kinds of value that settings have: times, sizes and shares with their units, ports, lists of words. Each is what pydantic makes of
the text in a file, a variable or a flag, with its JSON Schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

from server.units import duration, ratio, size


def _words(value: object) -> object:
    """`all`, `any`, or names: a list, or text with commas between them."""
    if not isinstance(value, str) or value in ("all", "any"):
        return value
    return [name.strip() for name in value.split(",") if name.strip()]


def _list(value: object) -> object:
    """A list, or text with commas between its words."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _port_or_none(value: object) -> object:
    """`off`, `none` or a port."""
    return None if value in ("off", "none") else value


def _place(value: object) -> object:
    """A file, or the address of a Redis."""
    if not isinstance(value, str) or "://" not in value:
        return value if not isinstance(value, str) else Path(value)
    if not value.startswith(("redis://", "rediss://")):
        raise ValueError(f"expected a file, redis://… or rediss://…, got {value.partition('://')[0][:20]}://…")
    return value


def _text(pattern: str, number: str, least: float = 0) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": number, "minimum": least}, {"type": "string", "pattern": pattern}]})


_SECONDS = _text(r"^\s*[0-9.]+\s*(ns|us|µs|ms|s|m|h|d)?\s*$", "number")
_BYTES = _text(r"^\s*[0-9.]+\s*([kKMGT]?B|[KMGT]iB?)?\s*$", "integer")
_SHARE = _text(r"^\s*[0-9.]+\s*%?\s*$", "number")

Seconds: TypeAlias = Annotated[float, BeforeValidator(duration), _SECONDS]
Timeout: TypeAlias = Annotated[float, BeforeValidator(duration), Field(gt=0), _SECONDS]
Bytes: TypeAlias = Annotated[int, BeforeValidator(size), Field(gt=0), _BYTES]
Share: TypeAlias = Annotated[float, BeforeValidator(ratio), _SHARE]
Count: TypeAlias = Annotated[int, BeforeValidator(lambda value: 0 if value == "auto" else value), Field(ge=0, le=1024)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]
OptionalPort: TypeAlias = Annotated[
    Port | None,
    BeforeValidator(_port_or_none),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"enum": ["off", "none", None]}]}),
]
Words: TypeAlias = Annotated[Literal["all", "any"] | tuple[str, ...], BeforeValidator(_words)]


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_list)]
Allowance: TypeAlias = Literal["upload", "files", "shared-memory"]
Allowances: TypeAlias = Annotated[
    tuple[Allowance, ...],
    BeforeValidator(_list),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"enum": list(get_args(Allowance))}}, {"type": "string"}]}),
]
StateAt: TypeAlias = Annotated[Path | str, BeforeValidator(_place), WithJsonSchema({"type": "string"})]
