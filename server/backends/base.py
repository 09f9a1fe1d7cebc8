"""The backend seam: what opens a model file and runs it. Nothing here knows of requests, queues or lanes.

A backend is found by name in the entry-point group `tidegate.backends` (backends/registry.py); a third party adds one by
declaring its class there. One instance serves one lane and is called by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from server.tensors import Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """All that a lane needs to open one precision of one version. Made by repository.loader; plain values, so that it can be
    sent to a child process.

    `device` is "cpu" or "cuda:N". `threads` is intra-op threads, 0 for the backend's default. `optimization_level` is the
    exporter's (0 to 4) and says how much the backend may optimise at load. `inputs` and `outputs` override what the file says
    where they aren't empty. `options` are the backend's own settings. `reshape` has
    the shapes that the model itself takes and gives, by tensor, where `inputs` and `outputs` declare others of as many elements.
    """

    model: str
    version: str
    precision: str
    backend: str
    path: Path
    device: str = "cpu"
    threads: int = 0
    optimization_level: int = 2
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    reshape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Backend(Protocol):
    """An opened model.

    `inputs` and `outputs` are what the file takes and gives, batch axis included; `batch_axis` is 0 in each spec of a model whose
    first axis varies in all of them, None in each where it doesn't.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: ClassVar[str]
    """Name and version of the runtime, for metadata and manifests."""

    @classmethod
    def open(cls, spec: VariantSpec) -> Backend:
        """Open the file. Raises ModelDefect: which file, what was asked for, what was found."""
        ...

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Run one batch of `rows` rows and return the outputs by name; arrays of `out`, where given, are written and returned.

        Inputs may be read-only views at any address (of a client's body). The arrays returned belong to the caller.
        Raises InvalidRequest where the runtime blames the input, else BackendFailure.
        """
        ...

    def close(self) -> None:
        """Give back memory and handles. The instance isn't used again."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """What a backend has, too, whose models may be decoupled: any number of answers to one request."""

    def stream(self, inputs: Mapping[str, Tensor], rows: int) -> Iterator[dict[str, Tensor]]:
        """Each answer as soon as it's there, as `run` gives one. An iterator with `close` is closed where nobody wants the rest."""
        ...
