"""Many requests become one run and one run many answers: gather into the lane's buffers, padded where they are of unlike length, and split
along the batch axis, each answer cut back to its request's own length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from server.engine.request_queue import Ticket
from server.errors import BackendFailure
from server.lanes.base import Lane
from server.padding import NO_PADDING, Padding, cut, join, longest
from server.tensors import Tensor, TensorSpec


def gather(
    tickets: Sequence[Ticket], rows: int, inputs: Sequence[TensorSpec], lane: Lane, padding: Padding = NO_PADDING
) -> dict[str, Tensor]:
    """The run's inputs, each of `rows` rows along its batch axis and as long as the longest request. A lone request's arrays are passed
    as they are; an input that isn't per row is the first request's, since only equal ones share a run."""
    first = tickets[0].request.inputs
    if len(tickets) == 1:
        return first
    return {
        spec.name: first[spec.name]
        if spec.batch_axis is None
        else _join([ticket.request.inputs[spec.name] for ticket in tickets], rows, spec, lane, padding)
        for spec in inputs
        if spec.name in first
    }


def _join(arrays: list[Tensor], rows: int, spec: TensorSpec, lane: Lane, padding: Padding) -> Tensor:
    axis = spec.batch_axis or 0
    text = arrays[0].dtype.hasobject  # a buffer would keep the clients' strings alive after the answer
    shapes = [array.shape for array in arrays]
    axes = padding.inputs.get(spec.name, ())
    if axes:
        shape = longest(shapes, axis, rows, axes)
        if any(other[position] != shape[position] for position, _ in axes for other in shapes):
            out = np.empty(shape, object) if text else lane.buffer(spec.name, shape)
            return join(arrays, axis, axes, padding.values[spec.name], out)
    if text:
        return np.concatenate(arrays, axis=axis)
    return np.concatenate(arrays, axis=axis, out=lane.buffer(spec.name, (*shapes[0][:axis], rows, *shapes[0][axis + 1 :])))


def fullness(tickets: Sequence[Ticket], rows: int, inputs: Mapping[str, Tensor], padding: Padding) -> tuple[int, float]:
    """The length of a gathered run, and the share of its cells that is padding."""
    length = padding.cells({name: inputs[name].shape for name in padding.inputs if name in inputs})
    if len(tickets) == 1:
        return length, 0.0
    return length, 1.0 - sum([ticket.rows * ticket.request.length for ticket in tickets]) / (rows * length)


def split(
    tickets: Sequence[Ticket],
    rows: int,
    results: Mapping[str, Tensor],
    outputs: Sequence[TensorSpec],
    padding: Padding = NO_PADDING,
) -> list[dict[str, Tensor]]:
    """Each ticket's share of the outputs, in the order it asked for, without padding; an output that isn't per row is everyone's. Raises
    BackendFailure where an output has not `rows` rows, or isn't as long as the run on an axis that was padded."""
    if len(tickets) == 1:
        return [_wanted(tickets[0], results)]
    lengths = _Lengths(tickets, padding)
    pieces = {spec.name: _pieces(tickets, rows, results[spec.name], spec, lengths) for spec in outputs}
    return [_wanted(ticket, {name: pieces[name][number] for name in pieces}) for number, ticket in enumerate(tickets)]


class _Lengths:
    """How long each request of a run was, by dim; found out once for each dim that an output has."""

    __slots__ = ("_known", "_padding", "_tickets")

    def __init__(self, tickets: Sequence[Ticket], padding: Padding) -> None:
        self._tickets = tickets
        self._padding = padding
        self._known: dict[str, list[int]] = {}

    def of(self, output: str) -> list[tuple[int, list[int]]]:
        """The axes of `output` to cut, each with the tickets' lengths there."""
        return [(position, self._dim(dim)) for position, dim in self._padding.outputs.get(output, ())]

    def _dim(self, dim: str) -> list[int]:
        known = self._known.get(dim)
        if known is None:
            sources = self._padding.sources(dim)
            known = self._known[dim] = [
                max([ticket.request.inputs[name].shape[position] for name, position in sources if name in ticket.request.inputs])
                for ticket in self._tickets
            ]
        return known


def _pieces(tickets: Sequence[Ticket], rows: int, found: Tensor, spec: TensorSpec, lengths: _Lengths) -> list[Tensor]:
    axis = spec.batch_axis
    if axis is None:
        return [found] * len(tickets)
    shape = found.shape
    if len(shape) <= axis or shape[axis] != rows:
        raise BackendFailure(f"output {spec.name!r} has shape {list(shape)}, expected {rows} rows on axis {axis}")
    cuts = lengths.of(spec.name)
    for position, own in cuts:
        if len(shape) <= position or shape[position] != max(own):
            raise BackendFailure(
                f"output {spec.name!r} has shape {list(shape)}, expected {max(own)} on axis {position}, as its padded input: "
                f"say in model.yaml which axes are padded (outputs.{spec.name}.pad_axes)"
            )
    cuts = [(position, own) for position, own in cuts if min(own) != max(own)]
    pieces: list[Tensor] = []
    start = 0
    for number, ticket in enumerate(tickets):
        stop = start + ticket.rows
        if cuts:
            pieces.append(cut(found, axis, (start, stop), {position: own[number] for position, own in cuts}))
        else:
            pieces.append(found[start:stop] if axis == 0 else found[(slice(None),) * axis + (slice(start, stop),)])
        start = stop
    return pieces


def _wanted(ticket: Ticket, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
    asked = ticket.request.outputs
    if not asked:
        return results if isinstance(results, dict) else dict(results)
    return {output.name: results[output.name] for output in asked}
