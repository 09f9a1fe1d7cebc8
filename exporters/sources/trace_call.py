"""How the model is called, and its trace to ONNX by the TorchScript-based exporter; part of trace_child's process.

Inputs carry the example's names and outputs flat names, whatever forward's own signature and answer look like.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from .samples import Arrays
from .trace_state import Program, RefusedError

MOST_INLINE = 2**31 - 2**26
"""Bytes of weights that fit one file with any graph around them: protobuf ends at 2 GiB."""
USER_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError)
"""What a forward raises where it can't take an input."""


def brief(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class Traceable(nn.Module):
    """The model with tensors in, in the example's order, and a flat tuple of tensors out; `names` are the last answer's."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], by_keyword: bool) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.by_keyword = by_keyword
        self.names: tuple[str, ...] = ()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        answer = self.model(**dict(zip(self.inputs, tensors, strict=True))) if self.by_keyword else self.model(*tensors)
        found = dict(flat(answer))
        self.names = tuple(found)
        return tuple(found.values())


def flat(answer: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an answer by name: a dict's keys, a dataclass's or named tuple's fields, else output_0, output_1, …"""
    if isinstance(answer, Tensor):
        yield name or "output_0", answer
    elif answer is not None:
        for key, part in _parts(answer, name):
            yield from flat(part, f"{name}_{key}" if name else key)


def _parts(answer: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(answer, Mapping):
        return ((str(key), part) for key, part in answer.items())
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return ((part.name, getattr(answer, part.name)) for part in dataclasses.fields(answer))
    if isinstance(answer, tuple | list):
        names = getattr(answer, "_fields", None) or [str(index) if name else f"output_{index}" for index in range(len(answer))]
        return zip(names, answer, strict=True)
    where = f" in {name}" if name else ""
    raise RefusedError(f"forward gives a {type(answer).__name__}{where}; only tensors in tuples, dicts or dataclasses can be exported")


@dataclass(frozen=True)
class Call:
    """How the model is called: its inputs by name, as the example has them."""

    traceable: Traceable
    example: Arrays

    def answer(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once; the arrays stay as they are, even where forward works in place."""
        with torch.no_grad():
            return [tensor.detach().cpu().numpy().copy() for tensor in self.traceable(*self.tensors(arrays))]

    def exported(self) -> nn.Module:
        """What the exporter is given: a script it takes as it is, for a script can't be traced inside another module."""
        model = self.traceable.model
        return model.inner if isinstance(model, Program) and isinstance(model.inner, torch.jit.ScriptModule) else self.traceable

    def input_order(self) -> tuple[str, ...]:
        """The inputs as `exported` takes them."""
        model = self.traceable.model
        if self.exported() is self.traceable or not isinstance(model, Program):
            return tuple(self.example)
        return tuple(name for name in model.input_names if name in self.example)

    def tensors(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(arrays[name]) for name in self.example)


def bind(model: nn.Module, example: Arrays) -> Call:
    """Match the example's names with forward's parameters: by keyword where they agree, by position for a single other name."""
    parameters = _parameters(model)
    plain = [part for part in parameters if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)]
    names = [part.name for part in plain]
    needed = [part.name for part in plain if part.default is part.empty]
    if any(part.kind is part.VAR_KEYWORD for part in parameters) or all(key in names for key in example):
        missing = [name for name in needed if name not in example]
        if not missing:
            return Call(Traceable(model, tuple(example), by_keyword=True), example)
        if not _unnamed(example) and len(example) > 1:
            raise RefusedError(f"the example lacks {', '.join(missing)}: it has {', '.join(example)}; forward takes ({', '.join(names)})")
    room = len(example) <= len(plain) or any(part.kind is part.VAR_POSITIONAL for part in parameters)
    if room and len(needed) <= len(example) and _unnamed(example):
        renamed = dict(zip([*names, *list(example)[len(names) :]], example.values(), strict=False))
        return Call(Traceable(model, tuple(renamed), by_keyword=False), renamed)
    if room and len(needed) <= len(example) == 1:
        return Call(Traceable(model, tuple(example), by_keyword=False), example)
    raise RefusedError(f"the example's names don't fit: it has {', '.join(example)}; forward takes ({', '.join(names)})")


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Those of forward, or of the module that a program was traced from."""
    if isinstance(model, Program):
        return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in model.input_names]
    return [part for name, part in inspect.signature(model.forward).parameters.items() if name != "self"]


def _unnamed(example: Arrays) -> bool:
    return list(example) == [f"arr_{index}" for index in range(len(example))]


@dataclass(frozen=True)
class Written:
    """How the file is to be written: its opset, and by which of torch's exporters."""

    path: Path
    opset: int
    dynamo: bool = False


def write_onnx(
    call: Call, arrays: Arrays, outputs: tuple[str, ...], symbols: dict[str, dict[int, str]], to: Written
) -> list[tuple[str, int, str]]:
    """Trace the call on `arrays` and write the file. `symbols` names the axes that vary.

    Returns the tracer's warnings (file, line, text): the places where Python values were taken for constants.
    """
    logging.disable(logging.CRITICAL)  # more than 2 GiB of weights are written beside the file, by either exporter
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.onnx.export(
            call.exported(),
            tuple(torch.tensor(arrays[name]) for name in call.input_order()),
            None if to.dynamo else str(to.path),
            input_names=list(call.input_order()),
            output_names=list(outputs),
            opset_version=to.opset,
            **(_by_dynamo(call, symbols) if to.dynamo else {"dynamic_axes": symbols, "dynamo": False}),
        )
        if program is not None:
            size = sum(tensor.numel() * tensor.element_size() for tensor in call.traceable.state_dict().values())
            program.save(str(to.path), external_data=size > MOST_INLINE)
    found = [(w.filename, w.lineno, str(w.message).split(".")[0]) for w in caught if issubclass(w.category, TracerWarning)]
    return list(dict.fromkeys(found))


def _by_dynamo(call: Call, symbols: dict[str, dict[int, str]]) -> dict[str, Any]:
    """The options of the newer exporter. Axes are told to it by position, for forward here takes any number of tensors."""
    dims = {symbol: torch.export.Dim.DYNAMIC for axes in symbols.values() for symbol in axes.values()}
    shapes = tuple({axis: dims[symbol] for axis, symbol in symbols.get(name, {}).items()} for name in call.example)
    return {"dynamic_shapes": (shapes,), "dynamo": True, "verbose": False, "optimize": True}


LABELS, WORTH_ROWS = "labels", 64
"""What a labelled set calls its labels, and how many of its rows are run at once."""


def worth(call: Call, labelled: Arrays | None) -> tuple[NDArray[Any], float | None]:
    """The first output's answers to the labelled rows, else to the example; and the share of rows whose best class is their label,
    None where it isn't one for each."""
    if labelled is None:
        return call.answer(call.example)[0], None
    labels = labelled.get(LABELS)
    count = len(next(iter(labelled.values())))
    cuts = range(0, count, WORTH_ROWS)
    parts = [call.answer({name: labelled[name][start : start + WORTH_ROWS] for name in call.example})[0] for start in cuts]
    answers = np.concatenate(parts)
    scored = labels is not None and labels.dtype.kind in "iu" and answers.ndim == 2 and labels.shape == (len(answers),)
    return answers, float((answers.argmax(axis=1) == labels).mean()) if scored else None


def mean_cosine(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Of the angle between rows."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (one, two))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())
