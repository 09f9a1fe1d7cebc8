"""Does this request fit this model, and on which terms does it wait? Pure: a layout against the model's specs, in Triton's words where
its clients grep for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from server.engine.batcher import BatchPolicy
from server.engine.decide.turns import Tenant
from server.engine.request_queue import QueueLimits
from server.errors import InvalidRequest
from server.messages import InferRequest, Layout
from server.padding import NO_PADDING, Padding
from server.repository.model_config import OTHER_TENANT, ModelConfig
from server.tensors import DTYPES, TensorSpec, elements


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a model takes requests, as its model.yaml has them.

    `timeout` is seconds until the deadline of a request that
    brings none, None: it has none. `tenants` are those known by name. `padding` says which requests of unlike length share a run.
    """

    limits: QueueLimits = field(default_factory=QueueLimits)
    timeout: float | None = None
    priorities: int = 1
    tenants: frozenset[str] = frozenset()
    padding: Padding = NO_PADDING


def terms_of(config: ModelConfig, padding: Padding) -> Terms:
    """The terms of a model. The objective is a deadline only where late answers are worth nothing (on_late: reject)."""
    queue = config.queue
    timeout = queue.timeout or (config.batching.latency_objective if queue.on_late == "reject" else None)
    return Terms(QueueLimits(queue.max_rows, queue.max_bytes), timeout, queue.priorities, frozenset(queue.tenants), padding)


def policy_of(config: ModelConfig, lanes: int, batched: bool) -> BatchPolicy:
    """How a model's requests are to be batched, on so many lanes."""
    batching, queue = config.batching, config.queue
    return BatchPolicy(
        max_rows=batching.max_rows if batched else 1,
        latency_objective=batching.latency_objective,
        on_late=queue.on_late,
        max_wait=batching.max_wait,
        preferred_rows=batching.preferred_rows if batched else (),
        length_buckets=() if isinstance(batching.length_buckets, str) else batching.length_buckets,
        priorities=queue.priorities,
        tenants={name: Tenant(said.weight, said.rows_per_s, said.bytes_per_s) for name, said in queue.tenants.items()},
        lanes=lanes,
    )


def length_at(free_axis: int, inputs: Sequence[TensorSpec], padding: Padding) -> int:
    """The length (see InferRequest) of a request whose axes that vary are all `free_axis` long, as far as they may be."""
    limits = {spec.name: spec.max_shape or (-1,) * len(spec.shape) for spec in inputs}
    return padding.cells({name: tuple(free_axis if most < 0 else min(free_axis, most) for most in limits[name]) for name in limits})


def admit(request: InferRequest, terms: Terms) -> None:
    """Take a request on these terms: its deadline, priority and tenant, and whether it asks to be explained. Raises InvalidRequest that
    says what a parameter may be."""
    if request.tenant and request.tenant not in terms.tenants:  # first: a request refused below is counted by its tenant too
        request.tenant = OTHER_TENANT if terms.tenants else ""
    if request.parameters:
        _read_parameters(request, terms)
    if request.deadline is None and terms.timeout is not None:
        request.deadline = request.received + terms.timeout


def _read_parameters(request: InferRequest, terms: Terms) -> None:
    parameters = request.parameters
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise InvalidRequest(f"parameter 'timeout' must be a whole number of microseconds, 0 for the model's own; got {timeout!r}")
    if timeout:
        deadline = request.received + timeout * 1e-6
        request.deadline = deadline if request.deadline is None else min(deadline, request.deadline)
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= terms.priorities:
        levels = f"from 1 (first) to {terms.priorities} (last), or 0 for the last"
        raise InvalidRequest(f"parameter 'priority' for model '{request.model}' must be a whole number {levels}; got {priority!r}")
    request.priority = priority
    explain = parameters.get("explain", False)
    if type(explain) is not bool:
        raise InvalidRequest(f"parameter 'explain' must be true or false; got {explain!r}")
    request.explain = explain


class Fit(NamedTuple):
    """What a layout means for a model: its rows, what may share a run with it, its length (see InferRequest), and the bytes of its
    tensors, -1 where they aren't told by the layout (BYTES)."""

    rows: int
    group: Hashable
    length: int
    bytes: int


def fit(layout: Layout, model: str, inputs: Sequence[TensorSpec], max_rows: int, padding: Padding = NO_PADDING) -> Fit:
    """What `layout` means. Raises InvalidRequest that names the input, what the model expects and what came."""
    rows = rows_of(layout, model, inputs, max_rows)
    shapes = {name: shape for name, _, shape in layout.tensors}
    if padding and (found := padding.disagreement(shapes)) is not None:
        dim, one, length, other, unlike = found
        raise InvalidRequest(
            f"inputs '{one}' and '{other}' for model '{model}' share the axis '{dim}', so they must be equally long on it; "
            f"got {length} and {unlike}"
        )
    sizes = [DTYPES[datatype].size * elements(shape) for _, datatype, shape in layout.tensors]
    text = any(DTYPES[datatype].size == 0 for _, datatype, _ in layout.tensors)
    return Fit(rows, group_of(layout, inputs, padding), padding.cells(shapes), -1 if text else sum(sizes))


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


def group_of(layout: Layout, inputs: Sequence[TensorSpec], padding: Padding = NO_PADDING) -> Hashable:
    """What may share a run with it: requests whose inputs have the same names and the same shapes but for the batch axis and the axes
    that may be padded. A request of length 0 shares with its like only: a row of nothing but padding has no answer."""
    axis = {spec.name: spec.batch_axis for spec in inputs}
    if padding and 0 in padding.lengths({name: shape for name, _, shape in layout.tensors}).values():
        padding = NO_PADDING
    return tuple(sorted((name, padding.unpadded(name, _rowless(shape, axis[name]))) for name, _, shape in layout.tensors))


def _rowless(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """`shape` with any number of rows, each axis where it was."""
    return shape if axis is None else (*shape[:axis], -1, *shape[axis + 1 :])


def with_values(group: Hashable, request: InferRequest, shared: Sequence[str]) -> Hashable:
    """The group of a request for a model with inputs that aren't per row (`shared`): one of each goes into a run, so requests share it
    only where those are equal."""
    arrays = [request.inputs[name] for name in shared if name in request.inputs]
    return group, tuple(tuple(array.flat) if array.dtype.hasobject else array.tobytes() for array in arrays)


def bytes_of(request: InferRequest) -> int:
    """Bytes of a request's tensors, where its layout doesn't tell them."""
    arrays = request.inputs.values()
    return sum(sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes for array in arrays)


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
