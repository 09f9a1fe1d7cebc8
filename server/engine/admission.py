"""Does this request fit this model? Pure: a layout against the model's specs, in Triton's words where its clients grep for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from server.errors import InvalidRequest
from server.messages import Layout
from server.tensors import TensorSpec


def rows_of(layout: Layout, model: str, inputs: Sequence[TensorSpec], max_rows: int) -> int:
    """How many rows the request has: 1 where the model is unbatched (`max_rows` 0). Raises InvalidRequest that names the input,
    what the model expects and what came."""
    given = {name: (datatype, shape) for name, datatype, shape in layout.tensors}
    _names(list(given), model, inputs)
    rows: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in given:
            continue
        datatype, shape = given[spec.name]
        if datatype != spec.datatype:
            raise InvalidRequest(f"inference input '{spec.name}' data-type is '{datatype}', but model '{model}' expects '{spec.datatype}'")
        _shape(shape, model, spec)
        if max_rows and spec.batch_axis is not None:
            rows[spec.name] = shape[spec.batch_axis]
    return _agreed(rows, model, max_rows) if rows else 1


def group_of(layout: Layout, inputs: Sequence[TensorSpec]) -> Hashable:
    """What may share a run with it: requests whose inputs have the same names and the same shapes but for the batch axis."""
    axis = {spec.name: spec.batch_axis for spec in inputs}
    return tuple(sorted((name, _without(shape, axis[name])) for name, _, shape in layout.tensors))


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])


def _names(names: list[str], model: str, inputs: Sequence[TensorSpec]) -> None:
    known = {spec.name for spec in inputs}
    extra = [name for name in names if name not in known]
    if extra:
        raise InvalidRequest(f"unexpected inference input '{extra[0]}' for model '{model}'. The model's inputs are: {sorted(known)}")
    missing = [spec.name for spec in inputs if not spec.optional and spec.name not in names]
    if missing:
        raise InvalidRequest(
            f"expected {len(inputs)} inputs but got {len(names)} inputs for model '{model}'. Got input(s) {names}, "
            f"but missing required input(s) {missing}. Please provide all required input(s)."
        )


def _shape(shape: tuple[int, ...], model: str, spec: TensorSpec) -> None:
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
    if not fits:
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' for model '{model}'. Expected {_text(spec.shape)}, got {_text(shape)}"
        )
    if spec.max_shape is not None:
        for axis, (got, most) in enumerate(zip(shape, spec.max_shape, strict=True)):
            if 0 <= most < got:
                raise InvalidRequest(
                    f"shape {_text(shape)} of input '{spec.name}' for model '{model}' is too large: "
                    f"axis {axis} takes at most {most}, got {got}"
                )


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _agreed(rows: dict[str, int], model: str, max_rows: int) -> int:
    counts = set(rows.values())
    if len(counts) > 1:
        raise InvalidRequest(f"inputs for model '{model}' disagree on the number of rows: {rows}")
    count = counts.pop()
    if count < 1:
        raise InvalidRequest(f"a request for model '{model}' must have at least one row, got {count}")
    if count > max_rows:
        raise InvalidRequest(f"inference request batch-size must be <= {max_rows} for '{model}', got {count}")
    return count
