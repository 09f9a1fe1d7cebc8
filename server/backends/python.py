"""The Python backend: a class of the user's own, `load`, `infer`, `unload`, run in a process of its own; docs/python_backend.md.

Only a process lane opens it (lanes.opening): a user's import, exit, hang or crash is never the server's. What goes wrong in the user's
code is told by its class, its text and its own file and line; what it prints becomes lines of the log.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import Any, ClassVar

import numpy as np

from server.backends.base import VariantSpec
from server.backends.printed import Printed
from server.errors import BackendFailure, ModelDefect, TidegateError
from server.tensors import Tensor, TensorSpec

MODULE = "tidegate_model"  # no name that the user's other files could have


@dataclass(frozen=True, slots=True)
class Context:
    """What `load` is given: whom the class serves, the folder of its file, `python.options` of model.yaml, and its declared tensors."""

    model: str
    version: str
    folder: Path
    options: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    threads: int


class PythonBackend:
    """See server.backends.base.Backend. `options`: class (its name in the file), options (the user's own)."""

    version: ClassVar[str] = f"python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"

    def __init__(self, spec: VariantSpec, model: Any) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._model = model
        self._path = spec.path
        self._label = f"model {spec.model!r} version {spec.version}"

    @classmethod
    def open(cls, spec: VariantSpec) -> PythonBackend:
        """Import the file, make the class, call its `load`. Raises ModelDefect with the user's own line."""
        sys.stdout = Printed(spec.model, spec.version)
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        sys.path.insert(0, str(spec.path.parent))
        name = str(spec.options["class"])
        with _Blame(f"{spec.path}: can't be imported", spec.path, ModelDefect):
            found = getattr(_imported(spec.path), name, None)
        if not isinstance(found, type) or not callable(getattr(found, "infer", None)):
            what = "has no method `infer`" if isinstance(found, type) else f"isn't a class of it: {found!r}"[:200]
            raise ModelDefect(f"{spec.path}: python.code names {name!r}, which {what}")
        context = Context(
            spec.model,
            spec.version,
            spec.path.parent,
            dict(spec.options.get("options", {})),
            spec.inputs,
            spec.outputs,
            spec.device,
            spec.threads,
        )
        with _Blame(f"{spec.path}: {name}.load failed", spec.path, ModelDefect):
            model = found()
            if callable(getattr(model, "load", None)):
                model.load(context)
        return cls(spec, model)

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run. One answer to one run: a generator must yield it and end."""
        answers = list(self.stream(inputs, rows))
        if len(answers) != 1:
            raise BackendFailure(f"{self._label}: infer yielded {len(answers)} answers; only a decoupled model gives other than 1")
        for name, array in (out or {}).items():
            np.copyto(array, answers[0][name])
            answers[0][name] = array
        return answers[0]

    def stream(self, inputs: Mapping[str, Tensor], rows: int) -> Iterator[dict[str, Tensor]]:
        """Every answer to one run, each as soon as the user's generator yields it; closing this one closes that. What isn't a generator is
        the only answer."""
        with self._blame():
            result = self._model.infer(dict(inputs))
        if not isinstance(result, GeneratorType):
            yield self._checked(result, rows)
            return
        try:
            while True:
                with self._blame():
                    answer = next(result, _END)
                if answer is _END:
                    return
                yield self._checked(answer, rows)
        finally:
            with self._blame():
                result.close()

    def close(self) -> None:
        """Call the user's `unload`. What it raises is only told: nobody waits for an answer."""
        with _Blame("unload failed", self._path, None):
            if callable(getattr(self._model, "unload", None)):
                self._model.unload()

    def _blame(self) -> _Blame:
        return _Blame(f"{self._label}: infer failed", self._path, BackendFailure)

    def _checked(self, result: Any, rows: int) -> dict[str, Tensor]:
        """The outputs as they are declared. Raises BackendFailure that names the first that isn't."""
        if not isinstance(result, Mapping):
            raise BackendFailure(f"{self._label}: infer must return a dict of outputs by name, got {type(result).__name__}")
        names = [spec.name for spec in self.outputs]
        if result.keys() != set(names):
            raise BackendFailure(f"{self._label}: infer must return the outputs {names}, got {sorted(map(str, result))}")
        return {spec.name: self._output(spec, result[spec.name], rows) for spec in self.outputs}

    def _output(self, spec: TensorSpec, value: Any, rows: int) -> Tensor:
        expected = [rows if axis == spec.batch_axis else length for axis, length in enumerate(spec.shape)]
        what = f"{self._label}: output {spec.name!r} must be {spec.datatype} {expected}"
        try:
            array = _texts(value) if spec.datatype == "BYTES" else _numbers(value, spec.dtype.numpy)
        except (TypeError, ValueError, OverflowError) as error:
            raise BackendFailure(f"{what}: {error}") from error
        if len(array.shape) != len(expected) or any(want not in (-1, got) for want, got in zip(expected, array.shape, strict=True)):
            raise BackendFailure(f"{what}, got {list(array.shape)}")
        return array


_END = object()


class _Blame:
    """Whatever the user's code raises within becomes `kind`, with the exception's class and text and the last line of the user's own files;
    None: it's printed. Our own errors (InvalidRequest: the client's fault) go through, and an exit unless the model is being opened."""

    def __init__(self, what: str, path: Path, kind: type[TidegateError] | None) -> None:
        self._what = what
        self._path = path
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if isinstance(error, TidegateError) or not isinstance(error, (Exception, SystemExit)):
            return False
        text = f"{self._what}: {type(error).__name__}: {error} ({_line(error, trace, self._path)})"
        if self._kind is not None and (isinstance(error, Exception) or self._kind is ModelDefect):
            raise self._kind(text) from error
        sys.stdout.write(f"{text}\n")
        if isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else 1)  # at once: its lane is closed behind it
        return True


def _line(error: BaseException, trace: TracebackType | None, path: Path) -> str:
    """`model.py:12 in infer`: the innermost line of a file in the user's folder, or where the syntax is wrong."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(trace) if Path(frame.filename).is_relative_to(path.parent)]
    if not frames:
        return path.name
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"


def _imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # dataclasses and pickle look a class's module up
    spec.loader.exec_module(module)
    return module


def _texts(value: Any) -> Tensor:
    """Texts, also in lists, as an object array of bytes. Raises TypeError for what is neither str nor bytes."""
    array = np.asarray(value)
    if array.dtype.kind not in "SUO":
        raise TypeError(f"expected str or bytes, got {array.dtype}")
    if array.dtype.kind != "O":  # numpy cuts a text's trailing NULs off
        array = np.asarray(value, object)
    texts = [item.encode() if isinstance(item, str) else item for item in array.flat]
    if unlike := next((item for item in texts if not isinstance(item, bytes)), None):
        raise TypeError(f"expected str or bytes, got {type(unlike).__name__}")
    out = np.empty(array.shape, object)
    out.flat[:] = texts
    return out


def _numbers(value: Any, dtype: np.dtype[Any]) -> Tensor:
    """Numbers of `dtype`; those of another are cast where nothing but precision is lost. Raises TypeError where more would be."""
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    if isinstance(value, np.ndarray | np.generic) and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"got {array.dtype}; give it as {dtype}, for example .astype({str(dtype)!r})")
    return array.astype(dtype, casting="unsafe" if array.dtype.kind in "biuf" and not isinstance(value, np.ndarray) else "same_kind")
