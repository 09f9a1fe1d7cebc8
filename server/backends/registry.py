"""Backends by name: ours from a table, others from the entry-point group `tidegate.backends`.

Nothing is imported before its name is asked for, so that a server without a runtime's package still says which one is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from server.backends.base import Backend
from server.errors import ModelDefect

GROUP = "tidegate.backends"
DEFAULT = "onnxruntime"
TENSORRT = "trt"
PYTORCH = "pytorch"
EMULATED = "emulated"
PYTHON = "python"
ENSEMBLE = "ensemble"
"""No backend: the platform of versions that other models run."""
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        DEFAULT: "server.backends.ort.backend:OnnxRuntimeBackend",
        TENSORRT: "server.backends.trt.backend:TensorRtBackend",
        PYTORCH: "server.backends.pytorch:PyTorchBackend",
        EMULATED: "server.backends.emulated:EmulatedBackend",
        PYTHON: "server.backends.python:PythonBackend",
    }
)
ISOLATED = frozenset({PYTHON})
"""Those that run a user's own code: in process lanes only."""
WHOLE_PROCESS = frozenset({PYTORCH})
"""Those that set things of their whole process: in process lanes unless model.yaml asks for another kind."""
_OURS = "it is part of tidegate: install tidegate again"
_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        DEFAULT: "install one of its two builds: pip install 'tidegate[cpu]' or, for NVIDIA GPUs, pip install 'tidegate[gpu]'",
        TENSORRT: _OURS,
        PYTORCH: _OURS,
        EMULATED: _OURS,
        PYTHON: _OURS,
    }
)


def backend_named(name: str) -> type[Backend]:
    """The backend called `name`. Raises ModelDefect that lists the known names, or says what to install."""
    if name in BUILT_IN:
        return _load(name, lambda: _attribute(BUILT_IN[name]), _ADVICE[name])
    for point in _entry_points():
        if point.name == name:
            package = point.dist.name if point.dist else point.module
            return _load(name, point.load, f"check the package {package!r}, which declares it")
    raise ModelDefect(f"unknown backend {name!r}; expected one of {', '.join(known_backends())}")


def known_backends() -> tuple[str, ...]:
    """All names that backend_named takes, ours first. A name of ours can't be taken over by another package."""
    others = {point.name for point in _entry_points()} - BUILT_IN.keys()
    return (*BUILT_IN, *sorted(others))


def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _attribute(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _load(name: str, load: Callable[[], Any], advice: str) -> type[Backend]:
    """Raises ModelDefect where the import fails: a package may lack its own parts, or an attribute that it declares."""
    try:
        found = load()
    except (ImportError, AttributeError) as error:
        raise ModelDefect(f"backend {name!r} can't be loaded: {error}; {advice}") from error
    if not (isinstance(found, type) and all(hasattr(found, method) for method in ("open", "run", "close"))):
        raise ModelDefect(f"backend {name!r} can't be loaded: {found!r} isn't a class with open, run and close; {advice}")
    return found
