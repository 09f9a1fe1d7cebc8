"""What is served: public name → version → its state and, when ready, its engine. The control plane writes it, everyone else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from server.engine.admission import Terms
from server.engine.engine import Engine
from server.messages import CancelHandle, InferRequest, ModelKey, OnResponse
from server.metrics.figures import Figures
from server.metrics.statistics import Memory
from server.precision.variants import Variant
from server.repository.declare.expected import Expected
from server.repository.manifest import Manifest
from server.repository.model_config import ModelConfig
from server.tensors import TensorSpec

NO_VERSIONS: frozenset[str] = frozenset()


class State(StrEnum):
    """As the repository index names them."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


class Front(Protocol):
    """What takes the requests of a version: its engine, what stands before it, or what has none (an ensemble). `max_rows` 0: unbatched."""

    key: ModelKey
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int
    terms: Terms
    figures: Figures

    def submit(self, request: InferRequest, on_response: OnResponse) -> CancelHandle:
        """As Engine.submit."""
        ...


@dataclass(slots=True, eq=False)
class ServedVariant(Variant):
    """One precision of a served version. `served` is the version as it serves in this one: there while it's loaded, in the table while
    it's active. `figures` are what it did, since it was first loaded; `holders` are those who asked that it stay so."""

    served: ServedVersion | None = None
    figures: Figures | None = None
    holders: int = 0

    @property
    def engine(self) -> Engine | None:
        """What runs it, None where it isn't loaded."""
        return None if self.served is None else self.served.engine


@dataclass(slots=True, eq=False)
class ServedVersion:
    """One version of a model. `reason` says why it is as it is; `engine` is there only while READY; `lanes` says which and why.
    `front` takes the requests in the engine's place where there's one. `variants` are its precisions by name, the same object for all of
    them, and the most exact first; `offered` are their names, that first which its model.yaml asks for.
    `config` is its model.yaml, `unpadded` why it isn't padded although that asks for it. `filename`
    is the file that runs, on `device`; `memory` what it holds, as far as that was seen at load, which took `load_seconds`. `note` is what
    `reason` says while all is well, `leaving` the version as it served while it answers its last requests. `expected` is what others
    measured of its precisions."""

    model: str
    version: str
    state: State
    reason: str = ""
    engine: Engine | None = None
    manifest: Manifest | None = None
    platform: str = ""
    lanes: str = ""
    config: ModelConfig = field(default_factory=ModelConfig)
    unpadded: str = ""
    filename: str = ""
    note: str = ""
    leaving: ServedVersion | None = None
    device: str = "cpu"
    memory: tuple[Memory, ...] = ()
    load_seconds: float = 0.0
    front: Front | None = None
    expected: Expected = field(default_factory=dict)
    variants: dict[str, ServedVariant] = field(default_factory=dict)
    offered: tuple[str, ...] = ()

    @property
    def serving(self) -> Front | None:
        """What takes requests, None where nothing does."""
        return self.front or self.engine


class ServingTable:
    """Versions by model name. `default` answers for a name alone: the highest version that is ready. `on_change` is called after each
    change, and may change more."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedVersion]] = {}
        self._default: dict[str, ServedVersion] = {}
        self._ready: dict[str, frozenset[str]] = {}
        self.on_change: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[ServedVersion]:
        for name in sorted(self._models):
            versions = self._models[name]
            yield from (versions[number] for number in sorted(versions, key=_ordinal))

    def names(self) -> list[str]:
        return sorted(self._models)

    def put(self, entry: ServedVersion) -> None:
        """Add or replace a version."""
        self._models.setdefault(entry.model, {})[entry.version] = entry
        self._choose(entry.model)
        self.on_change()

    def remove(self, model: str, version: str) -> None:
        """Forget a version, and the name with its last one."""
        versions = self._models.get(model, {})
        versions.pop(version, None)
        if not versions:
            self._models.pop(model, None)
        self._choose(model)
        self.on_change()

    def _choose(self, model: str) -> None:
        ready = [entry for entry in self.versions(model) if entry.state is State.READY]
        self._ready[model] = frozenset(entry.version for entry in ready)
        if ready:
            self._default[model] = max(ready, key=lambda entry: _ordinal(entry.version))
        else:
            self._default.pop(model, None)
            self._ready.pop(model)

    def default(self, model: str) -> ServedVersion | None:
        return self._default.get(model)

    def ready(self, model: str) -> frozenset[str]:
        """The versions of a model that take requests."""
        return self._ready.get(model, NO_VERSIONS)

    def version(self, model: str, version: str) -> ServedVersion | None:
        return self._models.get(model, {}).get(version)

    def versions(self, model: str) -> list[ServedVersion]:
        return list(self._models.get(model, {}).values())


def engines_of(served: ServedVersion) -> list[Engine]:
    """The engines of all variants that are loaded. Any thread."""
    loaded = [variant.engine for variant in served.variants.copy().values()]
    found = [engine for engine in loaded if engine is not None]
    return found or ([served.engine] if served.engine is not None else [])


def _ordinal(version: str) -> int:
    return int(version) if version.isdecimal() else -1
