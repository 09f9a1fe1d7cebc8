"""`sequence.state` and `cache` of model.yaml, held against the model's tensors: what can't be a state is refused by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from server.repository.configs.reading import said_wrong
from server.repository.declare.sections import State
from server.repository.model_config import ModelConfig, OutputConfig, TensorConfig
from server.repository.onnx_files import Value
from server.validation import nearest

Said = TypeVar("Said", bound=TensorConfig)


def with_state_axes(config: ModelConfig, folder: Path) -> ModelConfig:
    """The settings with what `sequence.state` says of its tensors' rows put where all tensors have it. Raises ModelDefect."""
    if config.cache.max_bytes and (config.sequence is not None or config.decoupled or config.ensemble is not None):
        raise said_wrong(folder, ("cache",), "answers of sequences, decoupled models and ensembles aren't kept; an ensemble's parts may be")
    if config.sequence is None:
        return config
    if config.decoupled or config.ensemble is not None:
        raise said_wrong(folder, ("sequence",), "neither a decoupled model nor an ensemble keeps a state; its parts may")
    inputs, outputs = dict(config.inputs), dict(config.outputs)
    for state in config.sequence.state:
        inputs[state.input] = _with_axis(inputs.get(state.input, TensorConfig()), state.batch_axis)
        outputs[state.output] = _with_axis(outputs.get(state.output, OutputConfig()), state.batch_axis)
    return config.model_copy(update={"inputs": inputs, "outputs": outputs})


def _with_axis(said: Said, axis: int) -> Said:
    return said.model_copy(update={"batch_axis": axis})  # of a state, it may be another than the first


def check_state(folder: Path, config: ModelConfig, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    """Raises ModelDefect with file, line and tensor where a state can't be fed back."""
    if config.sequence is None:
        return
    for number, state in enumerate(config.sequence.state):
        for key, fault in _faults(state, {value.name: value for value in inputs}, {value.name: value for value in outputs}):
            raise said_wrong(folder, ("sequence", "state", number, key), fault)


def _faults(state: State, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    for key, name, known in (("input", state.input, inputs), ("output", state.output, outputs)):
        if name not in known:
            yield key, f"the model has no {key} {name!r}{nearest(name, known)}"
    fed, given = inputs[state.input], outputs[state.output]
    if fed.datatype != given.datatype:
        yield "output", f"{state.output!r} is {given.datatype}, but the input {state.input!r} is {fed.datatype}"
    shape = fed.shape or ()
    if state.batch_axis >= len(shape):
        yield "batch_axis", f"{state.input!r} has the shape {list(shape)}, so no axis {state.batch_axis}"
    if any(axis == -1 and index != state.batch_axis for index, axis in enumerate(shape)):
        yield "input", f"{state.input!r} has the shape {list(shape)}; only the axis that counts rows may vary: how else would it begin?"
    if given.shape and not _alike(shape, given.shape):
        yield "output", f"{state.output!r} has the shape {list(given.shape)}, but the input {state.input!r} {list(shape)}"


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(-1 in both or both[0] == both[1] for both in zip(one, other, strict=True))
