"""model.yaml: what an operator says about one model. Without the file, everything is read from the model.

Only keys that this release acts on are taken. Those that the design has for later are refused by name, never ignored; others are refused
with the file, the line and the nearest right word. JSON Schema: docs/schemas/model.json (generated, tested); docs/repository.md explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from server.config import VERSION
from server.documents import Document, read_yaml
from server.errors import ModelDefect
from server.repository.emulation import Emulate
from server.tensors import DTYPES
from server.validation import KeyPath, nearest

CONFIG_NAME = "model.yaml"
MAX_RANK = 16
VERSION_PATTERN = r"^[1-9][0-9]{0,17}$"

NOT_BUILT: Mapping[tuple[str, ...], tuple[str, ...]] = MappingProxyType(
    {
        (): ("routing", "sequence", "decoupled", "ensemble", "cache", "recording", "signature"),
        ("batching",): (*("max_wait", "latency_objective", "preferred_rows", "pad_axes", "pad_values", "length_buckets"),),
        ("queue",): ("timeout", "on_late", "priorities", "tenants"),
        ("precision",): ("policy", "ladder", "guard"),
        ("lanes",): ("memory_limit",),
    }
)
"""Keys of the design that no part of this release acts on, by the section they stand in."""


def _count(value: object) -> object:
    return 0 if value == "auto" else value


def _versions(value: object) -> object:
    """latest, all, or version numbers, which people write as numbers and the protocol as text."""
    if value in ("latest", "all"):
        return value
    if not isinstance(value, list | tuple) or not value:
        given = f"; got {value!r}"[:80] + (nearest(value, ("latest", "all")) if isinstance(value, str) else "")
        raise ValueError(f"expected latest, all or a list of versions such as [1, 3]{given}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | str) or not str(item).isdecimal() or str(item).startswith("0"):
            raise ValueError(f"a version is a whole number from 1, got {item!r}")
    return tuple(str(item) for item in value)


def _dtype(value: object) -> object:
    if isinstance(value, str) and value not in DTYPES:
        raise ValueError(f"unknown datatype {value!r}{nearest(value.upper(), DTYPES)}")
    return value


def _batch_axis(value: object) -> object:
    if value is not None and (isinstance(value, bool) or value != 0):
        raise ValueError(
            f"expected 0, or null where the tensor isn't per row, got {value!r}; other axes aren't built yet in tidegate {VERSION}"
        )
    return value


_AUTO = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 1024}, {"const": "auto"}]})
_POLICY = WithJsonSchema(
    {
        "anyOf": [
            {"enum": ["latest", "all"]},
            {"type": "array", "minItems": 1, "items": {"type": ["integer", "string"], "minimum": 1, "pattern": VERSION_PATTERN}},
        ]
    }
)
Rows: TypeAlias = Annotated[int, Field(ge=1, le=65536)]
Count: TypeAlias = Annotated[int, BeforeValidator(_count), Field(ge=0, le=1024), _AUTO]
Policy: TypeAlias = Annotated[Literal["latest", "all"] | tuple[str, ...], BeforeValidator(_versions), _POLICY]
Datatype: TypeAlias = Annotated[str, BeforeValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]
Shape: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(max_length=MAX_RANK)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, values: object) -> object:
        """A section without content is one without settings."""
        return {} if values is None else values


class Batching(_Section):
    """How requests become runs."""

    max_rows: Rows = Field(default=64, description="Most rows in one run; 1 serves the model unbatched.")


class Queue(_Section):
    """What may wait."""

    max_rows: Rows = Field(default=1024, description="Most rows that wait; beyond them requests are refused with 503.")


class Precision(_Section):
    """Which variant of a version answers."""

    active: str | None = Field(default=None, max_length=32, description="A precision of the manifest; default fp32, else its first.")


class Versions(_Section):
    """Which versions are served."""

    policy: Policy = Field(default="latest", description="latest (the highest number), all, or a list of numbers.")


class Lanes(_Section):
    """Where batches run."""

    count: Count = Field(default=0, description="Lanes; 0 or auto: chosen at warm-up.")
    kind: Literal["auto", "inline", "thread"] = Field(default="auto", description="auto: inline for runs shorter than a hop to a thread.")
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda:[0-9]{1,3})$", description="cpu or cuda:N; default the server's.")
    threads: Count = Field(default=0, description="Threads a run takes; 0 or auto: the server's setting, else the cores shared out.")


class Warmup(_Section):
    """What is run before the model is ready."""

    rows: tuple[Rows, ...] = Field(default=(), max_length=64, description="Rows of the runs; default 1, 4, 16 and batching.max_rows.")


class TensorConfig(_Section):
    """What is said about one input or output; what isn't said is read from the manifest or the file."""

    dtype: Datatype | None = Field(default=None, description="Its datatype; must be the file's.")
    shape: Shape | None = Field(default=None, description="Its whole shape, -1 where an axis varies; must fit the file's.")
    batch_axis: Annotated[Literal[0] | None, BeforeValidator(_batch_axis)] = Field(
        default=None, description="0: its first axis counts rows; null: it isn't per row. Said here, it isn't put to the proof at warm-up."
    )
    max_shape: Shape | None = Field(default=None, description="Longest that each axis of a request may be, -1 for no bound.")
    labels: str | None = Field(default=None, max_length=255, description="File beside model.yaml with a name a line for the last axis.")


class ModelConfig(_Section):
    """All of model.yaml."""

    name: str | None = Field(default=None, max_length=255, description="The folder's name, where one wants to see it in the file.")
    description: str = Field(default="", max_length=4096, description="For people.")
    backend: str | None = Field(default=None, max_length=64, description="What runs the model; default the manifest's, else onnxruntime.")
    batching: Batching = Batching()
    queue: Queue = Queue()
    precision: Precision = Precision()
    versions: Versions = Versions()
    lanes: Lanes = Lanes()
    warmup: Warmup = Warmup()
    emulate: Emulate | None = Field(default=None, description="With `backend: emulated`: published latencies in place of a model.")
    inputs: dict[str, TensorConfig] = Field(default={}, description="By name.")
    outputs: dict[str, TensorConfig] = Field(default={}, description="By name.")


def read_model_config(folder: Path) -> ModelConfig:
    """The model.yaml of a repository entry, all defaults where there's none. Raises ModelDefect with file, line and key."""
    path = folder / CONFIG_NAME
    if not path.exists():
        return ModelConfig()
    document = read_yaml(path, ModelDefect)
    _refuse_not_built(document)
    config = document.read_as(ModelConfig)
    if config.name not in (None, folder.name):
        raise document.error(("name",), f"is {config.name!r}, but the folder, whose name clients ask for, is {folder.name!r}")
    return config


def model_schema() -> dict[str, Any]:
    """JSON Schema of model.yaml."""
    schema = ModelConfig.model_json_schema()
    schema["title"] = CONFIG_NAME
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _refuse_not_built(document: Document) -> None:
    for section, words in NOT_BUILT.items():
        values: Any = document.data
        for part in section:
            values = values.get(part)
        for word in words:
            if isinstance(values, dict) and word in values:
                raise _not_built(document, (*section, word))
    lanes = document.data.get("lanes")
    if isinstance(lanes, dict) and lanes.get("kind") == "process":
        raise _not_built(document, ("lanes", "kind"), "process ")


def _not_built(document: Document, key: KeyPath, what: str = "") -> Exception:
    return document.error(key, f"{what}isn't built yet in tidegate {VERSION}")
