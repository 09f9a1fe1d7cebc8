"""model.yaml: what an operator says about one model. Without the file, everything is read from the model.

Only keys that this release acts on are taken. Those that the design has for later are refused by name, never ignored; others are refused
with the file, the line and the nearest right word. JSON Schema: docs/schemas/model.json (generated, tested); docs/repository.md explains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.config import VERSION
from server.documents import Document
from server.quantities import Bytes, Seconds, Timeout
from server.repository.declare.precision import Precision
from server.repository.declare.routing import Routing
from server.repository.declare.sections import Accelerator, Cache, PythonCode, SequenceConfig, Steps
from server.repository.emulation import Emulate
from server.repository.model_values import BatchAxis, Buckets, Count, Datatype, PadAxes, PadValue, Policy, Rising, Rows, Shape
from server.validation import KeyPath, nearest

CONFIG_NAME = "model.yaml"
MAX_TENANTS = 32
OTHER_TENANT = "other"
"""Whom all tenants count as that model.yaml doesn't name."""
_TENANT = re.compile(r"[A-Za-z0-9_.@-]{1,64}")

NOT_BUILT: Mapping[tuple[str, ...], tuple[str, ...]] = MappingProxyType(
    {
        (): ("recording", "signature"),
    }
)
"""Keys of the design that no part of this release acts on, by the section they stand in."""


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
    max_wait: Seconds | None = Field(
        default=None, description="Longest that a request waits for a fuller run while a lane is free; default: no longer than it pays."
    )
    latency_objective: Timeout | None = Field(
        default=None, description="Time within which answers should come, such as 50ms: sizes runs and what counts as capacity."
    )
    preferred_rows: Rising = Field(default=(), description="Sizes that runs should have, such as an engine's optimisation profiles.")
    pad_axes: dict[str, PadAxes] = Field(default={}, description="By input: axes on which requests of unlike length share a run, padded.")
    pad_values: dict[str, PadValue] = Field(default={}, description="By input: what its padding is filled with; default 0.")
    length_buckets: Buckets = Field(
        default="auto",
        description="Where to look for neighbours in length: auto or geometric (by √2), or upper bounds such as [16, 32, 64]. Which of "
        "them share a run is decided by what runs were seen to cost.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Batching:
        if self.preferred_rows and self.preferred_rows[-1] > self.max_rows:
            raise ValueError(f"preferred_rows: {self.preferred_rows[-1]} is more than max_rows, {self.max_rows}")
        for name in self.pad_values:
            if name not in self.pad_axes:
                raise ValueError(f"pad_values: {name!r} has no pad_axes{nearest(name, self.pad_axes)}")
        return self


class Tenant(_Section):
    """What one tenant may take."""

    weight: float = Field(default=1.0, gt=0, le=1e6, description="Its share of a busy model, relative to the others'.")
    rows_per_s: float | None = Field(default=None, gt=0, description="Most rows a second; beyond them its requests are refused with 503.")
    bytes_per_s: Bytes | None = Field(default=None, description="Most bytes of tensors a second, such as 10MiB.")


def _tenants_schema(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, schema["additionalProperties"]]}


class Queue(_Section):
    """What may wait, how long, and who goes first."""

    max_rows: Rows = Field(default=1024, description="Most rows that wait; beyond them requests are refused with 503.")
    max_bytes: Bytes | None = Field(default=None, description="Most bytes of tensors that wait; default: as limits.inflight_bytes allows.")
    timeout: Timeout | None = Field(
        default=None, description="Time within which a request that doesn't say its own must be answered, else it's refused with 503."
    )
    on_late: Literal["serve", "reject"] = Field(
        default="serve", description="reject: where there's no timeout, latency_objective is one; serve: it's only aimed at."
    )
    priorities: int = Field(default=1, ge=1, le=16, description="Levels of priority: 1 is served first, this number last and by default.")
    tenants: dict[str, Tenant] = Field(
        default={},
        max_length=MAX_TENANTS,
        description="By name: a weight, or `{weight, rows_per_s, bytes_per_s}`; others share the name `other`.",
        json_schema_extra=_tenants_schema,
    )

    @field_validator("tenants", mode="before")
    @classmethod
    def _weights(cls, tenants: object) -> object:
        """`{a: 3}` is `{a: {weight: 3}}`."""
        if not isinstance(tenants, dict):
            return tenants
        for name in tenants:
            if not _TENANT.fullmatch(str(name)) or name == OTHER_TENANT:
                raise ValueError(f"a tenant's name is 1 to 64 letters, digits and _.@- and not {OTHER_TENANT!r}, got {str(name)[:80]!r}")
        return {
            name: {"weight": said} if isinstance(said, int | float) and not isinstance(said, bool) else said
            for name, said in tenants.items()
        }


class Versions(_Section):
    """Which versions are served."""

    policy: Policy = Field(default="latest", description="latest (the highest number), all, or a list of numbers.")
    count: int = Field(default=1, ge=1, le=1024, description="With latest: how many versions, from the highest down.")


class Lanes(_Section):
    """Where batches run."""

    count: Count = Field(default=0, description="Lanes; 0 or auto: chosen at warm-up.")
    kind: Literal["auto", "inline", "thread", "process"] = Field(
        default="auto",
        description="auto: inline where runs are shorter than a hop to a thread, process where the loop is busy, else thread.",
    )
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda:[0-9]{1,3})$", description="cpu or cuda:N; default the server's.")
    threads: Count = Field(default=0, description="Threads a run takes; 0 or auto: the server's setting, else what is measured at warm-up.")
    memory_limit: Bytes | None = Field(default=None, description="Most that a process lane may allocate, such as 4GiB; not on the GPU.")
    pin: bool = Field(default=False, description="Each process lane on cores of its own, as many as it has threads.")
    run_limit: Timeout = Field(
        default=10.0,
        description="Time after which a process lane's run counts as hung, unless its like took long before.",
    )


class Warmup(_Section):
    """What is run before the model is ready."""

    rows: tuple[Rows, ...] = Field(default=(), max_length=64, description="Rows of the runs; default 1, 4, 16 and batching.max_rows.")
    skip: bool = Field(default=False, description="Run nothing: for a model that takes no made-up inputs. What it costs is learned later.")


class TensorConfig(_Section):
    """What is said about one input or output; what isn't said is read from the manifest or the file."""

    dtype: Datatype | None = Field(default=None, description="Its datatype; must be the file's.")
    shape: Shape | None = Field(default=None, description="Its whole shape, -1 where an axis varies; must fit the file's.")
    batch_axis: BatchAxis = Field(
        default=None, description="0: its first axis counts rows; null: it isn't per row. Said here, it isn't put to the proof at warm-up."
    )
    reshape: Shape | None = Field(
        default=None, description="The whole shape that the model itself has, where `shape` is another of as many elements."
    )
    max_shape: Shape | None = Field(default=None, description="Longest that each axis of a request may be, -1 for no bound.")
    labels: str | None = Field(default=None, max_length=255, description="File beside model.yaml with a name a line for the last axis.")

    @model_validator(mode="after")
    def _reshapes(self) -> TensorConfig:
        if self.reshape is None:
            return self
        if self.shape is None:
            raise ValueError(f"reshape: {list(self.reshape)} needs `shape`, in which clients have the tensor")
        rows = int(self.batch_axis == 0)
        ends = (self.shape[rows:], self.reshape[rows:])
        open_ = [end.count(-1) for end in ends]
        if max(open_) > 1 or open_[0] != open_[1] or math.prod(ends[0]) != math.prod(ends[1]):
            raise ValueError(f"reshape: {list(self.reshape)} hasn't as many elements as the shape {list(self.shape)}")
        return self


class OutputConfig(TensorConfig):
    """What is said about one output."""

    pad_axes: PadAxes = Field(
        default=(), description="Its axes that are as long as the padded input; default: those that the file gives a padded axis' name."
    )


class ModelConfig(_Section):
    """All of model.yaml."""

    name: str | None = Field(default=None, max_length=255, description="The folder's name, where one wants to see it in the file.")
    description: str = Field(default="", max_length=4096, description="For people.")
    backend: str | None = Field(default=None, max_length=64, description="What runs the model; default the manifest's, else onnxruntime.")
    file: str | None = Field(
        default=None, max_length=255, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", description="The model's file in a version's folder."
    )
    parameters: dict[str, str] = Field(
        default={}, max_length=256, description="For the model's code and for who reads its configuration, by name."
    )
    batching: Batching = Batching()
    queue: Queue = Queue()
    precision: Precision = Precision()
    versions: Versions = Versions()
    routing: Routing = Routing()
    lanes: Lanes = Lanes()
    warmup: Warmup = Warmup()
    accelerator: Accelerator | None = Field(default=None, description="For an ONNX file on a GPU: how onnxruntime runs it there.")
    emulate: Emulate | None = Field(default=None, description="With `backend: emulated`: published latencies in place of a model.")
    python: PythonCode | None = Field(default=None, description="With `backend: python`: a class of one's own in place of a model.")
    decoupled: bool = Field(default=False, description="With `backend: python`: any number of answers to a request, over streams only.")
    sequence: SequenceConfig | None = Field(default=None, description="For a model with a state that goes from request to request.")
    cache: Cache = Cache()
    ensemble: Steps | None = Field(default=None, description="In place of a model: others, which hand their tensors on to each other.")
    inputs: dict[str, TensorConfig] = Field(default={}, description="By name.")
    outputs: dict[str, OutputConfig] = Field(default={}, description="By name.")

    @model_validator(mode="after")
    def _stays(self) -> ModelConfig:
        if self.sequence is not None and self.routing != Routing():
            raise ValueError("routing: a model with a `sequence` keeps state between requests, so one version must have them all")
        if self.decoupled and self.routing.shadow is not None:
            raise ValueError("routing.shadow: a decoupled model gives any number of answers, so they aren't compared")
        return self


def model_schema() -> dict[str, Any]:
    """JSON Schema of model.yaml."""
    schema = ModelConfig.model_json_schema()
    schema["title"] = CONFIG_NAME
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def refuse_not_built(document: Document) -> None:
    """Raises the document's kind of error for a key of the design that no part of this release acts on."""
    for section, words in NOT_BUILT.items():
        values: Any = document.data
        for part in section:
            values = values.get(part)
        for word in words:
            if isinstance(values, dict) and word in values:
                raise _not_built(document, (*section, word))


def _not_built(document: Document, key: KeyPath) -> Exception:
    return document.error(key, f"isn't built yet in tidegate {VERSION}")
