"""Versions without a model file: model.yaml declares their tensors. An emulated device, a Python class, an ensemble."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from server.backends.base import VariantSpec
from server.backends.latency_table import BUILT_IN
from server.backends.registry import EMULATED, ENSEMBLE, PYTHON
from server.documents import Document
from server.repository.configs.pbtxt import PBTXT_NAME
from server.repository.configs.reading import config_document, config_path
from server.repository.declare.expected import check_precisions, published
from server.repository.declare.said import Loadable, checked_file, declared_values, specs_said
from server.repository.declare.state import check_state
from server.repository.emulation import curves_of, note, table_of
from server.repository.model_config import ModelConfig
from server.repository.pad_axes import padding_of
from server.repository.store import Entry
from server.tensors import TensorSpec

TRITONS_CLASS = (
    "a TritonPythonModel (model.py) isn't run here. Put what its `execute` does into the `infer` of a class, and name that in model.yaml, "
    f"which then is read instead: `backend: {PYTHON}`, `python: {{code: FILE.py:Class}}`, inputs and outputs (docs/python_backend.md)"
)


def emulated(entry: Entry, version: str, config: ModelConfig) -> Loadable:
    """A version without a file: model.yaml declares its tensors, a published table says how long it takes."""
    document = config_document(entry.path)
    emulate, lanes = config.emulate, config.lanes
    if emulate is None or config.backend != EMULATED:
        missing = "backend" if emulate else "emulate"
        raise document.error(("backend",), f"`backend: {EMULATED}` and `emulate: {{model: …}}` belong together; {missing} is missing")
    if lanes.kind not in ("auto", "thread"):
        raise document.error(("lanes", "kind"), f"an emulated device sleeps in a thread: expected auto or thread, got {lanes.kind!r}")
    check_precisions(entry, config, emulate.have, "emulate.precisions")
    precision = config.precision.first or emulate.have[0]
    table = table_of(document, emulate)
    curves = curves_of(document, emulate, table if emulate.table in BUILT_IN else checked_file(entry, table))
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision=precision,
        backend=EMULATED,
        path=table,
        threads=1,
        inputs=specs_said(entry, "inputs", config.inputs),
        outputs=specs_said(entry, "outputs", config.outputs),
        options=emulate.options(table, precision),
    )
    padding = padding_of(entry.path, config, declared_values(spec.inputs, ()), declared_values(spec.outputs, ()))
    threads = lanes.model_copy(update={"kind": "thread", "count": lanes.count or 1, "threads": 1})
    config = config.model_copy(update={"lanes": threads})
    return Loadable(config, spec, None, trust_batch_axis=True, padding=padding, note=note(curves[precision]), expected=published(curves))


def python(entry: Entry, version: str, config: ModelConfig, device: str) -> Loadable:
    """A version that is a class of the user's own; `device` is the server's, for a model that doesn't say its own. Raises ModelDefect."""
    document = config_document(entry.path)
    code, lanes = config.python, config.lanes
    if code is None and document.path.name == PBTXT_NAME:
        raise document.error(("backend",), TRITONS_CLASS)
    if code is None or config.backend != PYTHON:
        missing = "backend" if code else "python"
        raise document.error(
            ("backend",), f"`backend: {PYTHON}` and `python: {{code: FILE.py:Class}}` belong together; {missing} is missing"
        )
    if lanes.kind not in ("auto", "process"):
        raise document.error(
            ("lanes", "kind"), f"a user's own code runs in processes of its own only: expected auto or process, got {lanes.kind!r}"
        )
    for section, tensors in (("inputs", config.inputs), ("outputs", config.outputs)):
        if not tensors:
            raise document.error((), f"{section}: must be given: no file declares the tensors of a Python model")
    file, _, name = code.code.partition(":")
    check_precisions(entry, config, [precision := config.precision.first or "fp32"], f"what {code.code} has")
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision=precision,
        backend=PYTHON,
        path=_source(entry, version, document, file),
        device=lanes.device or device,
        threads=lanes.threads or 1,
        inputs=_whole(specs_said(entry, "inputs", config.inputs), config),
        outputs=_whole(specs_said(entry, "outputs", config.outputs), config),
        options={"class": name, "options": code.options},
    )
    values = declared_values(spec.inputs, ()), declared_values(spec.outputs, ())
    check_state(entry.path, config, *values)
    padding = padding_of(entry.path, config, *values)
    alone = lanes.model_copy(update={"kind": "process", "count": lanes.count or 1, "threads": spec.threads})
    config = config.model_copy(update={"lanes": alone})
    return Loadable(config, spec, None, trust_batch_axis=True, padding=padding)


def ensemble(entry: Entry, version: str, config: ModelConfig) -> Loadable:
    """A version that is made of other models. Its tensors may be declared; what isn't is read from its parts. Raises ModelDefect."""
    if config.backend not in (None, ENSEMBLE):
        document = config_document(entry.path)
        raise document.error(("backend",), f"is {config.backend!r}, but an ensemble is run by its parts: leave it out")
    spec = VariantSpec(
        model=entry.name,
        version=version,
        precision="",
        backend=ENSEMBLE,
        path=config_path(entry.path),
        inputs=specs_said(entry, "inputs", config.inputs),
        outputs=specs_said(entry, "outputs", config.outputs),
    )
    return Loadable(config, spec, None, trust_batch_axis=True)


def _whole(specs: tuple[TensorSpec, ...], config: ModelConfig) -> tuple[TensorSpec, ...]:
    """A decoupled model takes one request at a time, whatever its first axis counts."""
    return tuple(replace(spec, batch_axis=None) for spec in specs) if config.decoupled else specs


def _source(entry: Entry, version: str, document: Document, file: str) -> Path:
    """The user's file, the version's own before the model's. Raises ModelDefect where there's neither."""
    places = [entry.path / version / file, entry.path / file]
    found = next((path for path in places if path.exists() or path.is_symlink()), None)
    if found is None:
        raise document.error(("python", "code"), f"no {file!r} in {places[0].parent} or {places[1].parent}")
    return checked_file(entry, found)
