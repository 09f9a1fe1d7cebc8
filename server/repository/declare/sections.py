"""The sections of model.yaml for models that are more than a file: Python classes, ensembles, models with a state or a cache; and for
what a file's runtime is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from server.quantities import Bytes, Timeout
from server.repository.model_values import MAX_RANK, VERSION_PATTERN
from server.units import size


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


CacheBytes = Annotated[int, BeforeValidator(size), Field(ge=0), WithJsonSchema({"type": ["integer", "string"]})]


def _version(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Step(_Section):
    """One model's part in an ensemble."""

    model: str = Field(min_length=1, max_length=255, description="The part's name.")
    version: Annotated[
        str, BeforeValidator(_version), WithJsonSchema({"type": ["integer", "string"], "minimum": 1, "pattern": VERSION_PATTERN})
    ] = Field(default="", pattern=f"^$|{VERSION_PATTERN}", description="Its version; default: the one that serves.")
    inputs: dict[str, str] = Field(min_length=1, description="By the part's input: the tensor of the ensemble that it takes.")
    outputs: dict[str, str] = Field(min_length=1, description="By the part's output: the tensor of the ensemble that it makes.")


class Steps(_Section):
    """An ensemble."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=64, description="Its parts, in any order.")


class State(_Section):
    """A tensor that goes from one request of a sequence to the next."""

    input: str = Field(min_length=1, max_length=255, description="The input that takes it; zeros at a sequence's beginning.")
    output: str = Field(min_length=1, max_length=255, description="The output that gives it for the next request.")
    batch_axis: int = Field(default=0, ge=0, lt=MAX_RANK, description="The axis of both that counts rows.")


class SequenceConfig(_Section):
    """What a stateful model keeps between the requests of a sequence."""

    state: tuple[State, ...] = Field(min_length=1, max_length=64, description="What is kept; clients neither send nor see it.")
    idle_timeout: Timeout = Field(default=60.0, description="Time after which a sequence that isn't used is forgotten.")
    max_sequences: int = Field(default=1024, ge=1, le=1 << 20, description="Most sequences that are kept; beyond them 503.")


class Cache(_Section):
    """Answers that are kept."""

    max_bytes: CacheBytes = Field(default=0, description="Most bytes of answers that are kept, such as 64MiB; 0: none.")


class Accelerator(_Section):
    """How onnxruntime runs an ONNX file on an NVIDIA GPU."""

    provider: Literal["cuda", "tensorrt"] = Field(
        default="cuda", description="cuda: its own kernels; tensorrt: engines that TensorRT builds at load, and keeps (`engines.cache`)."
    )
    memory: Bytes | None = Field(default=None, description="Most that its arena takes of the GPU, for each lane, such as 4GiB.")
    arena: Literal["exact", "double"] = Field(
        default="exact", description="How the arena grows: by what is asked for, or to twice its size, which is quicker and leaves less."
    )
    conv_search: Literal["heuristic", "exhaustive", "default"] = Field(
        default="heuristic", description="How cuDNN chooses convolutions; exhaustive tries them all for each new number of rows."
    )
    workspace: Bytes | None = Field(default=None, description="With tensorrt: scratch memory that a layer may take, such as 2GiB.")
    builder_level: int | None = Field(
        default=None, ge=0, le=5, description="With tensorrt: its effort, 0 to 5; default by the file's optimization level."
    )


class PythonCode(_Section):
    """Which class stands for a model."""

    code: str = Field(
        pattern=r"^[^/:]+\.py:[A-Za-z_][A-Za-z0-9_]*$",
        max_length=255,
        description="`FILE.py:Class`; the file lies in the version's folder or beside model.yaml.",
    )
    options: dict[str, Any] = Field(default={}, description="For the class: `context.options` of its `load`.")
